from .bounded import Bounds
from .named import Row, ask, rows_of
from .query import run_query

__all__ = ["Bounds", "Row", "ask", "rows_of", "run_query"]
