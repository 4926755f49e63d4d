"""What was asked, what came back and what it cost; each verb is all or nothing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
