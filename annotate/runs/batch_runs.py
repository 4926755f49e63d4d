"""One run through Message Batches from plan to finish: submit, wait, ingest, until nothing is open.

It is the four verbs in a loop; killed, the same call goes on, and so does any of the verbs on its own.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass, replace

from storage.errors import Prerequisite, TrajnoteWarning
from storage.ledger import BATCH, find_holding
from storage.store import Store

from ..ledger import BatchConfig, recover, unanswered
from ..prompting import Request
from ..providers import BatchServer, Reply, ServerBusyError
from .ingestion import Ingested, ingest
from .plan import RunPlan, RunSummary, all_questions
from .reconcile import is_from_here, tell_elsewhere
from .run import annotate_run
from .submission import Submission, submit

Report = Callable[[str, int, int | None], None]
_PATIENCE = 20
"""Rounds in a row in which the server may be out of reach."""
_REASONS = 5
"""Reasons said at once, at most."""


class _Nobody:
    """Answers nothing: what is to be known of a run that went by batches is in the store."""

    name = BATCH
    recorded = False
    paid = False

    def prepare(self, known: Collection[str], pending: Collection[str], *, complete: bool) -> None:
        """Accept any request."""

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """No replies."""
        yield from ()

    def late(self) -> list[Reply]:
        """Nothing is under way."""
        return []


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
        said = "; ".join(tell_elsewhere(server, batch) for batch in elsewhere[:_REASONS])
        raise Prerequisite(f"{len(elsewhere)} batches were sent to another server or with another key.", f"{said}.")


def _states(store: Store, plan: RunPlan) -> Counter[str]:
    """How many questions of a plan, as far as they are known, are in which state."""
    questions = all_questions(store, plan)
    with store.catalog.read() as con:
        standings = unanswered(con, questions)
    states = Counter(standing.state for standing in standings.values())
    return states + Counter(done=len(questions) - len(standings))
