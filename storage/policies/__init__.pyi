from .deployments import CURRENT, AlreadyRunning, deployment_lock, link_current
from .policies import (
    RECORD,
    files_sha256,
    is_record,
    policy_files,
    policy_record,
    read_folder,
    resolve_policy,
    save_policy,
)
from .promotions import (
    Decision,
    count_labels,
    list_decisions,
    list_in_force,
    list_intakes,
    record_decision,
    record_intake,
    sum_dollars,
)
from .training_cache import load_training, save_training

__all__ = [
    "CURRENT",
    "RECORD",
    "AlreadyRunning",
    "Decision",
    "count_labels",
    "deployment_lock",
    "files_sha256",
    "is_record",
    "link_current",
    "list_decisions",
    "list_in_force",
    "list_intakes",
    "load_training",
    "policy_files",
    "policy_record",
    "read_folder",
    "record_decision",
    "record_intake",
    "resolve_policy",
    "save_policy",
    "save_training",
    "sum_dollars",
]
