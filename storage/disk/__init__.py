"""Writing files so that a crash or a full disk leaves nothing half done."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
