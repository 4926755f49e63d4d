"""A better policy from files alone: buffers, losses, d3rlpy algorithms and the statistics of the gate.

It never imports gymnasium and never asks a language model.

In the order of a refinement: labels, policies, training, evaluation.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
