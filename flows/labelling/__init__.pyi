from .annotation import LabelConfig, Planned, card_of, export, label, label_some, plan, retry
from .batching import ingest, poll, submit
from .gold import (
    PERSON,
    GoldReport,
    describe_gain,
    describe_gold,
    describe_rivalry,
    find_gold_runs,
    gold_as_plain,
    score_against_gold,
    score_by_readers,
    score_rows,
)
from .label_replays import ReplayConfig, replay_labels
from .quality import Checkup, as_plain, check_labels
from .queues import Order, Prepared, prepare_queue

__all__ = [
    "PERSON",
    "Checkup",
    "GoldReport",
    "LabelConfig",
    "Order",
    "Planned",
    "Prepared",
    "ReplayConfig",
    "as_plain",
    "card_of",
    "check_labels",
    "describe_gain",
    "describe_gold",
    "describe_rivalry",
    "export",
    "find_gold_runs",
    "gold_as_plain",
    "ingest",
    "label",
    "label_some",
    "plan",
    "poll",
    "prepare_queue",
    "replay_labels",
    "retry",
    "score_against_gold",
    "score_by_readers",
    "score_rows",
    "submit",
]
