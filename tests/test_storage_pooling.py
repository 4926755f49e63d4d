"""Several datasets as one: rows follow each other, episodes are renumbered, and labels stay with their steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest
from toy_datasets import make_draft, make_episode, write

from storage.annotations.annotations import pool_annotations
from storage.catalog import insert_rows
from storage.datasets import reader
from storage.datasets.columns import StepArrays, decode_steps
from storage.datasets.reader import read_pool, read_steps
from storage.errors import BadInput
from storage.schema import ManifestDraft
from storage.store import Store
from storage.upkeep.verify import verify_store


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
    expected = [*first.rows_of([3], [4]), *(len(first) + second.rows_of([0, 1], [1, 0]))]
    assert rows.tolist() == expected


@pytest.mark.slow
def test_one_dataset_is_itself_and_others_have_to_be_alike(two: Store) -> None:
    assert read_pool(two, ["b"]).episodes.tolist() == [0, 1]
    assert [note.episode_id for note in pool_annotations(two, ["b"], ["r"])] == [0, 1]
    write(two, make_draft("c", seed=70, component_names=("x", "y", "w")), [make_episode(0)])
    with pytest.raises(BadInput, match="a and c differ in component_names"):
        read_pool(two, ["a", "c"])


@pytest.fixture
def large(two: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """As a pool the datasets count as large, each by itself it does not; a third one has several shards."""
    write(two, make_draft("d", seed=80), [make_episode(number, 9) for number in range(12)], shard_bytes=500)
    monkeypatch.setattr(reader, "MAPPED_ROWS", 120)
    return two


def bits(rows: StepArrays) -> dict[str, object]:
    columns = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return {name: None if column is None else (column.dtype, column.tobytes()) for name, column in columns.items()}


@pytest.mark.slow
def test_a_large_pool_is_mapped_with_the_bits_that_it_has_in_memory(
    large: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = read_pool(large, ["d", "a", "b"])
    assert not mapped.observation.flags.owndata
    assert not mapped.reward.flags.writeable
    monkeypatch.setattr(reader, "MAPPED_ROWS", 10**9)
    in_memory = read_pool(large, ["d", "a", "b"])
    assert in_memory.observation.flags.owndata
    assert bits(mapped) == bits(in_memory)
    assert not large.columns_dir("d").exists()


@pytest.mark.slow
def test_at_most_one_shard_of_a_large_pool_is_decoded_at_once(large: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def count(tables: Iterable[pa.Table], rows: int, draft: ManifestDraft) -> StepArrays:
        decoded.append(rows)
        return decode_steps(tables, rows, draft)

    monkeypatch.setattr(reader, "decode_steps", count)
    pool = read_pool(large, ["d", "a", "b"])
    largest = max(shard.rows for name in ("a", "b", "d") for shard in reader.read_manifest(large, name).shards)
    assert (sum(decoded), max(decoded)) == (len(pool), largest)
    assert largest < len(pool) / 3
    decoded.clear()
    assert len(read_pool(large, ["d", "a", "b"])) == len(pool)
    assert sum(decoded) == 0


@pytest.mark.slow
def test_a_store_keeps_the_columns_of_the_newest_pool_and_checks_them(large: Store) -> None:
    read_pool(large, ["d", "a"])
    read_pool(large, ["d", "a", "b"])
    (folder,) = large.pools_dir.iterdir()
    assert reader.list_pools(large) == [["d", "a", "b"]]
    assert verify_store(large) == []
    whole = (folder / "reward.npy").read_bytes()
    (folder / "reward.npy").write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    (damage,) = verify_store(large)
    assert damage.file == f"columns/.pools/{folder.name}/reward.npy"


@pytest.mark.slow
def test_placing_the_labels_of_a_pool_reads_no_step(two: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "read_shard", None)  # reading one would fail
    assert [note.episode_id for note in pool_annotations(two, ["a", "b"])] == [3, 4, 5]


def test_the_numbers_of_a_large_pool_are_looked_at_once(large: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(reader, "require_finite", lambda rows, _: looked.append(len(rows)))
    first, second = read_pool(large, ["d", "a", "b"]), read_pool(large, ["d", "a", "b"])
    assert sum(looked) == len(first) == len(second)
    read_pool(large, ["d", "a"])  # columns of its own
    assert sum(looked) > len(first)
