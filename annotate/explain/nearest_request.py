"""Why a request is not answered by the store: its nearest relative among the store's requests, and the difference.

Requests are compared in `request_diff.py`; nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from storage.errors import BadInput
from storage.ledger import EnteredRequest, entered_request, find_requests, similar_requests
from storage.store import Store

from ..prompting import Request
from ..runs import RunPlan, unanswered_requests
from .request_diff import FieldDifference, compare_parts, distance, parts_of

MOST_CANDIDATES = 2_000
"""Requests that are looked at: those about the same episode first, then the newest."""


@dataclass(frozen=True)
class Explanation:
    """What a request has in common with the store, and what not."""

    request_id: str
    episode_id: int | None
    state: str  # of the request in the store; `unknown` when it was never entered
    relative: str | None  # the nearest request; None when the store has no other of its kind
    relative_state: str | None
    relative_run: str | None
    differences: tuple[FieldDifference, ...]  # none: the same words, asked as another sample

    @property
    def words(self) -> str:
        """The explanation in one sentence."""
        if self.relative is None:
            return "the store has no other request of its kind to compare it with"
        if not self.differences:
            return f"it has the words of {self.relative} ({self.relative_state}) and is another sample of it"
        named = "; ".join(f"{found.field} ({found.meaning})" for found in self.differences)
        return f"nearest is {self.relative} ({self.relative_state}, run {self.relative_run}); it differs in {named}"


def explain_request(store: Store, request_id: str) -> Explanation:
    """Compare a request of the store with all others.

    Args:
        store: the store.
        request_id: its id, or the unique beginning of it.

    Raises:
        BadInput: if there is no such request, or several.
    """
    with store.catalog.read() as con:
        found = find_requests(con, request_id)
        if len(found) != 1:
            problem = "is the beginning of several requests" if found else "is no request of this store"
            raise BadInput(f"{request_id!r} {problem}.", "`trajnote sql 'SELECT request_id FROM requests'` lists them.")
        (mine,) = found
        others = similar_requests(con, mine.kind, mine.episode_id, answered=False, limit=MOST_CANDIDATES)
    return _explain(mine, [other for other in others if other.request_id != mine.request_id])


def explain_misses(store: Store, plan: RunPlan, limit: int = 3) -> tuple[list[Explanation], int]:
    """Compare the requests of a run that no reply in the store answers with those that are answered.

    Returns:
        Explanations of the first few, and how many unanswered requests there are.
    """
    missing = unanswered_requests(store, plan)
    episodes = {question.request.request_id: question.episode_id for question in plan.questions}
    return [_explain_miss(store, request, episodes.get(request.request_id)) for request in missing[:limit]], len(
        missing
    )


def _explain_miss(store: Store, request: Request, episode_id: int | None) -> Explanation:
    with store.catalog.read() as con:
        entered = entered_request(con, request.request_id)
        others = similar_requests(con, request.kind, episode_id, answered=True, limit=MOST_CANDIDATES)
    state = entered.state if entered else "unknown"
    return _explain(EnteredRequest(request.request_id, request.kind, state, request.body, episode_id, None), others)


def _explain(mine: EnteredRequest, others: Sequence[EnteredRequest]) -> Explanation:
    parts = parts_of(json.loads(mine.body))
    near = [(distance(parts, told), other, told) for other in others for told in [parts_of(json.loads(other.body))]]
    if not near:
        return Explanation(mine.request_id, mine.episode_id, mine.state, None, None, None, ())
    _, nearest, told = min(near, key=lambda each: (each[0], each[1].request_id))
    return Explanation(
        request_id=mine.request_id,
        episode_id=mine.episode_id,
        state=mine.state,
        relative=nearest.request_id,
        relative_state=nearest.state,
        relative_run=nearest.run_id,
        differences=tuple(compare_parts(parts, told)),
    )
