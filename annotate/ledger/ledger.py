"""What runs ask, how far each request is, and what came back; verbs are part of the caller's transaction.

Nobody is asked here. A raw reply is on the disk before anything reads it, then one small transaction enters it: money
is spent once because of this order. Killed between the two, `recovery.py` finds the reply in its file. What a reply
says about steps is in `readings.py`; requests under way and their prices are in `budget.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, PrivateAttr

from storage.catalog import Connection, insert_rows
from storage.disk import exclusive_lock
from storage.errors import DamagedStore
from storage.ledger import (
    BATCH,
    Place,
    State,
    add_responses,
    append_responses,
    counting_replies,
    enter_run,
    iterate_responses,
    mark_answered,
    mark_unanswered,
    note_outcomes,
    request_models,
    request_states,
    total_run,
    withdraw_suggestions,
)
from storage.schema import Frozen, content_id
from storage.store import Store

from ..cards import Card
from ..costs import Tokens, estimate_input, price, tokens_of
from ..parsing import Found, ParsedReply, find_in_reply, read_labels, read_rule_reply
from ..prompting import Kind, Question
from ..providers import Provider, Reply, parse_result

MOST_REQUESTS = 100_000
"""Requests in one batch that Anthropic takes."""
MOST_ATTEMPTS = 5
"""How often a batch may return a request without a reply before it counts as failed."""
_AT_ONCE = 500
"""Questions entered by one statement: each has kilobytes of text, which is copied on its way."""


@dataclass(frozen=True)
class Run:
    """One annotation run: what was asked about a dataset, of which model, in which words."""

    run_id: str
    dataset_id: str
    model: str
    prompt_version: str
    card_sha256: str
    config: Mapping[str, Any]
    first_action: int = 0  # the environment's value of the card's first discrete action


@dataclass(frozen=True)
class RequestStatus:
    """How far a request is."""

    state: State
    error: str | None
    attempts: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it may be asked now: it is not under way, and was not too often left without an answer."""
        return self.state == "pending" or (self.state == "failed" and self.attempts < MOST_ATTEMPTS)


@dataclass(frozen=True)
class Totals:
    """What a run has brought and cost."""

    labels: int
    rejections: int
    tokens: Tokens
    cost_usd: float
    rules: int = 0
    estimated_usd: float | None = None  # what the answered requests were expected to cost when they were sent


@contextmanager
def owned_run(store: Store, run_id: str) -> Generator[None]:
    """Be the only process that works on a run.

    Raises:
        CatalogLocked: if another one does.
    """
    folder = store.responses_dir(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder, f"the answers of {run_id}"):
        yield


def open_run(con: Connection, run: Run, card: Card, provider: str, *, recorded: bool) -> None:
    """Enter a run and what its replies are read with; entering it again opens it again."""
    row = {
        "run_id": run.run_id,
        "dataset_id": run.dataset_id,
        "provider": provider,
        "model": run.model,
        "prompt_version": run.prompt_version,
        "card_sha256": run.card_sha256,
        "card": card.model_dump(mode="json"),
        "config": run.config,
        "recorded": recorded,
    }
    enter_run(con, row)


def add_questions(con: Connection, run: Run, questions: Sequence[Question], *, at_once: int = _AT_ONCE) -> None:
    """Enter what a run asks, so many with one statement; requests that the store knows already keep their state."""
    for start in range(0, len(questions), at_once):
        _add_questions(con, run, questions[start : start + at_once])


def _add_questions(con: Connection, run: Run, questions: Sequence[Question]) -> None:
    requests = [
        {
            "request_id": question.request.request_id,
            "kind": question.request.kind,
            "model": question.request.model,
            "prompt_version": run.prompt_version,
            "body": question.request.body,
            "input_tokens_estimate": estimate_input(question.request),
        }
        for question in questions
    ]
    asked = [
        {
            "run_id": run.run_id,
            "request_id": question.request.request_id,
            "dataset_id": run.dataset_id,
            "episode_id": question.episode_id,
            "sample": question.sample,
            "steps": sorted(question.steps),
        }
        for question in questions
    ]
    insert_rows(con, "requests", requests)
    insert_rows(con, "run_requests", asked)


def withdraw_second(con: Connection, run_id: str, first: Sequence[Question], second: Sequence[Question]) -> None:
    """Forget a second stage's questions, and what came of them, that the first stage's answers do not lead to now."""
    is_open = unanswered(con, first)
    answered = [question.request.request_id for question in first if question.request.request_id not in is_open]
    withdraw_suggestions(con, run_id, answered, [question.request.request_id for question in second])


def unanswered(con: Connection, questions: Sequence[Question]) -> dict[str, RequestStatus]:
    """Those of some requests that have no reply in the store, whichever run it was for."""
    ids = [question.request.request_id for question in questions]
    known = {request_id: RequestStatus(*row) for request_id, row in request_states(con, ids).items()}
    standings = {request_id: known.get(request_id, RequestStatus("pending", None)) for request_id in ids}
    return {request_id: standing for request_id, standing in standings.items() if standing.state != "done"}


def sum_run(con: Connection, run_id: str) -> Totals:
    """The sums of a run, as the view `spending` has them."""
    row = total_run(con, run_id)
    if row is None:
        return Totals(0, 0, Tokens(), 0.0)
    tokens = Tokens(row.input_tokens, row.cache_write_tokens, row.cache_read_tokens, row.output_tokens)
    return Totals(row.labels, row.rejections, tokens, row.cost_usd, row.rules, row.estimated_usd)


class BatchConfig(Frozen):
    """How requests travel in Message Batches."""

    size: int = Field(default=1_000, ge=1, le=MOST_REQUESTS, description="requests in a batch, at most")
    in_flight: int = Field(default=4, ge=1, le=100, description="batches of a run in flight at once")
    grace_s: float = Field(
        default=180.0, ge=0, description="seconds that a lost batch has to show up on the server's list; 120 or more"
    )
    attempts: int = Field(default=MOST_ATTEMPTS, ge=1, description="how often a request may return without an answer")
    retry_failed: bool = Field(default=False, description="ask again requests that have failed")


class StoredReply(Frozen):
    """A raw reply, one line of a file; it is parsed once, when it is first asked what it says."""

    request_id: str
    provider: str
    recorded: bool
    received_at: str  # ISO 8601, UTC
    provenance: Mapping[str, Any]
    raw: str  # exactly as it came: a message, or a line of a batch's results
    batch_id: str | None = None  # the catalog's, of a request that was entered before it was sent
    file: str = Field(default="", exclude=True)  # where it landed, relative to the store
    line: int = Field(default=0, exclude=True)
    _answer: Reply | None = PrivateAttr(None)
    _found: dict[Kind, Found] = PrivateAttr(default_factory=dict)

    @classmethod
    def from_result(cls, batch_id: str, remote_id: str, line: str, answer: Reply) -> StoredReply:
        """A line of a batch's results, and what it was parsed as; it has yet to land."""
        stored = cls(
            request_id=answer.request_id,
            provider=BATCH,
            recorded=False,
            received_at=datetime.now(UTC).isoformat(),
            provenance={"remote_id": remote_id},
            raw=as_text(line),
            batch_id=batch_id,
        )
        stored._answer = answer
        return stored

    @property
    def is_result_line(self) -> bool:
        """Whether the raw text is a line of a batch's results."""
        return self.provider == BATCH

    @property
    def answer(self) -> Reply:
        """It as a message or an error."""
        if self._answer is None:
            answer = parse_result(self.raw) if self.is_result_line else Reply(self.request_id, self.raw)
            self._answer = answer or Reply(self.request_id, None, "unknown: it is not a line of results")
        return self._answer

    @property
    def message(self) -> str:
        """The model's message; empty if the reply is an error."""
        return self.answer.raw or ""

    def find(self, kind: Kind) -> Found:
        """Its entries, as the reply to some kind of request."""
        if kind not in self._found:
            self._found[kind] = find_in_reply(self.message, kind, self.answer.body)
        return self._found[kind]

    def read(self, question: Question, card: Card) -> ParsedReply:
        """Validate it as the reply to a question about what a card names."""
        found, kind = self.find(question.request.kind), question.request.kind
        if kind in ("rules", "study"):
            return read_rule_reply(found, kind, card)
        return read_labels(found, kind, card, question.steps)


def as_text(raw: str) -> str:
    """A reply as it is kept; a lone surrogate is no text."""
    return raw.encode("utf-8", "replace").decode()


def land_reply(
    store: Store, run_id: str, provider: Provider, reply: Reply, *, batch_id: str | None = None
) -> StoredReply:
    """Put a raw reply on the disk, before anything reads it."""
    stored = StoredReply(
        request_id=reply.request_id,
        provider=provider.name,
        recorded=provider.recorded or bool(reply.provenance.get("recorded")),
        received_at=datetime.now(UTC).isoformat(),
        provenance=reply.provenance,
        raw=as_text(reply.raw or ""),
        batch_id=batch_id,
    )
    return land(store, run_id, [stored])[0]


def land(store: Store, run_id: str, replies: Sequence[StoredReply]) -> list[StoredReply]:
    """Put raw replies on the disk with one touch of it."""
    places = append_responses(store, run_id, [reply.model_dump(mode="json") for reply in replies])
    return [
        reply.model_copy(update={"file": file, "line": line})
        for reply, (file, line) in zip(replies, places, strict=True)
    ]


def enter_landed(
    con: Connection, landed: Sequence[StoredReply], most_attempts: int = MOST_ATTEMPTS
) -> list[StoredReply]:
    """Enter landed replies; a second time changes nothing.

    Returns:
        Those of batches that took effect now.
    """
    single = [reply for reply in landed if reply.batch_id is None]
    if single:
        _record_replies(con, single, most_attempts)
    taken: list[StoredReply] = []
    for batch_id in dict.fromkeys(reply.batch_id for reply in landed):
        if batch_id is not None:
            mine = [reply for reply in landed if reply.batch_id == batch_id]
            taken += _take_landed(con, batch_id, mine, most_attempts)
    return taken


def _take_landed(
    con: Connection, batch_id: str, landed: Sequence[StoredReply], most_attempts: int
) -> list[StoredReply]:
    """Those of a batch's replies that take effect now; the second time, and for an unknown item, nothing happens.

    A message takes effect even after a failure, and of two messages the one that landed first does.
    """
    first: dict[str, StoredReply] = {}
    for reply in reversed(landed):
        if reply.answer.raw is not None or first.get(reply.request_id, reply).answer.raw is None:
            first[reply.request_id] = reply
    fresh = note_outcomes(con, batch_id, {key: _outcome(reply.answer) for key, reply in first.items()})
    taken = [reply for key, reply in first.items() if key in fresh]
    if answers := [reply for reply in taken if reply.answer.raw is not None]:
        _record_replies(con, answers, most_attempts)
    for answer in (reply.answer for reply in taken if reply.answer.raw is None):
        mark_unanswered(con, answer.request_id, answer.error, most_attempts, in_batch=True, final=answer.final)
    return taken


def _outcome(reply: Reply) -> str:
    """What kind of a result it is: succeeded, errored, canceled, expired or unknown."""
    return "succeeded" if reply.raw is not None else (reply.error or "unknown").split(" ", 1)[0].rstrip(":")


def _record_replies(con: Connection, landed: Sequence[StoredReply], most_attempts: int) -> None:
    """Enter landed replies; entering them again changes nothing.

    A request whose reply holds an answer is done, and every run that has read an earlier answer is opened again. One
    whose reply holds none stays open with the reason, until it was asked too often.
    """
    ids = [reply.request_id for reply in landed]
    known = request_models(con, ids)
    rows = [_response(reply, *known.get(reply.request_id, ("mark", None))) for reply in landed]
    fresh = add_responses(con, rows)
    mark_answered(con, [str(row["request_id"]) for row in fresh if row["problem"] is None])
    for row in fresh:
        if row["problem"] is not None:
            mark_unanswered(con, str(row["request_id"]), str(row["problem"]), most_attempts)


def _response(landed: StoredReply, kind: Kind, model_asked: str | None) -> dict[str, object]:
    """A landed reply as a row of `responses`."""
    found = landed.find(kind)
    message, problem = found.message, found.problem
    tokens = tokens_of(message.usage)
    model = message.model or model_asked
    cost = price(model, tokens, batch=landed.is_result_line) if model and tokens and not landed.recorded else None
    return {
        "response_id": content_id("s_", [landed.request_id, landed.file, landed.line]),
        "request_id": landed.request_id,
        "batch_id": landed.batch_id,
        "provider": landed.provider,
        "model": model,
        "file": landed.file,
        "line": landed.line,
        "stop_reason": message.stop_reason,
        "problem": f"{problem.reason}: {problem.detail}" if problem else None,
        "input_tokens": tokens.input if tokens else None,
        "cache_write_tokens": tokens.cache_write if tokens else None,
        "cache_read_tokens": tokens.cache_read if tokens else None,
        "output_tokens": tokens.output if tokens else None,
        "cost_usd": cost,
        "recorded": landed.recorded,
        "provenance": landed.provenance,
        "received_at": landed.received_at,
    }


def read_landed(store: Store, run_id: str) -> Iterable[StoredReply]:
    """All raw replies of a run's files, in the order in which they landed."""
    for stored in iterate_responses(store, run_id):
        yield StoredReply.model_validate(stored.record | {"file": stored.file, "line": stored.line})


def read_whole(store: Store, run_id: str) -> list[StoredReply]:
    """The raw replies of a run up to the first damage, of which `store verify` tells."""
    landed: list[StoredReply] = []
    with suppress(DamagedStore, ValueError):
        landed.extend(read_landed(store, run_id))
    return landed


def find_replies(store: Store, request_ids: Sequence[str]) -> dict[str, StoredReply]:
    """The raw replies that count for some answered requests, whichever run they were for.

    Raises:
        DamagedStore: if a reply that the catalog knows is not in its file.
    """
    with store.catalog.read() as con:
        places = counting_replies(con, request_ids)
    replies = read_places(store, places)
    if missing := [request_id for request_id in request_ids if request_id not in replies]:
        raise DamagedStore(
            f"The raw replies to {len(missing)} requests are missing, the first to {missing[0]}.",
            "`trajnote store verify` names the damaged file; restore it from a backup.",
        )
    return replies


def read_places(store: Store, places: Set[Place]) -> dict[str, StoredReply]:
    """The raw replies in some lines of files, by request."""
    return {
        landed.request_id: landed
        for run_id in sorted({file.split("/")[1] for file, _ in places})
        for landed in read_landed(store, run_id)
        if (landed.file, landed.line) in places
    }
