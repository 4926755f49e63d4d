"""Answers of reviews: verdicts become labels, the newest answer counts, and what no queue has asked is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from store_state import ask, lend
from toy_datasets import make_draft, make_episode, write

from annotate.importing.labels import import_annotations
from annotate.importing.reviews import ReviewSummary, import_labels
from flows.labelling.queues import Order, prepare_queue
from flows.refinement.refinement import find_labels
from storage.annotations.annotations import ReviewItem, ReviewQueue, enter_queue, load_annotations
from storage.errors import BadInput
from storage.store import Store

NOON, LATER = "2026-05-01T12:00:00Z", "2026-05-01T13:00:00Z"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset `d1` of three episodes of four steps, with a model's label `left` on the first two steps of each."""
    folder = tmp_path_factory.mktemp("template")
    made = Store.create(folder / "store")
    write(made, make_draft("d1"), [make_episode(i) for i in range(3)])
    place = {"dataset_id": "d1", "suggested_action": "left", "confidence": 0.5, "model": "judged"}
    lines = [place | {"episode_id": n, "step": step} for n in range(3) for step in range(2)]
    import_annotations(made, save(folder, *lines))
    prepare_queue(made, order="stratified", limit=4)
    return made.root


@pytest.fixture
def toys(template: Path) -> Store:
    return Store.open(lend(template))


@pytest.fixture
def queue(toys: Store) -> ReviewQueue:
    return prepare_queue(toys, order="stratified", limit=4).queue


def save(folder: Path, *lines: object, name: str = "labels.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(queue: ReviewQueue, item: int, verdict: str, **more: Any) -> dict[str, Any]:
    made = {"queue": queue.queue_id, "item": item, "model": "human:ann", "verdict": verdict, "answered_at": NOON}
    return made | more


def take(store: Store, path: Path) -> ReviewSummary:
    summary = import_labels(store, path)
    assert isinstance(summary, ReviewSummary)
    return summary


@pytest.mark.slow
def test_verdicts_become_labels_of_the_reviewer_and_refusals_become_none(
    toys: Store, queue: ReviewQueue, tmp_path: Path
) -> None:
    path = save(
        tmp_path,
        line(queue, 1, "accept", critical=False),
        line(queue, 2, "correct", suggested_action="right", rationale="it falls"),
        line(queue, 3, "reject", critical=True),
        line(queue, 4, "unsure"),
    )
    summary = take(toys, path)
    assert (summary.models, summary.lines, summary.answers, summary.labels) == (("human:ann",), 4, 4, 3)
    labels = {(note.episode_id, note.step): note for note in load_annotations(toys, "d1", summary.run_ids)}
    said = [labels.get((item.episode_id or 0, item.step or 0)) for item in queue.items]
    assert [note and (note.suggested_label, note.critical, note.rationale) for note in said] == [
        ("left", False, None),
        ("right", True, "it falls"),
        (None, True, None),
        None,
    ]


@pytest.mark.slow
def test_nothing_is_trained_on_what_reviewers_refuse_or_leave_open(
    toys: Store, queue: ReviewQueue, tmp_path: Path
) -> None:
    before = len(find_labels(toys, ["d1"], None, "A", rules=False).notes)
    lines = [line(queue, 1, "reject", critical=True), line(queue, 2, "correct", suggested_action=1)]
    take(toys, save(tmp_path, *lines))
    notes = find_labels(toys, ["d1"], None, "A", rules=False).notes
    assert (before, len(notes)) == (6, 5)
    refused = {item.annotation_id for item in queue.items[:2]}
    assert refused.isdisjoint(note.annotation_id for note in notes)
    take(toys, save(tmp_path, line(queue, 1, "accept", model="human:bob")))
    assert len(find_labels(toys, ["d1"], None, "A", rules=False).notes) == 7


def test_the_same_file_twice_adds_nothing(toys: Store, queue: ReviewQueue, tmp_path: Path) -> None:
    path = save(
        tmp_path, line(queue, 1, "accept"), {k: v for k, v in line(queue, 2, "reject").items() if k != "answered_at"}
    )
    first, second = take(toys, path), take(toys, path)
    assert (first.answers, second.answers, second.labels) == (2, 0, 1)
    assert ask(toys, "SELECT count(*) FROM reviews") == [(2,)]


@pytest.mark.slow
def test_the_newest_answer_counts_in_whatever_order_files_come_and_earlier_ones_stay(
    toys: Store, queue: ReviewQueue, tmp_path: Path
) -> None:
    old = save(tmp_path, line(queue, 1, "accept"), line(queue, 2, "accept"), name="old.jsonl")
    new = save(tmp_path, line(queue, 1, "correct", suggested_action="right", answered_at=LATER), name="new.jsonl")
    for path, replaced in ((old, 0), (new, 1), (old, 0)):
        assert take(toys, path).replaced == replaced
    assert ask(toys, "SELECT verdict FROM current_reviews ORDER BY item") == [("correct",), ("accept",)]
    assert ask(toys, "SELECT count(*) FROM reviews") == [(3,)]
    withdrawn = take(toys, save(tmp_path, line(queue, 1, "withdrawn", answered_at="2026-05-01T14:00:00+00:00")))
    assert (withdrawn.answers, withdrawn.labels) == (1, 1)


@pytest.mark.slow
def test_two_reviewers_of_one_queue_are_two_runs(toys: Store, queue: ReviewQueue, tmp_path: Path) -> None:
    path = save(tmp_path, line(queue, 1, "accept"), line(queue, 1, "reject", model="human:bob"))
    assert len(take(toys, path).run_ids) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"item": 5}, "there is no item 5; the queue"),
        ({"item": 0}, "item: Input should be greater than or equal to 1"),
        ({"step": 77}, "not 77"),
        ({"dataset_id": "d2"}, "has dataset_id d1, not d2"),
        ({"verdict": "fine"}, "verdict: Input should be 'accept', 'correct'"),
        ({"verdict": "answer"}, "verdict 'answer' does not answer a labels queue; allowed: accept, correct, reject"),
        ({"verdict": "correct"}, "the verdict 'correct' needs suggested_action"),
        ({"suggested_action": 1}, "the verdict 'accept' takes no suggested_action"),
        ({"verdict": "correct", "suggested_action": "up"}, "'up' is not one of the actions left, right"),
        ({"rationale": "x" * 1_001}, "rationale: String should have at most 1000 characters"),
        ({"model": ""}, "model: String should have at least 1 character"),
        ({"answered_at": "yesterday"}, "answered_at 'yesterday' is not a time like"),
        ({"answered_at": "2026-05-01T12:00:00"}, "has no time zone"),
        ({"answered_at": "9026-05-01T12:00:00Z"}, "is not a time at which it can have been answered"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(
    template: Path, tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    toys = Store.open(template)
    queue = prepare_queue(toys, order="stratified", limit=4).queue
    path = save(tmp_path, line(queue, 2, "accept"), line(queue, 1, "accept") | changes)
    with pytest.raises(BadInput) as caught:
        import_labels(toys, path)
    assert caught.value.problem.startswith(f"{path}: 1 of 2 lines cannot be used: line 2: ")
    assert fault in caught.value.problem
    assert ask(toys, "SELECT count(*) FROM reviews") == [(0,)]


def test_an_answer_to_another_stores_queue_is_refused_in_one_line(toys: Store, tmp_path: Path) -> None:
    stray = ReviewQueue.of("d1", "labels", (), [ReviewItem(0, 0)])
    with pytest.raises(BadInput, match=f"answers the queue {stray.queue_id}, which this store has not made"):
        import_labels(toys, save(tmp_path, line(stray, 1, "accept")))


def test_an_item_answered_twice_in_one_file_is_refused(toys: Store, queue: ReviewQueue, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"line 2: human:ann has already answered item 1 in line 1"):
        import_labels(toys, save(tmp_path, line(queue, 1, "accept"), line(queue, 1, "reject")))


@pytest.mark.slow
def test_a_gold_answer_says_an_action_or_criticality_or_both(toys: Store, tmp_path: Path) -> None:
    queue = prepare_queue(toys, order="gold", limit=4).queue
    assert (queue.kind, [item.annotation_id for item in queue.items]) == ("gold", [None] * 4)
    summary = take(
        toys,
        save(
            tmp_path,
            line(queue, 1, "answer", suggested_action="right", critical=True),
            line(queue, 2, "answer", critical=False),
            line(queue, 3, "unsure"),
        ),
    )
    assert (summary.answers, summary.labels) == (3, 2)
    with pytest.raises(BadInput, match="neither suggested_action nor critical"):
        import_labels(toys, save(tmp_path, line(queue, 4, "answer")))
    with pytest.raises(BadInput, match="does not answer a gold queue; allowed: answer, unsure, withdrawn"):
        import_labels(toys, save(tmp_path, line(queue, 4, "accept")))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["disagreements", "stratified", "gold"])
def test_equal_arguments_make_an_equal_queue_and_another_seed_another(toys: Store, order: Order) -> None:
    names = [prepare_queue(toys, order=order, limit=5, seed=seed).queue.queue_id for seed in (0, 0, 1)]
    assert names[0] == names[1]
    assert names[0] != names[2]
    assert ask(toys, "SELECT count(*) FROM review_queues") in ([(2,)], [(3,)])


@pytest.mark.slow
def test_half_of_a_gold_queue_has_labels_and_no_step_comes_twice(toys: Store) -> None:
    items = prepare_queue(toys, order="gold", limit=8).queue.items
    labelled = set(ask(toys, "SELECT episode_id, step FROM annotations"))
    assert len(set(items)) == 8
    assert sum((item.episode_id, item.step) in labelled for item in items) == 4
    assert len(prepare_queue(toys, order="gold", limit=99).queue.items) == 12


def test_a_reviews_own_answers_are_not_asked_about_unless_named(
    toys: Store, queue: ReviewQueue, tmp_path: Path
) -> None:
    (run_id,) = take(toys, save(tmp_path, line(queue, 1, "accept"))).run_ids
    assert prepare_queue(toys, order="stratified", limit=99).queue.run_ids != (run_id,)
    assert len(prepare_queue(toys, order="stratified", limit=99).queue.items) == 6
    assert prepare_queue(toys, run_id).queue.run_ids == (run_id,)


def test_a_queue_is_entered_once(toys: Store, queue: ReviewQueue) -> None:
    enter_queue(toys, queue, {})
    assert ask(toys, "SELECT count(*) FROM review_items") == [(4,)]
