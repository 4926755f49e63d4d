"""What requests and replies cost, in tokens and dollars, and what the rest of a run will take; nothing is sent.

Prices come from `genai-prices`, which brings its list with it and asks no network. Tokens come from the length of the
requests, corrected by what earlier replies of the same model really took, or by a count that the server made of some.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price
from genai_prices.types import ClauseEquals, ClauseOr, ClauseStartsWith, ModelInfo

from storage.catalog import Connection
from storage.ledger import tokens_taken

from .prompting import Request

CHARACTERS_PER_TOKEN = 3.5
"""Tables of short numbers and English instructions come to 3.2 to 3.8 characters a token."""
OUTPUT_TOKENS_PER_LABEL = 110
"""A label of the reply's schema with a one-sentence rationale."""
ASSESSMENT_TOKENS = 150
HIDDEN_TOKENS = 2_000
"""Input that a server adds to a request on its own, such as instructions for structured output, at most."""
PICTURE_TOKENS = 1_600
MOST_PICTURE_TOKENS = 5_000
LEAST_CACHED_TOKENS = 1024
"""A shorter shared prefix is not cached by Anthropic; some models want 4,096."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of one or many calls; cached input is not contained in `input`."""

    input: int = 0
    cache_write: int = 0
    cache_read: int = 0
    output: int = 0


def estimate_tokens(text: str) -> int:
    """Tokens of a text, from its length."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def estimate_input(request: Request) -> int:
    """Input tokens of a request: its system part, its messages with their pictures, and its schema."""
    pictures = _picture_sizes(request)
    return math.ceil((len(request.body) - sum(pictures)) / CHARACTERS_PER_TOKEN) + PICTURE_TOKENS * len(pictures)


def estimate_calls(requests: Iterable[Request], labels: int) -> Tokens:
    """Tokens of calls that were not made yet, as if nothing were cached.

    Args:
        requests: the calls.
        labels: labels that each of them asks for.
    """
    inputs = [estimate_input(request) for request in requests]
    return Tokens(input=sum(inputs), output=len(inputs) * (ASSESSMENT_TOKENS + labels * OUTPUT_TOKENS_PER_LABEL))


def estimate_cached_calls(requests: Sequence[Request], labels: int) -> Tokens:
    """As `estimate_calls`, if every call but the first of each shared prefix finds that prefix in the cache."""
    plain = estimate_calls(requests, labels)
    prefixes = Counter(str(request.params.get("system", "")) for request in requests)
    sizes = [(estimate_tokens(prefix), count) for prefix, count in prefixes.items()]
    kept = [(size, count) for size, count in sizes if size >= LEAST_CACHED_TOKENS]
    written = sum(size for size, _ in kept)
    read = sum(size * (count - 1) for size, count in kept)
    return Tokens(plain.input - written - read, written, read, plain.output)


def most_tokens(request: Request) -> Tokens:
    """More than a call can take: a token for each byte sent, all of it written to the cache, and the longest reply."""
    pictures = _picture_sizes(request)
    sent = len(request.body.encode()) - sum(pictures) + MOST_PICTURE_TOKENS * len(pictures)
    return Tokens(cache_write=sent + HIDDEN_TOKENS, output=int(request.sent.get("max_tokens", 0)))


def tokens_of(usage: Mapping[str, int] | None) -> Tokens | None:
    """The tokens that a reply says it took; None if it does not say."""
    if usage is None or not {"input_tokens", "output_tokens"} <= usage.keys():
        return None
    return Tokens(
        input=usage["input_tokens"],
        cache_write=usage.get("cache_creation_input_tokens", 0),
        cache_read=usage.get("cache_read_input_tokens", 0),
        output=usage["output_tokens"],
    )


def price(model: str, tokens: Tokens, *, batch: bool = False) -> float | None:
    """Dollars for tokens of a model at list price; None for a model without a known price, such as a local one.

    Args:
        model: as its server calls it.
        tokens: cached input is priced as such.
        batch: at the price of Message Batches, where the shared prefix is kept in the cache for an hour.
    """
    usage = PricedUsage(
        input_tokens=tokens.input + tokens.cache_write + tokens.cache_read,
        cache_write_tokens=tokens.cache_write,
        cache_write_1h_tokens=tokens.cache_write if batch else 0,
        cache_read_tokens=tokens.cache_read,
        output_tokens=tokens.output,
    )
    context = {"processing": "batch"} if batch else None
    try:
        found = calc_price(usage, model, provider_id=_seller(model), price_context=context)
    except LookupError:
        return None
    if _seller(model) == "aws":
        return float(found.total_price) if _bare(model) == _bare(found.model.id) else None
    return float(found.total_price) if _is_name_of(model, found.model) else None


def _seller(model: str) -> str:
    """Whose list has the price: Bedrock's names are `anthropic.NAME`, after a region; Vertex has Anthropic's names."""
    return "aws" if _BEDROCK.match(model) else "anthropic"


def _bare(name: str) -> str:
    """A model's name without Bedrock's region and versions."""
    return _VERSION.sub("", _BEDROCK_VERSION.sub("", _BEDROCK.sub("claude-", name)))


def find_excess(request: Request, model: str | None, usage: Mapping[str, int] | None) -> str | None:
    """Why a reply costs more than its request can; None if it does not, or nothing is known of its price.

    Args:
        request: as it was sent.
        model: that answered, in the reply's words.
        usage: in the reply's words.
    """
    tokens, most = tokens_of(usage), most_tokens(request)
    expected = price(request.model, tokens) if tokens else None
    if tokens is None or expected is None:
        return None
    paid = price(model or request.model, tokens)
    if paid is not None and paid > expected * 1.000001:
        return f"{model} answered instead of {request.model}, for ${paid:.4f} instead of ${expected:.4f}"
    sent = tokens.input + tokens.cache_write + tokens.cache_read
    if sent > most.cache_write or tokens.output > most.output:
        return (
            f"a reply was billed with {sent} input and {tokens.output} output tokens, where its request allows "
            f"{most.cache_write} and {most.output}"
        )
    return None


_BEDROCK = re.compile(r"([a-z-]+\.)?anthropic\.claude-")
_BEDROCK_VERSION = re.compile(r"-v\d+(:\d+)?$")
_VERSION = re.compile(r"(-latest|[-@]\d{8}|-\d{4}-\d{2}-\d{2})$")


def _is_name_of(name: str, model: ModelInfo) -> bool:
    """Whether a name is a model's, or that of a dated version of it; the price list knows models by prefix."""
    names = {model.id, *_literals(model.match)}
    return _VERSION.sub("", name) in {_VERSION.sub("", known) for known in names}


def _literals(clause: object) -> Iterator[str]:
    if isinstance(clause, ClauseOr):
        for part in clause.or_:
            yield from _literals(part)
    elif isinstance(clause, ClauseEquals):
        yield clause.equals
    elif isinstance(clause, ClauseStartsWith):
        yield clause.starts_with


def _picture_sizes(request: Request) -> list[int]:
    """Characters of each picture in a request, whose price does not come from its length."""
    contents = [message.get("content") for message in request.params.get("messages", ())]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return [len(block["source"]["data"]) for block in blocks if block.get("type") == "image"]


COUNTED = 5
"""Requests whose tokens are counted by the server, where that is asked for; the others are scaled alike."""
_LEAST_REPLIES = 3

TokenCounter = Callable[[Sequence[Request]], Sequence[int]]


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


def correct_by_count(asked: Sequence[Request], count: TokenCounter) -> Correction:
    """What a server counts in some requests, spread over all of them, against what is guessed for them."""
    some = list(asked[:: max(1, len(asked) // COUNTED)][:COUNTED])
    if not some:
        return GUESS
    ratio = sum(count(some)) / sum(map(estimate_input, some))
    basis = f"input is counted by the server in {len(some)} of {len(asked)} requests and scaled for the others"
    return Correction(ratio, 1.0, f"{basis}; output is guessed from the labels asked for, without a model's thinking")


def _correct(tokens: Tokens, known: Correction) -> Tokens:
    return Tokens(
        round(tokens.input * known.input),
        round(tokens.cache_write * known.input),
        round(tokens.cache_read * known.input),
        round(tokens.output * known.output),
    )
