"""Cards: what the numbers of an environment mean, in words that a program can check."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
