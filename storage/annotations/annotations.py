"""Annotations, rejections, label replays and people's reviews of them as rows of the catalog.

What makes an annotation valid is decided in `annotate`. A replay is evidence beside an annotation; it removes none. A
queue is what one file asks people about. Each reviewer of a queue has an annotation run of its own, whose labels are
made anew from the answers in force.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa

from ..catalog import Connection, insert_rows, select_column
from ..datasets import episode_shifts, pick, read_manifest
from ..errors import BadInput
from ..schema import Annotation, Rejection, content_id
from ..store import Store

T = TypeVar("T")


def insert_annotations(con: Connection, annotations: Sequence[Annotation]) -> int:
    """Insert annotations; one whose `annotation_id` is there already is left unchanged.

    Returns:
        How many were new.

    Raises:
        BadInput: if one speaks of a step that does not exist, or a number is out of its range; nothing is inserted.
    """
    if stray := unknown_steps(con, annotations):
        first = stray[0]
        raise BadInput(
            f"{len(stray)} annotations are about steps that do not exist, the first in dataset {first.dataset_id!r}, "
            f"episode {first.episode_id}, step {first.step}.",
            "An episode of T steps has steps 0 to T-1; `trajnote sql` on the table episodes shows them.",
        )
    return insert_rows(con, "annotations", [vars(annotation) for annotation in annotations])


def insert_rejections(
    con: Connection, rejections: Sequence[Rejection], *, model: str | None = None, prompt_version: str | None = None
) -> int:
    """Insert what was refused, with its reason and raw text; one whose `rejection_id` is there already stays unchanged.

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
        places = select_column(
            con,
            """SELECT place FROM annotated_keys LEFT JOIN episodes USING (dataset_id, episode_id)
               WHERE length IS NULL OR step NOT BETWEEN 0 AND length - 1 ORDER BY place""",
        )
    finally:
        con.unregister("annotated_keys")
    return [annotations[place] for place in places]


def load_annotations(store: Store, dataset_id: str, run_ids: Sequence[str] | None = None) -> list[Annotation]:
    """The annotations of a dataset, by episode, step, run and id.

    `run_ids` are those of the runs wanted, or their beginnings; None: all.

    Raises:
        BadInput: if there is no such run.
    """
    order = "episode_id, step, run_id, annotation_id"
    rows = rows_of_runs(store, "annotations", _columns(Annotation), dataset_id, run_ids, order=order)
    return [from_row(Annotation, row) for row in rows]


def trusted_annotations(store: Store, notes: Sequence[Annotation]) -> list[Annotation]:
    """Annotations to train on: those that say what to do or how good it was, and that no reviewer has refused."""
    refused = refused_ids(store, "annotation_id")
    says = [note for note in notes if note.suggested_action is not None or note.implicit_reward is not None]
    return [note for note in says if note.annotation_id not in refused]


def refused_ids(store: Store, column: Literal["annotation_id", "rule_id"]) -> set[str]:
    """The labels or rules that reviewers have refused."""
    rows = store.select(f"SELECT {column} FROM refused_opinions WHERE {column} IS NOT NULL")
    return {name for (name,) in rows}


def rows_of_runs(
    store: Store, table: str, columns: str, dataset_id: str, run_ids: Sequence[str] | None, *, order: str
) -> list[tuple[Any, ...]]:
    """Rows of a table that some annotation runs made about a dataset.

    Args:
        store: the store.
        table: one with the columns `dataset_id` and `run_id`.
        columns: names, separated by commas.
        dataset_id: a dataset of the store.
        run_ids: the runs wanted, or the beginnings of their ids; all when None.
        order: names that they are sorted by.

    Raises:
        BadInput: if there is no such run, or a beginning fits several.
    """
    with store.catalog.read() as con:
        known = select_column(con, "SELECT run_id FROM annotation_runs ORDER BY created_at, run_id")
        wanted = None if run_ids is None else [pick(name, known, "annotation run") for name in run_ids]
        return con.execute(
            f"""SELECT {columns} FROM {table}
                WHERE dataset_id = $dataset_id AND ($run_ids IS NULL OR list_contains($run_ids, run_id))
                ORDER BY {order}""",
            {"dataset_id": dataset_id, "run_ids": wanted},
        ).fetchall()


def list_runs(store: Store, dataset_id: str) -> list[str]:
    """The ids of a dataset's annotation runs, the oldest first."""
    question = "SELECT run_id FROM annotation_runs WHERE dataset_id = ? ORDER BY created_at, run_id"
    return [run_id for (run_id,) in store.select(question, [dataset_id])]


def has_rules(store: Store, run_ids: Sequence[str]) -> bool:
    """Whether any of some runs has rules."""
    return bool(store.select("SELECT 1 FROM rules WHERE list_contains(?, run_id) LIMIT 1", [list(run_ids)]))


def list_rule_runs(store: Store, dataset_id: str) -> list[str]:
    """The ids of a dataset's runs that have rules, the oldest first."""
    question = """SELECT run_id FROM annotation_runs WHERE dataset_id = ? AND run_id IN (SELECT run_id FROM rules)
                  ORDER BY created_at, run_id"""
    return [run_id for (run_id,) in store.select(question, [dataset_id])]


def count_rejections(store: Store) -> dict[str, dict[str, int]]:
    """Run -> reason -> how many labels were refused for it."""
    counted: dict[str, dict[str, int]] = {}
    question = "SELECT run_id, reason, count(*) FROM rejections GROUP BY ALL ORDER BY ALL"
    for run_id, reason, count in store.select(question):
        counted.setdefault(run_id, {})[reason] = count
    return counted


def from_row(kind: type[T], row: Sequence[Any]) -> T:
    """A row of all fields of a dataclass, in their order; a list becomes a tuple."""
    return kind(*(tuple(value) if isinstance(value, list) else value for value in row))


def _columns(kind: type[Any]) -> str:
    """The names of a dataclass's fields, as columns."""
    return ", ".join(field.name for field in fields(kind))


@dataclass(frozen=True)
class LabelReplay:
    """A suggestion taken once in its exact state, against the logged action, both followed by the same policy."""

    label_replay_id: str
    annotation_id: str
    dataset_id: str
    episode_id: int
    step: int
    policy_sha256: str  # of the policy that goes on after the one action
    mode: str  # how it acts
    continuations: int  # pairs of continuations, each pair with the same chance
    exact: bool  # whether the state was reached bit for bit; nothing is measured otherwise
    suggested_return: float | None  # mean sum of rewards from this step on
    logged_return: float | None
    advantage: float | None  # suggested minus logged
    advantages: tuple[float, ...]  # one for each pair
    standard_error: float | None  # of the advantage; None for a single pair
    environment_steps: int  # what it cost, the way to the state included
    detail: str
    environment_sha256: str | None = None  # of the environment that was played in, see `environments`


def insert_label_replays(con: Connection, replays: Sequence[LabelReplay]) -> int:
    """Insert replays; one that is there already stays unchanged. Returns how many were new."""
    return insert_rows(con, "label_replays", [vars(replay) for replay in replays])


def load_label_replays(store: Store, dataset_id: str, *, current: bool = False) -> list[LabelReplay]:
    """The replays of a dataset's labels, by episode, step and id.

    Args:
        store: the store.
        dataset_id: the dataset.
        current: only those that were made in the same environment as the newest one.
    """
    columns = _columns(LabelReplay).replace("advantages", "coalesce(advantages, [])")
    table = "current_label_replays" if current else "label_replays"
    question = f"SELECT {columns} FROM {table} WHERE dataset_id = ? ORDER BY episode_id, step, label_replay_id"
    return [from_row(LabelReplay, row) for row in store.select(question, [dataset_id])]


def pool_annotations(
    store: Store, dataset_ids: Sequence[str], run_ids: Sequence[str] | None = None
) -> list[Annotation]:
    """The annotations of several datasets with the episode numbers of `read_pool`.

    Raises:
        BadInput: if there is no such run.
    """
    notes = [load_annotations(store, dataset_id, run_ids) for dataset_id in dataset_ids]
    if len(notes) == 1:
        return notes[0]
    shifts = episode_shifts([read_manifest(store, dataset_id) for dataset_id in dataset_ids])
    return [
        replace(note, episode_id=note.episode_id + shift)
        for part, shift in zip(notes, shifts, strict=True)
        for note in part
    ]


QueueKind = Literal["labels", "gold", "rules"]
Verdict = Literal["accept", "correct", "reject", "unsure", "answer", "withdrawn"]


class ReviewItem(NamedTuple):
    """One thing to look at: a label, a rule, or a step alone."""

    episode_id: int | None
    step: int | None
    annotation_id: str | None = None
    rule_id: str | None = None


@dataclass(frozen=True)
class ReviewQueue:
    """What one review asks about, in its order; the items are numbered from 1."""

    queue_id: str
    dataset_id: str
    kind: QueueKind
    run_ids: tuple[str, ...]  # whose labels or rules they are
    items: tuple[ReviewItem, ...]

    @classmethod
    def of(cls, dataset_id: str, kind: QueueKind, run_ids: Sequence[str], items: Sequence[ReviewItem]) -> ReviewQueue:
        """A queue, named by what it asks."""
        queue_id = content_id("q_", [dataset_id, kind, [list(item) for item in items]])
        return cls(queue_id, dataset_id, kind, tuple(run_ids), tuple(items))


@dataclass(frozen=True)
class Review:
    """One answer of one reviewer to one item."""

    review_id: str
    run_id: str  # of this reviewer and this queue
    queue_id: str
    item: int
    model: str  # the reviewer, for example human:ann
    dataset_id: str
    episode_id: int | None
    step: int | None
    annotation_id: str | None
    rule_id: str | None
    verdict: Verdict
    critical: bool | None  # None: not said
    suggested_action: tuple[float, ...] | None
    suggested_label: str | None
    note: str | None
    blind: bool | None  # whether it was given before the rationale was shown; None: not said
    answered_at: datetime


def enter_queue(store: Store, queue: ReviewQueue, config: Mapping[str, Any]) -> None:
    """Enter a queue, so that its answers can be read; one that is there already stays unchanged."""
    row = {"queue_id": queue.queue_id, "dataset_id": queue.dataset_id, "kind": queue.kind, "config": dict(config)}
    items = [{"queue_id": queue.queue_id, "item": n} | item._asdict() for n, item in enumerate(queue.items, 1)]
    with store.catalog.write() as con:
        if insert_rows(con, "review_queues", [row | {"run_ids": queue.run_ids}]):
            insert_rows(con, "review_items", items)


def find_queue(con: Connection, queue_id: str) -> ReviewQueue | None:
    """The queue of that id; None if this store did not make it."""
    found = con.execute(
        "SELECT queue_id, dataset_id, kind, run_ids FROM review_queues WHERE queue_id = ?", [queue_id]
    ).fetchone()
    if found is None:
        return None
    items = con.execute(
        "SELECT episode_id, step, annotation_id, rule_id FROM review_items WHERE queue_id = ? ORDER BY item", [queue_id]
    ).fetchall()
    name, dataset_id, kind, run_ids = found
    return ReviewQueue(name, dataset_id, kind, tuple(run_ids), tuple(ReviewItem(*item) for item in items))


def insert_reviews(con: Connection, reviews: Sequence[Review]) -> int:
    """Insert answers; one that is there already stays unchanged. Returns how many were new."""
    return insert_rows(con, "reviews", [vars(review) for review in reviews])


def current_reviews(con: Connection, run_id: str) -> list[Review]:
    """The answers in force of one reviewer to one queue, by item."""
    rows = con.execute(f"SELECT {_columns(Review)} FROM current_reviews WHERE run_id = ? ORDER BY item", [run_id])
    return [from_row(Review, row) for row in rows.fetchall()]


def replace_labels(con: Connection, run_id: str, labels: Sequence[Annotation]) -> None:
    """Put the labels that follow from the answers in force in the place of the run's earlier ones."""
    con.execute("DELETE FROM annotations WHERE run_id = ?", [run_id])
    insert_annotations(con, labels)


def annotations_by_id(con: Connection, annotation_ids: Sequence[str]) -> dict[str, Annotation]:
    """Annotations by their id; those that are not there any more are left out."""
    rows = con.execute(
        f"SELECT {_columns(Annotation)} FROM annotations WHERE annotation_id IN (SELECT unnest(?::VARCHAR[]))",
        [list(annotation_ids)],
    ).fetchall()
    return {note.annotation_id: note for note in (from_row(Annotation, row) for row in rows)}
