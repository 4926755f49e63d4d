"""The report, part by part: catalog facts, charts, episodes, pictures, and the page itself."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
