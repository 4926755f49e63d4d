from .distillation import distil
from .packing import as_logits, in_network_units
from .train import refine, refine_candidates, refine_each

__all__ = ["as_logits", "distil", "in_network_units", "refine", "refine_candidates", "refine_each"]
