from .predicates import FUNCTIONS, MAX_LENGTH, read_predicate

__all__ = ["FUNCTIONS", "MAX_LENGTH", "read_predicate"]
