"""Annotations and rejections as rows of the catalog. What makes an annotation valid is the annotators' business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import pyarrow as pa

from ..catalog import Connection, insert_rows
from ..errors import BadInput
from ..schema import Annotation, Rejection
from ..store import Store

_COLUMNS = ", ".join(field.name for field in fields(Annotation))


def insert_annotations(con: Connection, annotations: Sequence[Annotation]) -> int:
    """Insert annotations; one whose `annotation_id` is there already is left as it is.

    Returns:
        How many were new.

    Raises:
        BadInput: if one speaks of a step that does not exist, or a number is out of its range; nothing is inserted.
    """
    if stray := unknown_steps(con, annotations):
        first = stray[0]
        raise BadInput(
            f"{len(stray)} annotations speak of steps that do not exist, the first of dataset {first.dataset_id!r}, "
            f"episode {first.episode_id}, step {first.step}.",
            "An episode of T steps has steps 0 to T-1; `trajnote sql` on the table episodes shows them.",
        )
    return insert_rows(con, "annotations", [vars(annotation) for annotation in annotations])


def insert_rejections(
    con: Connection, rejections: Sequence[Rejection], *, model: str | None = None, prompt_version: str | None = None
) -> int:
    """Insert what was refused, with its reason and raw text; one whose `rejection_id` is there already stays as it is.

    Returns:
        How many were new.
    """
    origin = {"model": model, "prompt_version": prompt_version}
    return insert_rows(con, "rejections", [vars(rejection) | origin for rejection in rejections])


def unknown_steps(con: Connection, annotations: Sequence[Annotation]) -> list[Annotation]:
    """The annotations whose episode is not in the catalog, or has no action at that step."""
    if not annotations:
        return []
    keys = pa.table(
        {
            "place": range(len(annotations)),
            "dataset_id": [annotation.dataset_id for annotation in annotations],
            "episode_id": [annotation.episode_id for annotation in annotations],
            "step": [annotation.step for annotation in annotations],
        }
    )
    con.register("annotated_keys", keys)
    try:
        places = con.execute(
            """SELECT place FROM annotated_keys LEFT JOIN episodes USING (dataset_id, episode_id)
               WHERE length IS NULL OR step NOT BETWEEN 0 AND length - 1 ORDER BY place"""
        ).fetchall()
    finally:
        con.unregister("annotated_keys")
    return [annotations[place] for (place,) in places]


def load_annotations(store: Store, dataset_id: str, run_ids: Sequence[str] | None = None) -> list[Annotation]:
    """The annotations of a dataset, by episode, step, run and id.

    Args:
        store: the store.
        dataset_id: a dataset of it.
        run_ids: the annotation runs wanted; all when None.

    Raises:
        BadInput: if there is no such run.
    """
    rows = rows_of_runs(
        store, "annotations", _COLUMNS, dataset_id, run_ids, order="episode_id, step, run_id, annotation_id"
    )
    return [_annotation(row) for row in rows]


def rows_of_runs(
    store: Store, table: str, columns: str, dataset_id: str, run_ids: Sequence[str] | None, *, order: str
) -> list[tuple[object, ...]]:
    """Rows of a table that some annotation runs made about a dataset.

    Args:
        store: the store.
        table: one with the columns `dataset_id` and `run_id`.
        columns: names, separated by commas.
        dataset_id: a dataset of the store.
        run_ids: the runs wanted; all when None.
        order: names that they are sorted by.

    Raises:
        BadInput: if there is no such run.
    """
    with store.catalog.read() as con:
        known = {run for (run,) in con.execute("SELECT run_id FROM annotation_runs").fetchall()}
        if unknown := sorted(set(run_ids or ()) - known):
            raise BadInput(
                f"There is no annotation run {unknown[0]!r}.", f"There is {', '.join(sorted(known)) or 'none'}."
            )
        return con.execute(
            f"""SELECT {columns} FROM {table}
                WHERE dataset_id = $dataset_id AND ($run_ids IS NULL OR list_contains($run_ids, run_id))
                ORDER BY {order}""",
            {"dataset_id": dataset_id, "run_ids": None if run_ids is None else list(run_ids)},
        ).fetchall()


def list_runs(store: Store, dataset_id: str) -> list[str]:
    """The ids of a dataset's annotation runs, the oldest first."""
    with store.catalog.read() as con:
        rows = con.execute(
            "SELECT run_id FROM annotation_runs WHERE dataset_id = ? ORDER BY created_at, run_id", [dataset_id]
        ).fetchall()
    return [run_id for (run_id,) in rows]


def count_rejections(store: Store) -> dict[str, dict[str, int]]:
    """Run -> reason -> how many labels were refused for it."""
    with store.catalog.read() as con:
        rows = con.execute("SELECT run_id, reason, count(*) FROM rejections GROUP BY ALL ORDER BY ALL").fetchall()
    counted: dict[str, dict[str, int]] = {}
    for run_id, reason, count in rows:
        counted.setdefault(run_id, {})[reason] = count
    return counted


def _annotation(row: tuple[object, ...]) -> Annotation:
    values = {field.name: value for field, value in zip(fields(Annotation), row, strict=True)}
    suggestion = values["suggested_action"]
    if isinstance(suggestion, list):
        values["suggested_action"] = tuple(suggestion)
    return Annotation(**values)  # pyright: ignore[reportArgumentType] -- the table's columns have these types
