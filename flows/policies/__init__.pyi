from .baselines import Baseline, find_baseline, find_recorded_baseline, record_baseline
from .external import check_spaces, hash_policy_file
from .loading import export_policy, load_policy

__all__ = [
    "Baseline",
    "check_spaces",
    "export_policy",
    "find_baseline",
    "find_recorded_baseline",
    "hash_policy_file",
    "load_policy",
    "record_baseline",
]
