"""What a report is about: from the one name that a user gives to a dataset, its runs and its comparison."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from storage.annotations import list_runs
from storage.datasets import pick
from storage.errors import Prerequisite
from storage.queries import Row, ask
from storage.store import Store


@dataclass(frozen=True)
class Subject:
    """What a report is about."""

    name: str  # what was asked for, which names the file
    dataset_id: str
    run_ids: tuple[str, ...]  # annotation runs whose labels are shown
    comparison_id: str | None  # None while nothing was judged
    refinement_id: str | None  # the one that was asked for; None shows the one with the annotator's labels


def find_subject(store: Store, name: str | None) -> Subject:
    """Find what a user means.

    Args:
        store: the store.
        name: id of a refinement, comparison, run or dataset, or a unique beginning of one; None for the newest
            comparison, or the newest dataset while there is none.

    Raises:
        BadInput: if nothing, or more than one thing, has this name.
        Prerequisite: if the store is empty.
    """
    with store.catalog.read() as con:
        known = {row["name"]: row for row in ask(con, "report/subjects")}
        if name is None:
            name = _newest(known.values())
        chosen = known[pick(name, sorted(known), "refinement, comparison, run or dataset")]
        runs = ask(con, "report/runs_of_comparison", comparison=chosen["comparison_id"], dataset=chosen["dataset_id"])
    run_ids = [row["run_id"] for row in runs] or list_runs(store, chosen["dataset_id"])
    return Subject(
        name=chosen["name"],
        dataset_id=chosen["dataset_id"],
        run_ids=(chosen["name"],) if chosen["kind"] == "run" else tuple(run_ids),
        comparison_id=chosen["comparison_id"],
        refinement_id=chosen["name"] if chosen["kind"] == "refinement" else None,
    )


def _newest(known: Collection[Row]) -> str:
    """The newest comparison, or the newest dataset while there is none."""
    for kind in ("comparison", "dataset"):
        made = [(row["created_at"], row["name"]) for row in known if row["kind"] == kind]
        if made:
            return str(max(made)[1])
    raise Prerequisite("The store is empty.", "Collect a dataset first: `trajnote collect` or `trajnote demo`.")
