from . import evaluation, labels, policies, training

__all__ = ["evaluation", "labels", "policies", "training"]
