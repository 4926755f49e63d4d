"""Candidates, arms and verdicts: refine with or without a simulator, ablate, rounds and evaluate."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
