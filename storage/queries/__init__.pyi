from .query import Bounds, Row, ask, run_query

__all__ = ["Bounds", "Row", "ask", "run_query"]
