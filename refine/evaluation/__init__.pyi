from .estimates import (
    CAVEAT,
    Estimate,
    OpeConfig,
    estimated_interval,
    judge_estimated_improvement,
    judge_estimated_labels,
)
from .gate import (
    Decision,
    Interval,
    SeedPlan,
    Verdict,
    decide_acceptance,
    interval,
    interval_over_seeds,
    judge_improvement,
    judge_labels,
    rank,
)
from .held_out import Consistency, out_of_fold
from .ope import check_episodes, collect_refits, refit
from .racing import decide_early, list_looks, list_rungs, rank_survivors

__all__ = [
    "CAVEAT",
    "Consistency",
    "Decision",
    "Estimate",
    "Interval",
    "OpeConfig",
    "SeedPlan",
    "Verdict",
    "check_episodes",
    "collect_refits",
    "decide_acceptance",
    "decide_early",
    "estimated_interval",
    "interval",
    "interval_over_seeds",
    "judge_estimated_improvement",
    "judge_estimated_labels",
    "judge_improvement",
    "judge_labels",
    "list_looks",
    "list_rungs",
    "out_of_fold",
    "rank",
    "rank_survivors",
    "refit",
]
