"""What the rest of a run will take and cost, and how good that guess is; nothing is sent.

Tokens come from the length of the requests, corrected by what earlier replies of the same model really took, or by a
count that the server made of some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storage.catalog import Connection
from storage.ledger import tokens_taken

from ..prompting import Request
from .prices import Tokens, estimate_cached_calls, estimate_calls, estimate_input, most_tokens, price

COUNTED = 5
"""Requests whose tokens are counted by the server, where that is asked for; the others are scaled alike."""
_LEAST_REPLIES = 3

Counter = Callable[[Sequence[Request]], Sequence[int]]


@dataclass(frozen=True)
class Estimate:
    """What is left to ask, and what that will cost."""

    requests: int  # those that are known; a second stage's follow from the first one's answers
    answered: int  # requests that need not be asked, because the store has their replies
    tokens: Tokens  # as if nothing were cached
    cost_usd: float | None  # of those; None for a model without a known price
    cached: Tokens  # if all but the first call find the shared prefix in the cache
    cached_usd: float | None
    worst_usd: float | None  # what it cannot exceed: a token a byte, and the longest replies allowed
    longest_reply: int  # tokens of those; 0 if there is nothing to ask
    batch: bool  # whether the dollars are those of Message Batches
    basis: str  # how good the estimate is, in words


@dataclass(frozen=True)
class Correction:
    """How real tokens compare to those guessed from the length of a request."""

    input: float
    output: float
    basis: str


GUESS = Correction(
    1.0,
    1.0,
    "input is guessed from the text's length (3.5 characters a token, good to about 20%), output from the labels "
    "asked for, without a model's thinking",
)


def estimate_requests(
    pending: Sequence[Request], later: Sequence[Request], *, answered: int, labels: int, batch: bool, known: Correction
) -> Estimate:
    """Price requests.

    Args:
        pending: those that would be sent.
        later: those that count a second time, for the second stage that follows from them.
        answered: how many need not be asked.
        labels: labels that each asks for.
        batch: at the price of Message Batches.
        known: from `correct_by_replies` or `correct_by_count`.
    """
    asked = [*pending, *later]
    model = asked[0].model if asked else ""
    tokens = _correct(estimate_calls(asked, labels), known)
    cached = _correct(estimate_cached_calls(asked, labels), known)
    worst = [price(request.model, most_tokens(request), batch=batch) for request in asked]
    return Estimate(
        requests=len(pending),
        answered=answered,
        tokens=tokens,
        cost_usd=price(model, tokens, batch=batch) if asked else 0.0,
        cached=cached,
        cached_usd=price(model, cached, batch=batch) if asked else 0.0,
        worst_usd=None if None in worst else sum(dollars or 0.0 for dollars in worst),
        longest_reply=max((int(request.sent.get("max_tokens", 0)) for request in asked), default=0),
        batch=batch,
        basis=known.basis,
    )


def correct_by_replies(con: Connection, model: str, labels: int) -> Correction:
    """What earlier replies of a model took against what was guessed for them; the plain guess if there are too few."""
    replies, taken, guessed, output = tokens_taken(con, model)
    if replies < _LEAST_REPLIES or not taken or not guessed or output is None:
        return GUESS
    expected = estimate_calls([Request("", "mark", {})], labels).output
    return Correction(taken / guessed, output / expected, f"as {replies} earlier replies of this model really took")


def correct_by_count(asked: Sequence[Request], count: Counter) -> Correction:
    """What a server counts in some requests, spread over all of them, against what is guessed for them."""
    some = list(asked[:: max(1, len(asked) // COUNTED)][:COUNTED])
    if not some:
        return GUESS
    ratio = sum(count(some)) / sum(map(estimate_input, some))
    said = f"input is counted by the server in {len(some)} of {len(asked)} requests and scaled for the others"
    return Correction(ratio, 1.0, f"{said}; output is guessed from the labels asked for, without a model's thinking")


def _correct(tokens: Tokens, known: Correction) -> Tokens:
    return Tokens(
        round(tokens.input * known.input),
        round(tokens.cache_write * known.input),
        round(tokens.cache_read * known.input),
        round(tokens.output * known.output),
    )
