"""Which requests a run asks, how far each is, and how batches carry them; verbs are part of the caller's transaction.

Nobody is asked here; requests under way and their prices are in `budget.py`, replies in `replies.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from storage.catalog import Connection, insert_rows
from storage.ledger import State, enter_run, request_states, total_run, withdraw_suggestions
from storage.schema import Frozen

from ..cards import Card
from ..costs import Tokens, estimate_input
from ..prompting import Question

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


MOST_REQUESTS = 100_000
"""Requests in one batch that Anthropic takes."""
MOST_ATTEMPTS = 5
"""How often a batch may return a request without a reply before it counts as failed."""


class BatchConfig(Frozen):
    """How requests travel in Message Batches."""

    size: int = Field(default=1_000, ge=1, le=MOST_REQUESTS, description="requests in a batch, at most")
    in_flight: int = Field(default=4, ge=1, le=100, description="batches of a run under way at once")
    grace_s: float = Field(
        default=180.0, ge=0, description="seconds that a lost batch has to show up on the server's list; 120 or more"
    )
    attempts: int = Field(default=MOST_ATTEMPTS, ge=1, description="how often a request may come back unanswered")
    retry_failed: bool = Field(default=False, description="ask again what was refused or came back too often")
