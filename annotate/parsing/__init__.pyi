from .labels import MAX_RATIONALE, ParsedReply, find_in_reply
from .messages import Found, clean_text, read_message
from .rules import read_answer, rule_names

__all__ = [
    "MAX_RATIONALE",
    "Found",
    "ParsedReply",
    "clean_text",
    "find_in_reply",
    "read_answer",
    "read_message",
    "rule_names",
]
