"""Rollouts on disk: their columns, the files that hold them, how they are found and read, and adopted folders."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
