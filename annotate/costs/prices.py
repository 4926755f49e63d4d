"""What requests and replies cost: tokens counted or estimated, and their price in dollars.

Prices come from `genai-prices`, which brings its list with it and asks no network. It caps and stops nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price
from genai_prices.types import ClauseEquals, ClauseOr, ClauseStartsWith, ModelInfo

from ..prompting import Request

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

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.input + other.input,
            self.cache_write + other.cache_write,
            self.cache_read + other.cache_read,
            self.output + other.output,
        )


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
    output = ASSESSMENT_TOKENS + labels * OUTPUT_TOKENS_PER_LABEL
    return sum((Tokens(input=estimate_input(request), output=output) for request in requests), Tokens())


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
        found = calc_price(usage, model, provider_id="anthropic", price_context=context)
    except LookupError:
        return None
    return float(found.total_price) if _is_name_of(model, found.model) else None


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
        return f"{model} answered in place of {request.model}, for ${paid:.4f} in place of ${expected:.4f}"
    sent = tokens.input + tokens.cache_write + tokens.cache_read
    if sent > most.cache_write or tokens.output > most.output:
        return (
            f"a reply was billed with {sent} input and {tokens.output} output tokens, where its request allows "
            f"{most.cache_write} and {most.output}"
        )
    return None


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
