from .bounded import Bounds
from .named import Row, ask
from .query import run_query

__all__ = ["Bounds", "Row", "ask", "run_query"]
