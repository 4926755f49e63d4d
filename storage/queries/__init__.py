"""Questions to the catalog: the named ones of reports, figures and status, and users' own SQL, bounded."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
