from .labels import MAX_RATIONALE, ParsedReply, find_in_reply
from .messages import Found, clean_text, read_message
from .rules import MAX_LABEL, formula_reader, read_answer

__all__ = [
    "MAX_LABEL",
    "MAX_RATIONALE",
    "Found",
    "ParsedReply",
    "clean_text",
    "find_in_reply",
    "formula_reader",
    "read_answer",
    "read_message",
]
