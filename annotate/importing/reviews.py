"""The answers of a review as JSON lines: a person's verdicts on labels and rules, or a gold set.

A line names its `queue` and `item` and the reviewer as `model`. Answers about labels and rules have a `verdict`:
`accept`, `correct` (with `suggested_action`), `reject` or `unsure`; those of a gold set have `suggested_action`,
`critical` or both, or the verdict `unsure`. `withdrawn` takes an earlier answer back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from storage.annotations import (
    QueueKind,
    Review,
    ReviewItem,
    ReviewQueue,
    Verdict,
    annotations_by_id,
    current_reviews,
    find_queue,
    insert_reviews,
    replace_labels,
)
from storage.catalog import Connection
from storage.datasets import read_manifest
from storage.disk import read_lines
from storage.errors import BadInput
from storage.ledger import enter_imported_run
from storage.schema import Annotation, Frozen, Manifest, content_id
from storage.store import Store

from ..parsing import MAX_RATIONALE, clean_text, read_object
from .labels import ImportSummary, import_annotations, parse_line, read_import_action, refuse_bad_lines

_AHEAD = timedelta(days=1)  # of this machine's clock, which may be wrong too
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_EXAMPLE = "2030-12-31T23:59:00Z"
_ALLOWED: Mapping[QueueKind, tuple[Verdict, ...]] = {
    "labels": ("accept", "correct", "reject", "unsure", "withdrawn"),
    "rules": ("accept", "correct", "reject", "unsure", "withdrawn"),
    "gold": ("answer", "unsure", "withdrawn"),
}


class ReviewRow(Frozen):
    """One line, as the page or a reader wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    queue: Annotated[str, StringConstraints(min_length=1, max_length=40)]
    item: int = Field(ge=1)
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    dataset_id: Annotated[str, StringConstraints(max_length=200)] | None = None
    episode_id: int | None = None
    step: int | None = None
    verdict: Verdict = "answer"
    critical: bool | None = None
    suggested_action: float | list[float] | Annotated[str, StringConstraints(max_length=200)] | None = None
    rationale: Annotated[str, StringConstraints(max_length=MAX_RATIONALE)] | None = None
    blind: bool | None = None
    answered_at: Annotated[str, StringConstraints(max_length=40)] | None = None


@dataclass(frozen=True)
class ReviewSummary:
    """What an import of answers did."""

    run_ids: tuple[str, ...]  # one for each queue and reviewer
    models: tuple[str, ...]  # the reviewers
    lines: int
    answers: int = 0  # entered now; 0 when the file says what is in force already
    replaced: int = 0  # of them, those in the place of an earlier answer
    labels: int = 0  # of these runs, from the answers in force


@dataclass
class _Batch:
    """Answers that passed, by reviewer and queue, and what is wrong with the other lines."""

    queues: dict[str, ReviewQueue]
    manifests: dict[str, Manifest]
    reviews: dict[str, list[Review]] = field(default_factory=dict[str, list[Review]])  # by run
    problems: list[str] = field(default_factory=list[str])
    seen: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])


def import_labels(store: Store, path: Path) -> ImportSummary | ReviewSummary:
    """Enter a file of labels from anybody, or of a review's answers, whichever its first line is.

    Raises:
        BadInput: listing every bad line with its number and reason, or naming a queue that is not of this store;
            nothing is written then.
    """
    first = next(iter(read_lines(path)), (0, ""))[1]
    return import_reviews(store, path) if _has_queue(first) else import_annotations(store, path)


def _has_queue(line: str) -> bool:
    try:
        return "queue" in read_object(line)
    except ValueError:
        return False


def import_reviews(store: Store, path: Path) -> ReviewSummary:
    """Enter a review's answers; of several answers to one item, the one that was given last is in force.

    Entering the same file again changes nothing, and neither does an older file of the same reviewer.

    Args:
        store: has made the queue.
        path: the file.

    Raises:
        BadInput: as `import_labels`.
    """
    numbered = list(read_lines(path))
    rows, problems = _parse_all(numbered)
    batch = _Batch(_find_queues(store, path, rows), {}, problems=problems)
    batch.manifests.update({q.dataset_id: read_manifest(store, q.dataset_id) for q in batch.queues.values()})
    now = datetime.now(UTC)
    for number, row in rows:
        try:
            _read_row(row, number, batch, now)
        except ValueError as error:
            batch.problems.append(f"line {number}: {error}")
    refuse_bad_lines(path, batch.problems, len(numbered))
    return _write(store, batch, len(numbered))


def _parse_all(numbered: Sequence[tuple[int, str]]) -> tuple[list[tuple[int, ReviewRow]], list[str]]:
    rows: list[tuple[int, ReviewRow]] = []
    problems: list[str] = []
    for number, text in numbered:
        try:
            rows.append((number, parse_line(text, ReviewRow)))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    return rows, problems


def _find_queues(store: Store, path: Path, rows: Sequence[tuple[int, ReviewRow]]) -> dict[str, ReviewQueue]:
    with store.catalog.read() as con:
        found = {name: find_queue(con, name) for name in sorted({row.queue for _, row in rows})}
    if unknown := [clean_text(name, 40) for name, queue in found.items() if queue is None]:
        raise BadInput(
            f"{path} answers the queue {', '.join(unknown)}, which this store has not made.",
            "Import it into the store that the review came from; the same `trajnote review` makes the same queue.",
        )
    return {name: queue for name, queue in found.items() if queue is not None}


def _read_row(row: ReviewRow, number: int, batch: _Batch, now: datetime) -> None:
    queue = batch.queues[row.queue]
    item = _item_of(row, queue)
    _check_verdict(row, queue)
    manifest = batch.manifests[queue.dataset_id]
    action, label = (None, None) if row.suggested_action is None else read_import_action(row.suggested_action, manifest)
    model = clean_text(row.model, 200)
    run_id = content_id("i_", [queue.dataset_id, model, queue.queue_id])
    if (run_id, row.item) in batch.seen:
        raise ValueError(f"{model} has already answered item {row.item} in line {batch.seen[run_id, row.item]}")
    batch.seen[run_id, row.item] = number
    content: list[Any] = [run_id, row.item, row.verdict, row.critical, action, row.rationale, row.answered_at]
    review = Review(
        review_id=content_id("r_", content if row.answered_at else [*content, now.isoformat()]),
        run_id=run_id,
        queue_id=queue.queue_id,
        item=row.item,
        model=model,
        dataset_id=queue.dataset_id,
        **item._asdict(),
        verdict=row.verdict,
        critical=row.critical,
        suggested_action=action,
        suggested_label=label,
        note=clean_text(row.rationale, MAX_RATIONALE) if row.rationale else None,
        blind=row.blind,
        answered_at=_time_of(row, now),
    )
    batch.reviews.setdefault(run_id, []).append(review)


def _item_of(row: ReviewRow, queue: ReviewQueue) -> ReviewItem:
    if row.item > len(queue.items):
        raise ValueError(f"there is no item {row.item}; the queue {queue.queue_id} has {len(queue.items)}")
    item = queue.items[row.item - 1]
    for name, given, known in (
        ("dataset_id", row.dataset_id, queue.dataset_id),
        ("episode_id", row.episode_id, item.episode_id),
        ("step", row.step, item.step),
    ):
        if given is not None and given != known:
            raise ValueError(f"item {row.item} of {queue.queue_id} has {name} {known}, not {given}")
    return item


def _check_verdict(row: ReviewRow, queue: ReviewQueue) -> None:
    if row.verdict not in _ALLOWED[queue.kind]:
        allowed = ", ".join(_ALLOWED[queue.kind])
        raise ValueError(f"verdict {row.verdict!r} does not answer a {queue.kind} queue; allowed: {allowed}")
    if row.verdict == "correct" and row.suggested_action is None:
        raise ValueError("the verdict 'correct' needs suggested_action, the better action")
    if row.verdict not in ("correct", "answer") and row.suggested_action is not None:
        raise ValueError(f"the verdict {row.verdict!r} takes no suggested_action")
    if row.verdict == "answer" and row.suggested_action is None and row.critical is None:
        raise ValueError("it has neither suggested_action nor critical, nor the verdict 'unsure'")


def _time_of(row: ReviewRow, now: datetime) -> datetime:
    if row.answered_at is None:
        return now
    try:
        moment = datetime.fromisoformat(row.answered_at)
    except ValueError:
        raise ValueError(f"answered_at {clean_text(row.answered_at, 40)!r} is not a time like {_EXAMPLE}") from None
    if moment.tzinfo is None:
        raise ValueError(f"answered_at {row.answered_at!r} has no time zone; write it like {_EXAMPLE}")
    if not _EARLIEST < moment < now + _AHEAD:
        raise ValueError(f"answered_at {row.answered_at!r} is not a time at which it can have been answered")
    return moment


def _write(store: Store, batch: _Batch, lines: int) -> ReviewSummary:
    done = ReviewSummary(tuple(batch.reviews), tuple(dict.fromkeys(r[0].model for r in batch.reviews.values())), lines)
    with store.catalog.write() as con:
        for run_id, reviews in batch.reviews.items():
            enter_imported_run(con, run_id, reviews[0].dataset_id, reviews[0].model)
            before = {review.item: review for review in current_reviews(con, run_id)}
            new = [review for review in reviews if not _repeats(review, before.get(review.item))]
            answers, now = insert_reviews(con, new), current_reviews(con, run_id)
            labels = _labels_of(con, now)
            replace_labels(con, run_id, labels)
            replaced = sum(review.item in before and review != before[review.item] for review in now)
            done = replace(
                done,
                answers=done.answers + answers,
                replaced=done.replaced + replaced,
                labels=done.labels + len(labels),
            )
    return done


def _repeats(review: Review, earlier: Review | None) -> bool:
    """Whether an answer says what is in force already."""
    if earlier is None:
        return False
    asked = ("verdict", "critical", "suggested_action", "note")
    return all(getattr(review, name) == getattr(earlier, name) for name in asked)


def _labels_of(con: Connection, reviews: Sequence[Review]) -> list[Annotation]:
    """The labels that follow from answers: a better action, an accepted one, or whether the step is critical."""
    judged = annotations_by_id(con, [review.annotation_id for review in reviews if review.annotation_id])
    made = [_label_of(review, judged.get(review.annotation_id or "")) for review in reviews if review.rule_id is None]
    return [label for label in made if label is not None]


def _label_of(review: Review, judged: Annotation | None) -> Annotation | None:
    """A label, or None where the answer gives neither an action nor whether the step is critical."""
    action, name, grade = review.suggested_action, review.suggested_label, None
    if review.verdict == "accept" and judged is not None:
        action, name = judged.suggested_action, judged.suggested_label
        grade = judged.implicit_reward if action is None else None
    if (action is None and grade is None and review.critical is None) or review.episode_id is None:
        return None
    critical = (judged is None or judged.critical) if review.critical is None else review.critical
    return Annotation(
        annotation_id=content_id("n_", [review.run_id, review.item]),
        run_id=review.run_id,
        request_id=None,
        dataset_id=review.dataset_id,
        episode_id=review.episode_id,
        step=review.step or 0,
        critical=critical,
        suggested_action=action,
        suggested_label=name,
        implicit_reward=grade,
        confidence=None,
        rationale=review.note,
        model=review.model,
        prompt_version=None,
    )
