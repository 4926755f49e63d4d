from .distillation import distil
from .train import refine, refine_candidates, refine_each
from .units import as_logits

__all__ = ["as_logits", "distil", "refine", "refine_candidates", "refine_each"]
