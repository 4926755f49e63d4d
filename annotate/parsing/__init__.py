"""From a reply to checked labels and rules."""
