"""Who answers requests: a file, a recording, a server, or a function; all speak the protocol of `protocol.py`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
