"""Annotation runs: planned, asked one by one or in batches, resumed after a crash."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
