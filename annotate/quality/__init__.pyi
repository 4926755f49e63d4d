from .gold import GoldBin, GoldScore, GoldSet, Opinion, Place, Rivalry, Stratum, compare_runs, read_gold, score_run
from .placement import EDGES, Bin, same_actions
from .shares import Estimated, Paired, Rate
from .verdict import Judgement, Quality, assess_run, judge

__all__ = [
    "EDGES",
    "Bin",
    "Estimated",
    "GoldBin",
    "GoldScore",
    "GoldSet",
    "Judgement",
    "Opinion",
    "Paired",
    "Place",
    "Quality",
    "Rate",
    "Rivalry",
    "Stratum",
    "assess_run",
    "compare_runs",
    "judge",
    "read_gold",
    "same_actions",
    "score_run",
]
