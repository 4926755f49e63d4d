"""Policies as arrays: the portable network, its files, and the ways from and to other formats."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
