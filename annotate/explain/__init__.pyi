from .nearest_request import Explanation, explain_misses, explain_request

__all__ = ["Explanation", "explain_misses", "explain_request"]
