"""The ledger of requests under way: each is entered with its price before it is sent, and takes effect once.

A batch is what one command sends: one POST of Message Batches, or the single calls of a synchronous run. Its life is
intent -> submitted -> ingested | abandoned; a request that is in one is asked by nobody else. It talks to no server
(`runs/submission.py`, `budget.py`), and every verb is part of the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from storage.catalog import Connection
from storage.ledger import BatchItem, claim_items, dear_replies, mark_unanswered, note_outcomes

from ..costs import Tokens, estimate_calls, most_tokens, price
from ..prompting import Request
from ..providers import Reply, parse_answer
from . import ledger
from .records import StoredReply


@dataclass(frozen=True)
class Priced:
    """A request with what it will cost, as far as its model has a list price."""

    request: Request
    estimated_usd: float | None
    worst_usd: float | None


def price_request(request: Request, labels: int, *, batch: bool) -> Priced:
    """What a request is expected to cost, without a cache, and what it costs at most."""
    estimate, most = estimate_calls([request], labels), most_tokens(request)
    return Priced(request, price(request.model, estimate, batch=batch), price(request.model, most, batch=batch))


def claim(con: Connection, batch_id: str, asked: Sequence[Priced], states: Collection[str]) -> list[Request]:
    """Put requests into a batch, if they are still in one of some states; nobody else can ask them then.

    Returns:
        Those that could be had, in order.
    """
    items = [BatchItem(priced.request.request_id, priced.estimated_usd, priced.worst_usd) for priced in asked]
    had = claim_items(con, batch_id, items, states)
    return [priced.request for priced in asked if priced.request.request_id in had]


def take_landed(con: Connection, batch_id: str, landed: Sequence[StoredReply], most_attempts: int) -> list[StoredReply]:
    """Enter raw replies of a batch that are on the disk; the second time, and for an unknown item, nothing happens.

    A message takes effect even after a failure, and of two messages the one that landed first does.

    Returns:
        Those that took effect now.
    """
    first: dict[str, tuple[StoredReply, Reply]] = {}
    for reply, said in reversed([(reply, _understand(reply)) for reply in landed]):
        if said.raw is not None or first.get(reply.record.request_id, (reply, said))[1].raw is None:
            first[reply.record.request_id] = (reply, said)
    fresh = note_outcomes(con, batch_id, {key: _outcome(reply) for key, (_, reply) in first.items()})
    taken = [first[key] for key in first if key in fresh]
    if answers := [landed for landed, reply in taken if reply.raw is not None]:
        ledger.record_replies(con, answers, most_attempts)
    for _, reply in taken:
        if reply.raw is None:
            mark_unanswered(con, reply.request_id, reply.error, most_attempts, in_batch=True, final=reply.final)
    return [landed for landed, _ in taken]


def _understand(landed: StoredReply) -> Reply:
    """A raw reply as a message or an error."""
    record = landed.record
    if not record.is_result_line:
        return Reply(record.request_id, record.raw)
    try:
        return parse_answer(record.raw)
    except ValueError as error:
        return Reply(record.request_id, None, f"unknown: {error}")


def _outcome(reply: Reply) -> str:
    """What kind of a result it is: succeeded, errored, canceled, expired or unknown."""
    return "succeeded" if reply.raw is not None else (reply.error or "unknown").split(" ", 1)[0].rstrip(":")


NO_BATCH = "no further batch is sent"
GO_ON = (
    "Name the model that answers with --model; or see to the server, and ask the others with --provider anthropic, one "
    "by one, up to the first that costs more than it can."
)
"""What to do when a batch has cost more than it can, which ends all batches of its run."""


def find_excess(con: Connection, run_id: str) -> str | None:
    """How the newest replies that a run got out of a batch cost more than they may; None if they do not."""
    for asked, model, tokens, cost, worst in dear_replies(con, run_id):
        expected = None if None in tokens else price(asked, Tokens(*(count or 0 for count in tokens)), batch=True)
        if cost is not None and expected is not None and cost > expected * 1.000001:
            return f"{model} answered in place of {asked}, for ${cost:.4f} in place of ${expected:.4f}"
        if cost is not None and worst is not None and cost > worst:
            return f"a reply was billed with ${cost:.4f}, where its request can cost ${worst:.4f} at most"
    return None
