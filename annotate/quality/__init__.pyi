from .placement import EDGES, Bin, same_actions
from .verdict import Judgement, Quality, assess_run, judge

__all__ = ["EDGES", "Bin", "Judgement", "Quality", "assess_run", "judge", "same_actions"]
