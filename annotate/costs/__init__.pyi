from .estimates import Counter, Estimate, correct_by_count, correct_by_replies, estimate_requests
from .prices import (
    ASSESSMENT_TOKENS,
    OUTPUT_TOKENS_PER_LABEL,
    Tokens,
    estimate_calls,
    estimate_input,
    find_excess,
    most_tokens,
    price,
    tokens_of,
)

__all__ = [
    "ASSESSMENT_TOKENS",
    "OUTPUT_TOKENS_PER_LABEL",
    "Counter",
    "Estimate",
    "Tokens",
    "correct_by_count",
    "correct_by_replies",
    "estimate_calls",
    "estimate_input",
    "estimate_requests",
    "find_excess",
    "most_tokens",
    "price",
    "tokens_of",
]
