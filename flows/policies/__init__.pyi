from .baselines import Baseline, find_baseline, find_recorded_baseline, record_baseline
from .external import check_spaces, hash_policy_file
from .loading import hand_over, load_policy

__all__ = [
    "Baseline",
    "check_spaces",
    "find_baseline",
    "find_recorded_baseline",
    "hand_over",
    "hash_policy_file",
    "load_policy",
    "record_baseline",
]
