from .calibration import EDGES, Bin
from .notes import same_actions
from .quality import Quality, assess_run
from .verdict import Judgement, judge

__all__ = ["EDGES", "Bin", "Judgement", "Quality", "assess_run", "judge", "same_actions"]
