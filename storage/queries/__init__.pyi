from .query import Bounds, Row, ask, rows_of, run_query

__all__ = ["Bounds", "Row", "ask", "rows_of", "run_query"]
