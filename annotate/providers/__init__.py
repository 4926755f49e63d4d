"""Who answers requests: a file, a recording, or a server; all derive from the class in `protocol.py`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
