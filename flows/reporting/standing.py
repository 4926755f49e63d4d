"""The status of a store now: runs, requests, batches, dollars, candidates, the gate.

The catalog is open only while the questions are asked, so that other commands are not blocked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from storage.catalog import Catalog
from storage.queries import Row, ask
from storage.store import Store

RATE_MINUTES = 5
"""Labels per minute are counted over this time."""
_PATIENCE_S = 2.0  # a look that comes at a bad moment is worth little: the next one comes soon


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
        CatalogLocked: if another process writes for longer than two seconds; the next look may succeed.
    """
    with Catalog(store.catalog.path, wait_s=_PATIENCE_S).read() as con:
        comparison = next(iter(ask(con, "status/comparison")), None)
        judged = comparison["comparison_id"] if comparison else None
        return StoreStatus(
            at=datetime.now(UTC),
            **ask(con, "status/totals")[0],
            runs=ask(con, "status/runs", minutes=RATE_MINUTES, limit=limit),
            batches=ask(con, "status/batches"),
            evaluations=ask(con, "status/evaluations"),
            comparison=comparison,
            arms=ask(con, "status/arms", comparison=judged),
            snapshots=ask(con, "status/snapshots", comparison=judged),
        )
