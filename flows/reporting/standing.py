"""How things stand in a store right now: runs, requests, batches, dollars, candidates, the gate; one short look.

The catalog is open only while the questions are asked, so whoever works in the store is not kept waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from storage.catalog import Catalog
from storage.store import Store

from .page.queries import Row, fetch

RATE_MINUTES = 5
"""Labels per minute are counted over this time."""
_PATIENCE_S = 2.0  # a look that comes at a bad moment is worth little: the next one comes soon

_RUNS = """
WITH asked AS (
    SELECT run_id, count(*) FILTER (requests.state = 'pending') AS pending,
        count(*) FILTER (requests.state = 'in_batch') AS in_batch, count(*) FILTER (requests.state = 'done') AS done,
        count(*) FILTER (requests.state = 'failed') AS failed
    FROM run_requests JOIN requests USING (request_id) GROUP BY run_id
), lately AS (
    SELECT run_id, count(*) / {minutes} AS labels_per_minute FROM annotations
    WHERE created_at > now() - INTERVAL {minutes} MINUTE GROUP BY run_id
)
SELECT run_id, annotation_runs.dataset_id, spending.model, annotation_runs.provider, state, requests, pending, in_batch,
    done, failed, error, annotations AS labels, rejections, coalesce(labels_per_minute, 0) AS labels_per_minute,
    cost_usd, annotation_runs.created_at
FROM annotation_runs
JOIN spending USING (run_id)
LEFT JOIN asked USING (run_id)
LEFT JOIN lately USING (run_id)
ORDER BY state = 'done', annotation_runs.created_at DESC, run_id
LIMIT {limit}
"""
_BATCHES = """
SELECT batch_id, run_id, provider, state, batches.requests, sum(estimated_usd) AS expected_usd,
    sum(worst_usd) AS worst_usd, epoch(now() - batches.created_at) AS seconds
FROM batches LEFT JOIN batch_items USING (batch_id)
WHERE state IN ('intent', 'submitted')
GROUP BY ALL ORDER BY seconds DESC
"""
_EVALUATIONS = """
SELECT env_id, purpose, mode, count(*) AS policies, sum(episodes)::BIGINT AS episodes, max(return_) AS best,
    epoch(now() - max(created_at)) AS seconds
FROM evaluations
WHERE created_at > coalesce((SELECT max(created_at) FROM comparisons), TIMESTAMPTZ '1970-01-01')
GROUP BY ALL ORDER BY min(created_at)
"""
_COMPARISON = """
SELECT comparison_id, env_id, dataset_id, policy_id, accepted, reason, better, credit
FROM comparisons ORDER BY created_at DESC, comparison_id DESC LIMIT 1
"""
_ARMS = """
SELECT arm, labels, draws, accepted, episodes, return_, low, high FROM arms
WHERE comparison_id = ? AND mode = 'greedy' ORDER BY return_ DESC
"""
_SNAPSHOTS = """
SELECT arm, step, max(return_) AS best, bool_or(chosen) AS chosen
FROM candidates JOIN refinements USING (refinement_id) WHERE comparison_id = ? GROUP BY ALL ORDER BY arm, step
"""


@dataclass(frozen=True)
class StoreStatus:
    """One look at a store."""

    at: datetime
    datasets: int
    spent_usd: float  # by all runs
    runs: Sequence[Row]  # those under way first
    batches: Sequence[Row]  # in flight
    evaluations: Sequence[Row]  # since the last comparison: what a refinement under way has played so far
    comparison: Row | None  # the newest
    arms: Sequence[Row]  # of it
    snapshots: Sequence[Row]  # of it: best selection return of each arm after so many training steps

    @property
    def in_flight_usd(self) -> float:
        """What is under way costs at most, as far as it has a price."""
        return sum(row["worst_usd"] or 0.0 for row in self.batches)


def look(store: Store, *, limit: int = 8) -> StoreStatus:
    """Ask the catalog how things stand.

    Args:
        store: the store.
        limit: annotation runs at most.

    Raises:
        CatalogLocked: if somebody writes for longer than two seconds; the next look may succeed.
    """
    with Catalog(store.catalog.path, wait_s=_PATIENCE_S).read() as con:
        comparison = next(iter(fetch(con, _COMPARISON)), None)
        judged = comparison["comparison_id"] if comparison else None
        return StoreStatus(
            at=datetime.now(UTC),
            datasets=fetch(con, "SELECT count(*) AS n FROM datasets")[0]["n"],
            spent_usd=fetch(con, "SELECT coalesce(sum(cost_usd), 0) AS usd FROM responses")[0]["usd"],
            runs=fetch(con, _RUNS.format(minutes=RATE_MINUTES, limit=int(limit))),
            batches=fetch(con, _BATCHES),
            evaluations=fetch(con, _EVALUATIONS),
            comparison=comparison,
            arms=fetch(con, _ARMS, judged),
            snapshots=fetch(con, _SNAPSHOTS, judged),
        )
