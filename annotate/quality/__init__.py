"""The health of labels before any training: where they are, whether they are consistent, calibrated and worth it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
