"""Deployments in the catalog: the datasets taken in, and the decisions about the policy in force.

It records decisions and makes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..catalog import insert_rows
from ..store import Store

_IN_FORCE = """
SELECT deployment, arg_max(policy_id, number) AS policy_id,
    coalesce(max(created_at) FILTER (promoted), min(created_at)) AS since,
    count(*) AS decisions, count(*) FILTER (promoted) AS promotions, max(labels) AS labels,
    arg_max(reason, number) AS reason
FROM promotions GROUP BY deployment ORDER BY deployment
"""


@dataclass(frozen=True)
class Decision:
    """The outcome of one refinement of a deployment."""

    comparison_id: str
    policy_id: str  # in force from now on
    previous_id: str | None  # in force before
    promoted: bool
    labels: int  # the refinement's
    reason: str


@dataclass(frozen=True)
class InForce:
    """Which policy a deployment has in force."""

    deployment: str
    policy_id: str
    since: datetime
    decisions: int
    promotions: int
    labels: int  # the latest refinement's
    reason: str  # of the latest decision


def record_intake(store: Store, deployment: str, origin: str, dataset_id: str) -> bool:
    """Add a dataset to a deployment; returns False if its origin is known."""
    row = {"deployment": deployment, "origin": origin, "dataset_id": dataset_id}
    with store.catalog.write() as con:
        return bool(insert_rows(con, "intakes", [row]))


def list_intakes(store: Store, deployment: str) -> dict[str, str]:
    """Origin -> dataset of all that a deployment has taken in, oldest first."""
    with store.catalog.read() as con:
        rows = con.execute(
            "SELECT origin, dataset_id FROM intakes WHERE deployment = ? ORDER BY created_at, origin", [deployment]
        ).fetchall()
    return dict(rows)


def list_collections(store: Store, deployment: str) -> list[datetime]:
    """When each collection of a deployment was entered."""
    with store.catalog.read() as con:
        rows = con.execute(
            "SELECT created_at FROM intakes WHERE deployment = ? AND starts_with(origin, 'collect:')", [deployment]
        ).fetchall()
    return [made for (made,) in rows]


def record_decision(store: Store, deployment: str, number: int, decision: Decision) -> bool:
    """Record a deployment's decision; returns False if that number is recorded already."""
    row = {"deployment": deployment, "number": number, **vars(decision)}
    with store.catalog.write() as con:
        return bool(insert_rows(con, "promotions", [row]))


def list_decisions(store: Store, deployment: str) -> list[Decision]:
    """A deployment's decisions, oldest first."""
    with store.catalog.read() as con:
        rows = con.execute(
            "SELECT comparison_id, policy_id, previous_id, promoted, labels, reason FROM promotions "
            "WHERE deployment = ? ORDER BY number",
            [deployment],
        ).fetchall()
    return [Decision(*row) for row in rows]


def list_in_force(store: Store) -> list[InForce]:
    """The policy in force of every deployment with a decision; `since` its promotion, or the first decision."""
    with store.catalog.read() as con:
        return [InForce(*row) for row in con.execute(_IN_FORCE).fetchall()]


def count_labels(store: Store, dataset_ids: Sequence[str]) -> int:
    """Number of labels of some datasets, over all runs."""
    with store.catalog.read() as con:
        found = con.execute(
            "SELECT count(*) FROM annotations WHERE list_contains(?, dataset_id)", [list(dataset_ids)]
        ).fetchone()
    return int(found[0]) if found else 0


def sum_dollars(store: Store, dataset_ids: Sequence[str]) -> float:
    """Dollars spent so far on runs over some datasets."""
    with store.catalog.read() as con:
        found = con.execute(
            "SELECT coalesce(sum(cost_usd), 0) FROM spending WHERE list_contains(?, dataset_id)", [list(dataset_ids)]
        ).fetchone()
    return float(found[0]) if found else 0.0
