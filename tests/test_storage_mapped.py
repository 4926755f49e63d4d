"""Large datasets as mapped columns: the same bits, written once, gone without harm."""

from __future__ import annotations

import os
import shutil
import time
from collections import namedtuple
from dataclasses import fields
from pathlib import Path

import pytest
from soak import every
from toy_datasets import make_draft, make_episode, same, write

from storage.datasets import reader as mapped
from storage.datasets import reader as steps
from storage.datasets.columns import StepArrays
from storage.datasets.reader import list_episodes, read_steps
from storage.errors import DamagedStore
from storage.store import Store
from storage.upkeep.garbage import delete_garbage, find_garbage
from storage.upkeep.verify import verify_store

EPISODES = [make_episode(number, 3 + number) for number in range(7)]


@pytest.fixture
def large(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A dataset of several shards that counts as large, and one episode without a seed."""
    monkeypatch.setattr(mapped, "MAPPED_ROWS", 20)
    odd = make_episode(7, 5, seed=None)
    write(store, make_draft(), [*EPISODES, odd], shard_bytes=500)
    return store


def decoded(store: Store, monkeypatch: pytest.MonkeyPatch) -> StepArrays:
    """What is read when nothing counts as large."""
    with monkeypatch.context() as patched:
        patched.setattr(mapped, "MAPPED_ROWS", 10**9)
        return read_steps(store, "d1")


@pytest.mark.slow
def test_mapped_columns_are_those_in_memory_bit_for_bit_and_cannot_be_written(
    large: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, found = decoded(large, monkeypatch), read_steps(large, "d1")
    for field in fields(StepArrays):
        one, other = getattr(expected, field.name), getattr(found, field.name)
        assert (one is None) == (other is None)
        if one is not None:
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    with pytest.raises(ValueError, match="read-only"):
        found.reward[0] = 1.0
    assert len(list(large.dataset_dir("d1").glob("*.parquet"))) > 2


@pytest.mark.slow
def test_episodes_are_views_of_the_columns_with_their_seeds(large: Store) -> None:
    episodes = list_episodes(large, "d1")
    assert all(same(one, other) for one, other in zip(EPISODES, episodes, strict=False))
    assert [episode.seed for episode in episodes] == [7, 8, 9, 10, 11, 12, 13, None]
    assert not any(episode.observations.flags.owndata for episode in episodes)


@pytest.mark.slow
def test_the_columns_are_written_once_and_for_the_content_of_the_shards(
    large: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_steps(large, "d1")
    (folder,) = large.columns_dir("d1").iterdir()
    monkeypatch.setattr(mapped, "read_shard", None)  # reading a shard again would fail
    assert len(read_steps(large, "d1")) == sum(len(episode) + 1 for episode in EPISODES) + 6
    assert [path.name for path in large.columns_dir("d1").iterdir()] == [folder.name]


@pytest.mark.slow
def test_what_a_killed_writer_left_is_written_anew(large: Store) -> None:
    read_steps(large, "d1")
    (folder,) = large.columns_dir("d1").iterdir()
    folder.rename(folder.with_name(folder.name + ".tmp"))
    (folder.with_name(folder.name + ".tmp") / "reward.npy").write_bytes(b"half")
    assert read_steps(large, "d1").reward[0] == EPISODES[0].rewards[0]
    assert [path.name for path in large.columns_dir("d1").iterdir()] == [folder.name]


@pytest.mark.slow
def test_without_room_the_dataset_is_read_into_memory(large: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda _: usage(100))
    rows = read_steps(large, "d1")
    assert rows.reward.flags.owndata
    assert [len(episode) for episode in list_episodes(large, "d1")] == [3, 4, 5, 6, 7, 8, 9, 5]
    assert not any(large.columns_dir("d1").iterdir())


@pytest.mark.slow
def test_a_damaged_shard_is_told_and_leaves_no_columns(large: Store) -> None:
    shard = sorted(large.dataset_dir("d1").glob("*.parquet"))[1]
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DamagedStore, match=shard.name):
        read_steps(large, "d1")
    assert not any(path.suffix != ".tmp" for path in large.columns_dir("d1").iterdir())


@pytest.mark.slow
def test_a_few_episodes_are_read_from_the_shards(large: Store) -> None:
    assert same(steps.read_episode(large, "d1", 3), EPISODES[3])
    assert not large.columns_root.exists()


@pytest.mark.slow
def test_retention_offers_the_columns_and_they_come_back(large: Store) -> None:
    read_steps(large, "d1")
    assert [item.kind for item in find_garbage(large, 9)] == []
    long_ago = time.time() - 7200
    for path in [large.columns_dir("d1"), *large.columns_dir("d1").rglob("*")]:
        os.utime(path, (long_ago, long_ago))
    (item,) = find_garbage(large, 9)
    assert (item.kind, item.name, item.bytes > 1000) == ("columns", "d1", True)
    delete_garbage(large, [item])
    assert not large.columns_dir("d1").exists()
    assert len(read_steps(large, "d1")) > 20


@pytest.mark.slow
def test_the_columns_do_not_travel_and_do_not_count_as_a_foreign_folder(large: Store, tmp_path: Path) -> None:
    read_steps(large, "d1")
    assert not any("columns" in name for name, _ in large.lasting_files())
    large.catalog.path.unlink()
    shutil.rmtree(large.rollouts_dir)
    assert Store.create(large.root).root == large.root


@pytest.mark.slow
@pytest.mark.parametrize("content", every([b"", b"hello", None, b"\x93NUMPY\x01\x00"], 2))
def test_columns_that_are_damaged_are_written_anew(large: Store, content: bytes | None) -> None:
    read_steps(large, "d1")
    (path,) = large.columns_dir("d1").glob("*/reward.npy")
    path.write_bytes(path.read_bytes()[:-8] if content is None else content)
    assert verify_store(large)[0].file.startswith("columns/d1/")
    assert read_steps(large, "d1").reward[0] == EPISODES[0].rewards[0]
    assert verify_store(large) == []
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    (damage,) = verify_store(large)
    assert damage.file == path.relative_to(large.root).as_posix()
