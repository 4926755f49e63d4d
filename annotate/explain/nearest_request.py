"""Why a request is not answered by the store: its nearest relative among the store's requests, and the difference.

Requests are compared in `request_diff.py`; nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from storage.catalog import Connection
from storage.errors import BadInput
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


@dataclass(frozen=True)
class _Known:
    request_id: str
    state: str
    body: str
    episode_id: int | None
    run_id: str | None


def explain_request(store: Store, request_id: str) -> Explanation:
    """Compare a request of the store with all others.

    Args:
        store: the store.
        request_id: its id, or the unique beginning of it.

    Raises:
        BadInput: if there is no such request, or several.
    """
    with store.catalog.read() as con:
        found = con.execute(
            "SELECT request_id, kind FROM requests WHERE starts_with(request_id, ?) LIMIT 2", [request_id]
        ).fetchall()
        if len(found) != 1:
            problem = "is the beginning of several requests" if found else "is no request of this store"
            raise BadInput(f"{request_id!r} {problem}.", "`trajnote sql 'SELECT request_id FROM requests'` lists them.")
        name, kind = found[0]
        (mine,) = _read(con, "request_id = $name", {"name": name})
        others = _candidates(con, kind, mine.episode_id, answered=False)
    return _explain(mine, [other for other in others if other.request_id != name])


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
        entered = con.execute("SELECT state FROM requests WHERE request_id = ?", [request.request_id]).fetchone()
        others = _candidates(con, request.kind, episode_id, answered=True)
    state = entered[0] if entered else "unknown"
    return _explain(_Known(request.request_id, state, request.body, episode_id, None), others)


def _explain(mine: _Known, others: Sequence[_Known]) -> Explanation:
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


def _candidates(con: Connection, kind: str, episode_id: int | None, *, answered: bool) -> list[_Known]:
    where = "kind = $kind" + (" AND state = 'done'" if answered else "")
    order = "episode_id IS NOT DISTINCT FROM $episode_id DESC, created_at DESC"
    return _read(con, where, {"kind": kind, "episode_id": episode_id}, f"ORDER BY {order} LIMIT {MOST_CANDIDATES}")


def _read(con: Connection, where: str, values: dict[str, object], tail: str = "") -> list[_Known]:
    rows = con.execute(
        f"""SELECT request_id, state, body::VARCHAR, episode_id, run_id
            FROM requests
            LEFT JOIN (SELECT request_id, min(episode_id) AS episode_id, min(run_id) AS run_id
                       FROM run_requests GROUP BY request_id) USING (request_id)
            WHERE {where} {tail}""",
        values,
    ).fetchall()
    return [_Known(*row) for row in rows]
