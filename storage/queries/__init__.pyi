from .query import Bounds, Row, ask, run_query, select_column

__all__ = ["Bounds", "Row", "ask", "run_query", "select_column"]
