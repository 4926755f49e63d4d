"""Several datasets as one: rows follow each other, episodes are renumbered, and labels stay with their steps."""

from __future__ import annotations

import numpy as np
import pytest
from toy_datasets import make_draft, make_episode, write

from storage.annotations.annotations import pool_annotations, read_pool
from storage.catalog.connection import insert_rows
from storage.datasets.reader import read_steps
from storage.errors import BadInput
from storage.store import Store


@pytest.fixture
def two(store: Store) -> Store:
    write(store, make_draft("a"), [make_episode(0, 4), make_episode(3, 5)])
    write(store, make_draft("b", seed=50), [make_episode(0, 3), make_episode(1, 2)])
    notes = [("a", 3, 4), ("b", 0, 1), ("b", 1, 0)]
    with store.catalog.write() as con:
        insert_rows(con, "annotation_runs", [{"run_id": "r", "dataset_id": "a", "provider": "import"}])
        insert_rows(
            con,
            "annotations",
            [
                {"annotation_id": f"n{n}", "run_id": "r", "dataset_id": dataset, "episode_id": episode, "step": step,
                 "critical": True, "model": "m"}
                for n, (dataset, episode, step) in enumerate(notes)
            ],
        )  # fmt: skip
    return store


@pytest.mark.slow
def test_rows_and_labels_of_two_datasets_are_those_of_each(two: Store) -> None:
    pool, first, second = read_pool(two, ["a", "b"]), read_steps(two, "a"), read_steps(two, "b")
    assert len(pool) == len(first) + len(second)
    assert pool.episodes.tolist() == [0, 3, 4, 5]
    assert pool.lengths.tolist() == [4, 5, 3, 2]
    assert np.array_equal(pool.observation, np.concatenate([first.observation, second.observation]))
    notes = pool_annotations(two, ["a", "b"])
    assert [(note.episode_id, note.step) for note in notes] == [(3, 4), (4, 1), (5, 0)]
    rows = pool.rows_of([note.episode_id for note in notes], [note.step for note in notes])
    expected = [first.row_of(3, 4), len(first) + second.row_of(0, 1), len(first) + second.row_of(1, 0)]
    assert rows.tolist() == expected


@pytest.mark.slow
def test_one_dataset_is_itself_and_others_have_to_be_alike(two: Store) -> None:
    assert read_pool(two, ["b"]).episodes.tolist() == [0, 1]
    assert [note.episode_id for note in pool_annotations(two, ["b"], ["r"])] == [0, 1]
    write(two, make_draft("c", seed=70, component_names=("x", "y", "w")), [make_episode(0)])
    with pytest.raises(BadInput, match="a and c differ in component_names"):
        read_pool(two, ["a", "c"])
