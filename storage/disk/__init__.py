"""Writing files so that a crash or a full disk leaves nothing half done."""
