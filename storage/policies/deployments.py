"""A deployment: its lock, its link to the policy in force, and its datasets and decisions in the catalog.

It records decisions and makes none. The operating system releases the lock when its process ends, however it ends, so a
kill blocks no later run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from ..catalog import insert_rows
from ..disk import exclusive_lock, sync_to_disk, write_whole, writing
from ..errors import CatalogLocked, TrajnoteError
from ..store import Store

CURRENT = "current"
_RUNNING = "running.json"


class AlreadyRunning(TrajnoteError):
    """The same deployment is running already; nothing was done, and nothing is lost."""

    exit_code: ClassVar[int] = 7


@contextmanager
def deployment_lock(store: Store, deployment: str) -> Generator[str | None]:
    """Be the only run of a deployment on this machine.

    Yields:
        When the previous run began, if it was killed; else None.

    Raises:
        AlreadyRunning: if another process runs it.
    """
    folder = store.deployment_dir(deployment)
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _RUNNING
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder, f"the deployment {deployment}"))
        except CatalogLocked as error:
            began = _began(marker)
            raise AlreadyRunning(
                f"The deployment {deployment} is already running{f', since {began}' if began else ''}.",
                "This run has done nothing; new input goes to that run or the next one.",
            ) from error
        killed = _began(marker)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_whole(marker, json.dumps({"pid": os.getpid(), "began": now}).encode())
        try:
            yield killed
        finally:
            marker.unlink(missing_ok=True)


def link_current(store: Store, deployment: str, policy_id: str) -> Path:
    """Link `deployments/<deployment>/current` to the folder of a policy, atomically; returns the link."""
    folder = store.deployment_dir(deployment)
    link, target = folder / CURRENT, Path("..", "..", store.policy_dir(policy_id).relative_to(store.root))
    with writing(link):
        folder.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != target:
            new = folder / f"{CURRENT}.new"
            new.unlink(missing_ok=True)
            new.symlink_to(target, target_is_directory=True)
            new.replace(link)
            sync_to_disk(folder)
    return link


def _began(marker: Path) -> str | None:
    """When the run that left a marker began; None if there is none."""
    try:
        return str(json.loads(marker.read_bytes())["began"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return "at an unknown time"


_IN_FORCE = """
SELECT deployment, arg_max(policy_id, number) AS policy_id,
    coalesce(max(created_at) FILTER (promoted), min(created_at)) AS since,
    count(*) AS decisions, count(*) FILTER (promoted) AS promotions, max(labels) AS labels,
    arg_max(reason, number) AS reason
FROM promotions GROUP BY deployment ORDER BY deployment
"""
_AMONG = "dataset_id IN (SELECT unnest(?::VARCHAR[]))"


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


def record_intakes(store: Store, deployment: str, origins: Mapping[str, str]) -> list[str]:
    """Add datasets to a deployment, each by its origin; returns those that it did not have, whatever their origin."""
    with store.catalog.write() as con:
        known = list_intakes(store, deployment)
        new = {origin: dataset_id for origin, dataset_id in origins.items() if origin not in known}
        rows = [{"deployment": deployment, "origin": origin, "dataset_id": dataset} for origin, dataset in new.items()]
        insert_rows(con, "intakes", rows)
    return list(dict.fromkeys(dataset_id for dataset_id in new.values() if dataset_id not in known.values()))


def list_intakes(store: Store, deployment: str) -> dict[str, str]:
    """Origin -> dataset of all that a deployment has taken in, oldest first."""
    question = "SELECT origin, dataset_id FROM intakes WHERE deployment = ? ORDER BY created_at, origin"
    return dict(store.select(question, [deployment]))


def list_collections(store: Store, deployment: str) -> list[datetime]:
    """When each collection of a deployment was entered."""
    question = "SELECT created_at FROM intakes WHERE deployment = ? AND starts_with(origin, 'collect:')"
    return [made for (made,) in store.select(question, [deployment])]


def record_decision(store: Store, deployment: str, number: int, decision: Decision) -> bool:
    """Record a deployment's decision; returns False if that number is recorded already."""
    row = {"deployment": deployment, "number": number, **vars(decision)}
    with store.catalog.write() as con:
        return bool(insert_rows(con, "promotions", [row]))


def list_decisions(store: Store, deployment: str) -> list[Decision]:
    """A deployment's decisions, oldest first."""
    columns = "comparison_id, policy_id, previous_id, promoted, labels, reason"
    rows = store.select(f"SELECT {columns} FROM promotions WHERE deployment = ? ORDER BY number", [deployment])
    return [Decision(*row) for row in rows]


def list_in_force(store: Store) -> list[InForce]:
    """The policy in force of every deployment with a decision; `since` its promotion, or the first decision."""
    return [InForce(*row) for row in store.select(_IN_FORCE)]


def count_labels(store: Store, dataset_ids: Sequence[str]) -> int:
    """Number of labels of some datasets, over all runs."""
    ((count,),) = store.select(f"SELECT count(*) FROM annotations WHERE {_AMONG}", [list(dataset_ids)])
    return count


def find_labelled(store: Store, dataset_ids: Sequence[str]) -> list[str]:
    """Those of some datasets that have labels, in the same order."""
    found = store.select(f"SELECT DISTINCT dataset_id FROM annotations WHERE {_AMONG}", [list(dataset_ids)])
    return [dataset_id for dataset_id in dataset_ids if (dataset_id,) in found]


def sum_dollars(store: Store, dataset_ids: Sequence[str]) -> float:
    """Dollars spent so far on runs over some datasets."""
    ((cost,),) = store.select(f"SELECT coalesce(sum(cost_usd), 0) FROM spending WHERE {_AMONG}", [list(dataset_ids)])
    return float(cost)
