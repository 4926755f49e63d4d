from .distillation import distil
from .packing import as_logits
from .train import refine, refine_candidates, refine_each

__all__ = ["as_logits", "distil", "refine", "refine_candidates", "refine_each"]
