"""The rows and files of what was asked of a model: runs, requests, batches and raw replies, and what they cost."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
