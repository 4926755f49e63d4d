from .engine import train_fast

__all__ = ["train_fast"]
