from .annotations import count_rejections, insert_annotations, insert_rejections, list_runs, load_annotations
from .label_replays import LabelReplay, insert_label_replays, load_label_replays
from .pooling import pool_annotations, read_pool
from .rule_summaries import has_rules, list_rule_runs, summarise_rules
from .rules import Matches, Rule, insert_rules, load_rules, match_rules, rule_columns

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
