from .distillation import distil
from .robust import refine_candidates
from .train import refine
from .units import as_logits

__all__ = ["as_logits", "distil", "refine", "refine_candidates"]
