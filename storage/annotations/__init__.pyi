from .annotations import (
    LabelReplay,
    count_rejections,
    insert_annotations,
    insert_label_replays,
    insert_rejections,
    list_runs,
    load_annotations,
    load_label_replays,
)
from .pooling import pool_annotations, read_pool
from .rules import (
    Matches,
    Rule,
    has_rules,
    insert_rules,
    list_rule_runs,
    load_rules,
    match_rules,
    rule_columns,
    summarise_rules,
)

__all__ = [
    "LabelReplay",
    "Matches",
    "Rule",
    "count_rejections",
    "has_rules",
    "insert_annotations",
    "insert_label_replays",
    "insert_rejections",
    "insert_rules",
    "list_rule_runs",
    "list_runs",
    "load_annotations",
    "load_label_replays",
    "load_rules",
    "match_rules",
    "pool_annotations",
    "read_pool",
    "rule_columns",
    "summarise_rules",
]
