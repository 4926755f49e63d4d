"""From a trajectory to a request: tables, statistics, selected steps, templates and the reply's schema."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
