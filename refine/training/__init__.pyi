from .distillation import distil
from .networks import as_logits
from .robust import refine_candidates
from .train import refine

__all__ = ["as_logits", "distil", "refine", "refine_candidates"]
