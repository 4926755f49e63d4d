"""A run through Message Batches: what is open of a plan is sent once, and a whole run submits, waits and ingests.

The order of a submission makes it safe: an intent with its items is committed before the POST, and the POST is never
repeated. What it leaves unknown is settled from the server's own list (`reconcile.py`); results are fetched by
`ingestion.py`. A whole run is these verbs in a loop; killed, the same call goes on, and so does any verb on its own.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from storage.catalog import Connection
from storage.errors import Prerequisite, ProviderFailed, TrajnoteWarning
from storage.ledger import (
    BATCH,
    add_batch,
    close_batch,
    committed_usd,
    find_batches,
    find_holding,
    mark_unsure,
    reopen_failed,
)
from storage.store import Store

from ..ledger import (
    NO_BATCH,
    BatchConfig,
    Note,
    Priced,
    add_questions,
    claim,
    explain_dear_reply,
    open_run,
    owned_run,
    price_request,
    recover,
    refuse_over_budget,
    settle,
    unanswered,
)
from ..prompting import Question, Request
from ..providers import (
    MOST_BYTES,
    BatchServer,
    NothingCreatedError,
    OutcomeUnknownError,
    Provider,
    Reply,
    ServerBusyError,
)
from .ingestion import Ingested, ingest
from .plan import RunPlan, RunSummary, all_questions
from .reconcile import is_from_here, reconcile, tell_elsewhere
from .run import Report, annotate_run

_ENVELOPE_BYTES = 500
"""What a request takes in a batch beside its canonical text: its id and the mark of the cached prefix."""
_BUSY_ATTEMPTS = 6


@dataclass(frozen=True)
class Submission:
    """What a submit has done."""

    run_id: str
    batch_ids: tuple[str, ...]  # created now
    requests: int  # in them
    open: int  # requests that still have to be sent
    under_way: int  # requests in batches, of this run or another one
    failed: int  # requests that were refused, or came back too often
    unknown: int  # batches of which nobody knows yet whether the server has them
    stopped: str | None  # why nothing further is sent
    warnings: tuple[str, ...] = ()
    is_halted: bool = False  # it was stopped by what the server did, not by the budget


def submit(
    store: Store,
    plan: RunPlan,
    server: BatchServer,
    config: BatchConfig,
    *,
    budget_usd: float | None = None,
    max_tokens: int | None = None,
) -> Submission:
    """Send what is open of a plan, as far as the limits and the budget allow.

    Args:
        store: holds the plan's dataset.
        plan: from `plan_run`.
        server: where the batches go.
        config: their size and number.
        budget_usd: dollars that the run may cost over all its commands; what is under way counts with the most it can
            cost, and so does what would be sent.
        max_tokens: cap on a reply; what the server allows the model when None, see `AnnotateConfig.cap`.

    Raises:
        ProviderFailed: if the server refuses; nothing is under way then that was not before.
        CatalogLocked: if another process works on this run.
        BadInput: if there is a budget and no list price to hold against it.
    """
    recover(store, config.attempts)
    warnings = reconcile(store, server, config.grace_s)
    questions = all_questions(store, plan)
    sent: list[_Sent] = []
    with owned_run(store, plan.run.run_id):
        _enter_questions(store, plan, questions, config)
        asked, in_flight, dear = _find_open(store, plan, questions)
        if dear is not None:
            asked, sent = [], [_Sent(stopped=f"{NO_BATCH}: {dear}")]
        for chunk in islice(
            _chunks(_price(plan, server, asked, max_tokens), config.size), max(0, config.in_flight - in_flight)
        ):
            sent.append(_send(store, plan.run.run_id, server, budget_usd, chunk))
            if sent[-1].batch_id is None or sent[-1].stopped:
                break
    return replace(_tell(store, plan, questions, sent, warnings), is_halted=dear is not None)


def _enter_questions(store: Store, plan: RunPlan, questions: Sequence[Question], config: BatchConfig) -> None:
    with store.catalog.write() as con:
        open_run(con, plan.run, plan.card, BATCH, recorded=False)
        add_questions(con, plan.run, questions)
        if config.retry_failed:
            reopen_failed(con, [question.request.request_id for question in questions])


def _find_open(store: Store, plan: RunPlan, questions: Sequence[Question]) -> tuple[list[Request], int, str | None]:
    """What may be sent, how many batches of the run are under way, and why nothing should be sent."""
    with store.catalog.read() as con:
        standings = unanswered(con, questions)
        shipped = find_batches(con, ["intent", "submitted"])
        dear = explain_dear_reply(con, plan.run.run_id)
    asked = [
        question.request
        for question in questions
        if question.request.request_id in standings and standings[question.request.request_id].state == "pending"
    ]
    return asked, sum(batch.run_id == plan.run.run_id for batch in shipped), dear if asked else None


def _price(plan: RunPlan, server: BatchServer, asked: Sequence[Request], max_tokens: int | None) -> list[Priced]:
    """Requests as they are sent, with what each costs at most."""
    if not asked:
        return []
    cap = plan.config.cap(max_tokens, server.output_limit(plan.run.model), streamed=True)
    return [price_request(replace(request, max_tokens=cap), plan.config.entries, batch=True) for request in asked]


def _chunks(asked: Sequence[Priced], size: int) -> Iterator[list[Priced]]:
    """Parts that a server takes as one batch."""
    chunk: list[Priced] = []
    taken = 0
    for priced in asked:
        length = len(priced.request.body.encode()) + _ENVELOPE_BYTES
        if chunk and (len(chunk) >= size or taken + length > MOST_BYTES):
            yield chunk
            chunk, taken = [], 0
        chunk.append(priced)
        taken += length
    if chunk:
        yield chunk


class _Sent(NamedTuple):
    """What became of a batch that was to be sent."""

    batch_id: str | None = None
    requests: int = 0
    stopped: str | None = None  # what the budget says


def _send(store: Store, run_id: str, server: BatchServer, budget_usd: float | None, chunk: Sequence[Priced]) -> _Sent:
    """Send one batch, cut to what the budget allows; a busy server is asked again.

    Raises:
        ProviderFailed: if the server refuses it, or stays busy.
    """
    for attempt in range(1, _BUSY_ATTEMPTS + 1):
        batch_id, claimed, stopped = _enter_intent(store, run_id, server, budget_usd, chunk)
        if batch_id is None:
            return _Sent(stopped=stopped)
        try:
            remote = server.create(claimed)
        except NothingCreatedError as error:
            settle(store, run_id, Note(batch_id=batch_id, refused=error.problem))
            if error.pause_s is None:
                raise ProviderFailed(f"The server refused a batch: {error.problem}.", "It was not created.") from error
            if attempt == _BUSY_ATTEMPTS:
                raise ServerBusyError(f"The server stays busy: {error.problem}.", "Run it again later.") from error
            server.sleep(error.pause_s)
        except OutcomeUnknownError as error:
            with store.catalog.write() as con:
                mark_unsure(con, batch_id, None, str(error))
            return _Sent(stopped=stopped)
        else:
            note = Note(batch_id=batch_id, remote_id=remote.remote_id, created_at=remote.created_at)
            settle(store, run_id, note)
            return _Sent(batch_id, len(claimed), stopped)
    return _Sent()


def _enter_intent(
    store: Store, run_id: str, server: BatchServer, budget_usd: float | None, chunk: Sequence[Priced]
) -> tuple[str | None, list[Request], str | None]:
    """One transaction: the budget is checked, the requests are claimed, the batch and its items are entered."""
    marker = server.now()
    with store.catalog.write() as con:
        allowed, stopped = _cut_to_budget(con, run_id, chunk, budget_usd)
        if not allowed:
            return None, [], stopped
        batch_id = add_batch(
            con, run_id, BATCH, server.base_url, marker, account=server.account, organisation=server.organisation
        )
        claimed = claim(con, batch_id, allowed, ["pending"])
        if not claimed:
            close_batch(con, batch_id, "abandoned", "another command has asked its requests")
            return None, [], None
    return batch_id, claimed, stopped


def _cut_to_budget(
    con: Connection, run_id: str, chunk: Sequence[Priced], budget_usd: float | None
) -> tuple[Sequence[Priced], str | None]:
    """The longest beginning of a chunk that the budget allows, and why it is not all of it."""
    if budget_usd is None:
        return chunk, None
    spent = committed_usd(con, run_id)
    stopped = refuse_over_budget(spent, chunk, budget_usd)
    if stopped is None:
        return chunk, None
    low, high = 0, len(chunk)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if refuse_over_budget(spent, chunk[:middle], budget_usd) is None else (low, middle)
    return chunk[:low], stopped


def _tell(
    store: Store, plan: RunPlan, questions: Sequence[Question], sent: Sequence[_Sent], warnings: Sequence[str]
) -> Submission:
    with store.catalog.read() as con:
        standings = unanswered(con, questions)
        unknown = find_batches(con, ["intent"])
    states = [standing.state for standing in standings.values()]
    return Submission(
        run_id=plan.run.run_id,
        batch_ids=tuple(batch.batch_id for batch in sent if batch.batch_id),
        requests=sum(batch.requests for batch in sent),
        open=states.count("pending"),
        under_way=states.count("in_batch"),
        failed=states.count("failed"),
        unknown=sum(batch.run_id == plan.run.run_id for batch in unknown),
        stopped=next((batch.stopped for batch in sent if batch.stopped), None),
        warnings=tuple(warnings),
    )


_PATIENCE = 20
"""Rounds in a row in which the server may be out of reach."""
_REASONS = 5
"""Reasons said at once, at most."""


class _Nobody(Provider):
    """Answers nothing: what is to be known of a run that went by batches is in the store."""

    name = BATCH

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """No replies."""
        yield from ()


def run_batches(
    store: Store,
    plan: RunPlan,
    server: BatchServer,
    config: BatchConfig,
    report: Report | None = None,
    *,
    budget_usd: float | None = None,
    max_tokens: int | None = None,
    poll_s: float = 30.0,
) -> RunSummary:
    """Ask what is open of a plan in batches, wait for them, and enter labels and rejections.

    Args:
        store: holds the plan's dataset.
        plan: from `plan_run`.
        server: where the batches go.
        config: their size and number.
        report: called with what is counted, how many are done and how many there are.
        budget_usd: dollars that the run may cost over all its commands.
        max_tokens: cap on a reply; what the server allows the model when None.
        poll_s: seconds between two looks at the server while nothing happens.

    Raises:
        ProviderFailed: if the server refuses, or is out of reach for long; everything so far is kept.
        Prerequisite: if all that is open is under way at another server, or with a key that this one cannot see.
        CatalogLocked: if another process works on this run, or holds the catalog for long.
        BadInput: if there is a budget and no list price to hold against it.
    """
    recover(store, config.attempts)
    rounds = _Rounds()
    while _has_more(store, plan, rounds, report, retry_failed=config.retry_failed):
        try:
            submission = submit(store, plan, server, config, budget_usd=budget_usd, max_tokens=max_tokens)
            ingested = ingest(store, server, config)
        except ServerBusyError as error:
            rounds.in_vain += 1
            _say([f"waiting for the server: {error.problem}"])
            if rounds.in_vain == _PATIENCE:
                raise
            server.sleep(poll_s)
            continue
        rounds.add(submission, ingested)
        config = config.model_copy(update={"retry_failed": False})
        _say([*submission.warnings, *ingested.warnings, *ingested.failed])
        if not submission.batch_ids and not ingested.batches:
            _refuse_to_wait_in_vain(store, plan, server)
            if submission.under_way or not rounds.stopped:
                server.sleep(poll_s)
    return rounds.complete(annotate_run(store, plan, _Nobody()))


@dataclass
class _Rounds:
    """What the rounds of one command have come to."""

    asked: int = 0
    answered: int = 0
    in_vain: int = 0  # in a row, without a server
    stopped: str | None = None
    is_halted: bool = False

    def add(self, submission: Submission, ingested: Ingested) -> None:
        self.in_vain = 0
        self.asked += submission.requests
        self.answered += ingested.answered
        self.stopped, self.is_halted = submission.stopped, submission.is_halted

    def complete(self, summary: RunSummary) -> RunSummary:
        """The state of the run, with what these rounds asked and got."""
        return replace(
            summary,
            was_done=summary.was_done and not self.answered,
            asked=self.asked,
            answered=self.answered,
            reused=summary.reused - self.answered,
            stopped=self.stopped,
            is_halted=self.is_halted,
        )


def _has_more(store: Store, plan: RunPlan, rounds: _Rounds, report: Report | None, *, retry_failed: bool) -> bool:
    """Whether something is under way, or may be sent."""
    states = _states(store, plan)
    if report:
        report("answers", states["done"], states.total())
    sendable = states["pending"] + (states["failed"] if retry_failed else 0)
    return bool(states["in_batch"]) or not (rounds.stopped or not sendable)


def _say(reasons: Iterable[str]) -> None:
    """Why a run waits, each reason once, and not too many at a time."""
    reasons = list(dict.fromkeys(reasons))
    for reason in reasons[:_REASONS]:
        warnings.warn(reason, TrajnoteWarning, stacklevel=3)


def _refuse_to_wait_in_vain(store: Store, plan: RunPlan, server: BatchServer) -> None:
    """Requests that another server or account has under way are never answered from here."""
    asked = [question.request.request_id for question in all_questions(store, plan)]
    with store.catalog.read() as con:
        holding = find_holding(con, asked)
    elsewhere = [batch for batch in holding if not is_from_here(store, server, batch)]
    if elsewhere and len(elsewhere) == len(holding):
        places = "; ".join(tell_elsewhere(server, batch) for batch in elsewhere[:_REASONS])
        raise Prerequisite(f"{len(elsewhere)} batches were sent to another server or with another key.", f"{places}.")


def _states(store: Store, plan: RunPlan) -> Counter[str]:
    """How many questions of a plan, as far as they are known, are in which state."""
    questions = all_questions(store, plan)
    with store.catalog.read() as con:
        standings = unanswered(con, questions)
    states = Counter(standing.state for standing in standings.values())
    return states + Counter(done=len(questions) - len(standings))
