"""What runs at night: settings, schedules, intake, pipelines and notices."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
