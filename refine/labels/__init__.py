"""From annotations to training targets: weights, reference arms, label noise, rewards."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
