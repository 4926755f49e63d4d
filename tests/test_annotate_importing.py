"""Labels from anybody: all of them or none, with the number and the fault of every bad line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_state import lend
from toy_datasets import make_draft, make_episode, write

from annotate.importing.labels import import_annotations
from storage.annotations.annotations import load_annotations
from storage.errors import BadInput
from storage.schema import Space
from storage.store import Store


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset `d1` with two actions, and `c1` with a continuous action of two dimensions; episodes have four steps."""
    made = Store.create(tmp_path_factory.mktemp("template") / "store")
    write(made, make_draft("d1"), [make_episode(i) for i in range(3)])
    box = Space(kind="box", dtype="float32", size=2, low=(-1.0, -2.0), high=(1.0, 2.0))
    draft = make_draft("c1", action_space=box, action_names=("main", "side"))
    write(made, draft, [make_episode(0, actions=np.zeros((4, 2), np.float32))])
    return made.root


@pytest.fixture
def toys(template: Path) -> Store:
    """A copy of that store."""
    return Store.open(lend(template))


def row(**changes: Any) -> dict[str, Any]:
    whole = {
        "dataset_id": "d1",
        "episode_id": 1,
        "step": 2,
        "suggested_action": 1,
        "confidence": 0.5,
        "rationale": "so",
    }
    return whole | changes


def save(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_numbers_lists_and_names_of_actions_are_understood(toys: Store, tmp_path: Path) -> None:
    path = save(
        tmp_path,
        row(step=0, suggested_action=1),
        row(step=1, suggested_action="left", implicit_reward=-1, critical=False),
        row(step=2, suggested_action=[1.0]),
        row(step=3, suggested_action=None, implicit_reward=0.5),
        row(dataset_id="c1", episode_id=0, suggested_action=[0.5, -2]),
    )
    summary = import_annotations(toys, path)
    assert (len(summary.run_ids), summary.lines, summary.labels) == (2, 5, 5)
    labels = load_annotations(toys, "d1")
    assert [(label.step, label.suggested_action, label.suggested_label) for label in labels] == [
        (0, (1.0,), "right"),
        (1, (0.0,), "left"),
        (2, (1.0,), "right"),
        (3, None, None),
    ]
    assert [(label.critical, label.implicit_reward) for label in labels][1] == (False, -1.0)
    assert {(label.model, label.request_id) for label in labels} == {("imported", None)}
    assert load_annotations(toys, "c1")[0].suggested_label == "main=0.50 side=-2.00"


def test_the_same_file_twice_changes_nothing(toys: Store, tmp_path: Path) -> None:
    path = save(tmp_path, row(), row(step=3, model="expert"))
    first, second = import_annotations(toys, path), import_annotations(toys, path)
    assert (first.labels, second.labels, first.run_ids) == (2, 0, second.run_ids)
    assert len(load_annotations(toys, "d1")) == 2


def test_two_labellers_of_one_state_are_two_runs(toys: Store, tmp_path: Path) -> None:
    summary = import_annotations(toys, save(tmp_path, row(model="a"), row(model="b", suggested_action=0)))
    assert len(summary.run_ids) == 2
    assert [label.model for label in load_annotations(toys, "d1", [summary.run_ids[0]])] == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "it is not JSON"),
        ("7", "it is not a JSON object"),
        (row(dataset_id="nope"), "there is no dataset 'nope'; known: c1, d1"),
        (row(episode_id=3), "there is no episode 3; known: 0 to 2"),
        (row(step=4), "there is no step 4 in episode 1; its actions are at steps 0 to 3"),
        (row(step=-1), "step: Input should be greater than or equal to 0 (received -1)"),
        (row(step=1.5), "step: Input should be a valid integer (received 1.5)"),
        (row(suggested_action=2), "suggested_action 2 is out of range; allowed are 0 to 1"),
        (row(suggested_action=0.5), "suggested_action 0.5 is out of range"),
        (row(suggested_action=[0, 1]), "suggested_action has 2 numbers; 1 are needed (left, right)"),
        (row(suggested_action="up"), "'up' is not one of the actions left, right"),
        (row(suggested_action=None), "neither suggested_action nor implicit_reward"),
        (
            row(dataset_id="c1", episode_id=0, suggested_action=[0, 2.5]),
            "side = 2.5 is out of range; allowed are -2 to 2",
        ),
        (row(dataset_id="c1", episode_id=0, suggested_action="main"), "not one of the actions main, side"),
        (row(implicit_reward=1.5), "implicit_reward: Input should be less than or equal to 1 (received 1.5)"),
        (row(confidence=float("nan")), "confidence: Input should be"),
        (row(confidence="high"), "confidence: Input should be a valid number (received 'high')"),
        (row(sugested_action=1), "sugested_action: Extra inputs are not permitted (received 1)"),
        ({"dataset_id": "d1", "episode_id": 1, "suggested_action": 0}, "step is missing"),
        (row(), "imported has already labelled step 2 of episode 1 in line 1"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(template: Path, tmp_path: Path, line: object, fault: str) -> None:
    toys = Store.open(template)
    path = save(tmp_path, row(), row(step=3), line)
    with pytest.raises(BadInput) as caught:
        import_annotations(toys, path)
    assert caught.value.problem.startswith(f"{path}: 1 of 3 lines cannot be used: line 3: ")
    assert fault in caught.value.problem
    assert "\n" not in caught.value.problem
    assert load_annotations(toys, "d1") == []
    with toys.catalog.read() as con:
        assert con.execute("SELECT count(*) FROM annotation_runs").fetchall() == [(0,)]


def test_every_bad_line_is_listed(toys: Store, tmp_path: Path) -> None:
    path = save(tmp_path, *(row(step=n) for n in range(30)))
    with pytest.raises(BadInput) as caught:
        import_annotations(toys, path)
    assert [f"line {n}: there is no step {n - 1}" in caught.value.problem for n in range(1, 31)] == [False] * 4 + [
        True
    ] * 26


def test_a_file_without_labels_or_not_there_is_refused(toys: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no labels"):
        import_annotations(toys, save(tmp_path, ""))
    with pytest.raises(BadInput, match="cannot be read"):
        import_annotations(toys, tmp_path / "missing.jsonl")
