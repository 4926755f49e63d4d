from .loading import (
    Baseline,
    export_policy,
    find_baseline,
    find_collecting_weights,
    find_recorded_baseline,
    hash_policy_file,
    is_portable,
    load_own,
    load_policy,
    record_actor,
    record_baseline,
    with_options,
)

__all__ = [
    "Baseline",
    "export_policy",
    "find_baseline",
    "find_collecting_weights",
    "find_recorded_baseline",
    "hash_policy_file",
    "is_portable",
    "load_own",
    "load_policy",
    "record_actor",
    "record_baseline",
    "with_options",
]
