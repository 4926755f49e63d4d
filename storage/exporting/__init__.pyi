from .datasets import EXPORTS, Labels, labels_by_step

__all__ = ["EXPORTS", "Labels", "labels_by_step"]
