"""Queues of labels, rules or bare states that people look at, and what they answer; earlier answers are kept.

A queue is what one file asks about. Each reviewer of a queue has an annotation run of its own, whose labels are made
anew from the answers in force; how an answer is read is decided in `annotate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from ..catalog import Connection, insert_rows
from ..schema import Annotation, content_id
from ..store import Store
from .annotations import from_row, insert_annotations

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
        if insert_rows(con, "review_queues", [row | {"run_ids": list(queue.run_ids)}]):
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
    rows = [vars(review) | {"suggested_action": _as_list(review.suggested_action)} for review in reviews]
    return insert_rows(con, "reviews", rows)


def current_reviews(con: Connection, run_id: str) -> list[Review]:
    """The answers in force of one reviewer to one queue, by item."""
    names = ", ".join(Review.__dataclass_fields__)
    rows = con.execute(f"SELECT {names} FROM current_reviews WHERE run_id = ? ORDER BY item", [run_id]).fetchall()
    return [from_row(Review, row) for row in rows]


def replace_labels(con: Connection, run_id: str, labels: Sequence[Annotation]) -> None:
    """Put the labels that follow from the answers in force in the place of the run's earlier ones."""
    con.execute("DELETE FROM annotations WHERE run_id = ?", [run_id])
    insert_annotations(con, labels)


def annotations_by_id(con: Connection, annotation_ids: Sequence[str]) -> dict[str, Annotation]:
    """Annotations by their id; those that are not there any more are left out."""
    names = ", ".join(Annotation.__dataclass_fields__)
    rows = con.execute(
        f"SELECT {names} FROM annotations WHERE annotation_id IN (SELECT unnest(?::VARCHAR[]))", [list(annotation_ids)]
    ).fetchall()
    return {note.annotation_id: note for note in (from_row(Annotation, row) for row in rows)}


def _as_list(action: tuple[float, ...] | None) -> list[float] | None:
    return None if action is None else list(action)
