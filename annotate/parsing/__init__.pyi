from .replies import (
    MAX_RATIONALE,
    Found,
    ParsedReply,
    Refused,
    ReplyProblem,
    clean_text,
    find_in_reply,
    read_labels,
    read_message,
    read_object,
    refuse_entry,
    refuse_reply,
)
from .rules import MAX_LABEL, formula_reader, read_rule_reply

__all__ = [
    "MAX_LABEL",
    "MAX_RATIONALE",
    "Found",
    "ParsedReply",
    "Refused",
    "ReplyProblem",
    "clean_text",
    "find_in_reply",
    "formula_reader",
    "read_labels",
    "read_message",
    "read_object",
    "read_rule_reply",
    "refuse_entry",
    "refuse_reply",
]
