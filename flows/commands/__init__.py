"""The commands of `trajnote`, grouped as a user meets them; each parses, calls a plain function and prints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
