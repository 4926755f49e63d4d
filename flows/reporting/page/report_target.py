"""What a report is about: from the one name that a user gives to a dataset, its runs and its comparison."""

from __future__ import annotations

from dataclasses import dataclass

from storage.catalog import Connection
from storage.datasets import pick
from storage.errors import Prerequisite
from storage.store import Store

_LATEST_COMPARISON = """
SELECT comparison_id FROM comparisons
WHERE dataset_id = ? ORDER BY created_at DESC, comparison_id DESC LIMIT 1
"""
_COMPARISON_WITH_RUN = """
SELECT comparison_id FROM refinements JOIN comparisons USING (comparison_id)
WHERE list_contains(refinements.run_ids, ?) ORDER BY comparisons.created_at DESC, comparison_id DESC LIMIT 1
"""
_RUNS_OF_COMPARISON = """
SELECT DISTINCT run_id FROM (SELECT unnest(run_ids) AS run_id FROM refinements WHERE comparison_id = ?)
JOIN annotation_runs USING (run_id) WHERE dataset_id = ? ORDER BY run_id
"""


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
        known = _known_names(con)
        chosen = _newest(con) if name is None else pick(name, sorted(known), "refinement, comparison, run or dataset")
        if chosen is None:
            raise Prerequisite("The store is empty.", "Collect a dataset first: `trajnote collect` or `trajnote demo`.")
        return _subject(con, chosen, known[chosen])


def _known_names(con: Connection) -> dict[str, str]:
    """Every id that a report can be about, and the table that it is in."""
    tables = {
        "datasets": "dataset_id",
        "annotation_runs": "run_id",
        "comparisons": "comparison_id",
        "refinements": "refinement_id",
    }
    return {
        name: table
        for table, column in tables.items()
        for (name,) in con.execute(f"SELECT {column} FROM {table}").fetchall()
    }


def _newest(con: Connection) -> str | None:
    for table, column in (("comparisons", "comparison_id"), ("datasets", "dataset_id")):
        found = con.execute(f"SELECT {column} FROM {table} ORDER BY created_at DESC, {column} DESC LIMIT 1").fetchone()
        if found:
            return str(found[0])
    return None


def _subject(con: Connection, name: str, table: str) -> Subject:
    if table == "datasets":
        return _with_comparison(con, name, name, _one(con, _LATEST_COMPARISON, name), None)
    if table == "annotation_runs":
        dataset_id = _one(con, "SELECT dataset_id FROM annotation_runs WHERE run_id = ?", name) or ""
        return Subject(name, dataset_id, (name,), _one(con, _COMPARISON_WITH_RUN, name), None)
    comparison_id, refinement_id = name, None
    if table == "refinements":
        comparison_id = _one(con, "SELECT comparison_id FROM refinements WHERE refinement_id = ?", name)
        refinement_id = name
    place = "refinements WHERE refinement_id = ?" if refinement_id else "comparisons WHERE comparison_id = ?"
    dataset_id = _one(con, f"SELECT dataset_id FROM {place}", name) or ""
    return _with_comparison(con, name, dataset_id, comparison_id, refinement_id)


def _with_comparison(
    con: Connection, name: str, dataset_id: str, comparison_id: str | None, refinement_id: str | None
) -> Subject:
    """A subject whose runs are those of its comparison over this dataset, or all of the dataset's."""
    rows = con.execute(_RUNS_OF_COMPARISON, [comparison_id, dataset_id]).fetchall()
    if not rows:
        rows = con.execute(
            "SELECT run_id FROM annotation_runs WHERE dataset_id = ? ORDER BY created_at, run_id", [dataset_id]
        ).fetchall()
    return Subject(name, dataset_id, tuple(run_id for (run_id,) in rows), comparison_id, refinement_id)


def _one(con: Connection, question: str, name: str) -> str | None:
    found = con.execute(question, [name]).fetchone()
    return None if found is None or found[0] is None else str(found[0])
