from .bounded import Bounds
from .query import run_query

__all__ = ["Bounds", "run_query"]
