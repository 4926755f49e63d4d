from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from soak import full_or
from toy_datasets import BOX3, make_draft, make_episode, same, write

from storage.datasets import StepsWriter
from storage.datasets.columns import encode_episodes
from storage.datasets.files import ROW_GROUP, GrowingShard
from storage.datasets.reader import iterate_episodes, read_episode, read_manifest, read_steps
from storage.errors import BadInput, CatalogLocked, DamagedStore, DiskFailed
from storage.schema import Episode, ManifestDraft, Space
from storage.store import Store


@pytest.mark.slow
def test_episodes_come_back_bit_for_bit_across_shards_and_row_groups(store: Store) -> None:
    episodes = [make_episode(i, length=3 + i) for i in range(9)]
    manifest = write(store, make_draft(), episodes, shard_bytes=200)
    assert len(manifest.shards) > 2
    assert (manifest.episodes, manifest.steps) == (9, sum(3 + i for i in range(9)))
    assert all(same(a, b) for a, b in zip(episodes, iterate_episodes(store, "d1"), strict=True))
    assert same(read_episode(store, "d1", 5), episodes[5])
    assert read_manifest(store, "d1") == manifest


def test_special_numbers_survive(store: Store) -> None:
    observations = np.array([[np.nan, -0.0, np.inf], [-np.inf, 0.0, 1e-45]], np.float32)
    observations.view(np.uint32)[0, 0] = 0x7FC12345  # a NaN with a payload
    episode = make_episode(0, 1, observations=observations, rewards=np.array([-0.0]))
    write(store, make_draft(), [episode])
    assert same(read_episode(store, "d1", 0), episode)


def row_groups(path: Path) -> Iterator[pq.RowGroupMetaData]:
    metadata = pq.read_metadata(path)
    return map(metadata.row_group, range(metadata.num_row_groups))


FLOATS = st.sampled_from(["float32", "float64"])
INTS = st.sampled_from(["int8", "uint8", "int32", "int64", "uint16"])


@st.composite
def datasets(draw: st.DrawFn) -> tuple[ManifestDraft, list[Episode]]:
    size, actions, count = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dtype = draw(st.one_of(FLOATS, INTS))
    discrete, one_hot, has_output = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    observation = (
        Space(kind="discrete", dtype="int64", size=1, n=5, start=-1)
        if one_hot
        else Space(kind="box", dtype=dtype, size=size)
    )
    action = (
        Space(kind="discrete", dtype="int64", size=1, n=actions)
        if discrete
        else Space(kind="box", dtype=draw(FLOATS), size=actions)
    )
    draft = make_draft(
        observation_space=observation,
        action_space=action,
        component_names=tuple(f"c{i}" for i in range(observation.size)),
        action_names=tuple(f"a{i}" for i in range(actions)),
        policy_output=("logits" if discrete else "mean") if has_output else None,
    )
    episodes = []
    for i in range(count):
        length = draw(st.integers(1, 5))
        arrays = {
            "observations": hnp.arrays(np.int64, length + 1, elements=st.integers(-1, 3))
            if one_hot
            else hnp.arrays(dtype, (length + 1, size)),
            "actions": hnp.arrays(np.int64, length, elements=st.integers(0, actions - 1))
            if discrete
            else hnp.arrays(action.dtype, (length, actions)),
            "rewards": hnp.arrays(np.float64, length),
            "policy_outputs": hnp.arrays(np.float32, (length, actions)) if has_output else st.none(),
            "terminated": st.just(True),
            "truncated": st.booleans(),
            "seed": st.one_of(st.none(), st.integers(0, 2**62)),
        }
        episodes.append(Episode(episode_id=3 * i, **{name: draw(values) for name, values in arrays.items()}))
    return draft, episodes


@pytest.mark.slow
@settings(max_examples=full_or(20, 6), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=datasets(), shard_bytes=st.integers(1, 400))
def test_any_dataset_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[ManifestDraft, list[Episode]], shard_bytes: int
) -> None:
    draft, episodes = made
    store = _bare_store(tmp_path_factory)
    write(store, draft, episodes, shard_bytes=shard_bytes)
    assert all(same(a, b) for a, b in zip(episodes, iterate_episodes(store, "d1"), strict=True))
    backwards = [episode.episode_id for episode in reversed(episodes)]
    assert [e.episode_id for e in iterate_episodes(store, "d1", backwards)] == backwards


_made: list[Store] = []


def _bare_store(factory: pytest.TempPathFactory) -> Store:
    """One store for all examples; each example replaces its dataset."""
    import shutil

    if not _made:
        _made.append(Store.create(factory.mktemp("hypothesis")))
    store = _made[0]
    shutil.rmtree(store.dataset_dir("d1"), ignore_errors=True)
    with store.catalog.write() as con:
        con.execute("DELETE FROM datasets")
        con.execute("DELETE FROM episodes")
    return store


def test_flat_columns_have_final_rows_with_zeros(store: Store) -> None:
    episodes = [make_episode(i, length=2) for i in (0, 4)]
    write(store, make_draft(), episodes, shard_bytes=1)
    rows = read_steps(store, "d1")
    assert rows.episode_id.tolist() == [0, 0, 0, 4, 4, 4]
    assert rows.step.tolist() == [0, 1, 2, 0, 1, 2]
    assert rows.is_final.tolist() == [False, False, True] * 2
    assert rows.terminated.tolist() == [False, True, False, False, True, False]
    assert rows.reward[rows.is_final].tolist() == [0, 0]
    assert rows.action[rows.is_final].tolist() == [0, 0]
    assert rows.observation.dtype == np.float32
    assert rows.rows_of([4], [2]) == [5]
    assert rows.rows_of([4, 0], [0, 1]).tolist() == [3, 1]


@pytest.mark.parametrize(("episode_id", "step"), [(1, 0), (5, 0), (-1, 0), (0, 3), (0, -1)])
def test_unknown_steps_are_refused(store: Store, episode_id: int, step: int) -> None:
    write(store, make_draft(), [make_episode(i, length=2) for i in (0, 4)])
    with pytest.raises(BadInput, match=r"no (episode|step)"):
        read_steps(store, "d1").rows_of([episode_id], [step])


@pytest.mark.slow
@pytest.mark.parametrize("episode_id", [-1, 1, 9])
def test_unknown_episodes_are_refused(store: Store, episode_id: int) -> None:
    write(store, make_draft(), [make_episode(0), make_episode(4)], shard_bytes=1)
    with pytest.raises(BadInput, match=f"no episode {episode_id}"):
        read_episode(store, "d1", episode_id)
    with pytest.raises(BadInput, match="no dataset 'nope'"):
        read_manifest(store, "nope")


def test_polars_sees_the_documented_columns(store: Store) -> None:
    write(store, make_draft(), [make_episode(0)])
    schema = pl.read_parquet(store.dataset_dir("d1") / "*.parquet").schema
    assert [f"{name}: {kind}" for name, kind in schema.items()] == [
        "episode_id: Int64",
        "step: Int32",
        "observation: Array(Float32, shape=(3,))",
        "action: Int64",
        "reward: Float64",
        "terminated: Boolean",
        "truncated: Boolean",
        "policy_output: List(Float32)",
        "seed: Int64",
    ]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_after_its_last_finished_shard(store: Store, tmp_path_factory: Any) -> None:
    episodes = [make_episode(i) for i in range(8)]
    with StepsWriter(store, make_draft(), shard_bytes=250) as writer:
        for episode in episodes[:5]:
            writer.write(episode)
    with StepsWriter(store, make_draft(), shard_bytes=250) as writer:
        assert 0 < writer.episodes_done < 5
        for episode in episodes[writer.episodes_done :]:
            writer.write(episode)
        resumed = writer.finish()
    other = Store.create(tmp_path_factory.mktemp("other"))
    assert write(other, make_draft(), episodes, shard_bytes=250).shards == resumed.shards
    assert sorted(path.name for path in store.rollouts_dir.iterdir()) == ["d1"]


@pytest.mark.slow
def test_a_shard_that_grows_in_pieces_has_the_bytes_of_one_written_at_once(store: Store, tmp_path: Path) -> None:
    episodes = [make_episode(i, length=1_700 + i) for i in range(25)]
    manifest = write(store, make_draft(), episodes)
    (shard,) = manifest.shards
    path = store.dataset_dir("d1") / shard.name
    assert [group.num_rows for group in row_groups(path)] == [ROW_GROUP] * 2 + [shard.rows - 2 * ROW_GROUP]
    at_once = GrowingShard(tmp_path, "whole.parquet", make_draft())
    at_once.add(encode_episodes(episodes, make_draft()))
    assert at_once.finish().shard.sha256 == shard.sha256
    assert [*tmp_path.iterdir()] == [tmp_path / "whole.parquet"]
    assert all(same(a, b) for a, b in zip(episodes, iterate_episodes(store, "d1"), strict=True))


def test_what_the_disk_refuses_beside_the_caller_is_said_at_its_next_word_and_leaves_no_piece(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with StepsWriter(store, make_draft(), shard_bytes=1) as writer:
        writer.write(make_episode(0))
        assert writer.keep() == 1
        monkeypatch.setattr("storage.datasets.files.sync_to_disk", refuse)
        writer.write(make_episode(1))
        with pytest.raises(DiskFailed, match="is full"):
            writer.write(make_episode(2))
    monkeypatch.undo()
    assert sorted(path.name for path in store.partial_dir("d1").iterdir()) == ["draft.json", "steps-00000.parquet"]
    with StepsWriter(store, make_draft(), shard_bytes=1) as writer:
        assert writer.episodes_done == 1


def test_an_interrupted_run_with_another_draft_starts_over(store: Store) -> None:
    with StepsWriter(store, make_draft(), shard_bytes=1) as writer:
        writer.write(make_episode(0))
    with StepsWriter(store, make_draft(seed=8), shard_bytes=1) as writer:
        assert writer.episodes_done == 0
        writer.write(make_episode(3))
        assert writer.finish().episodes == 1


def test_a_torn_shard_of_an_interrupted_run_is_written_again(store: Store) -> None:
    with StepsWriter(store, make_draft(), shard_bytes=1) as writer:
        writer.write(make_episode(0))
        writer.write(make_episode(1))
    partial = store.partial_dir("d1")
    (partial / "steps-00001.parquet").write_bytes(b"PAR1 torn")
    (partial / "steps-00002.parquet.tmp").write_bytes(b"PAR1")
    with StepsWriter(store, make_draft(), shard_bytes=1) as writer:
        assert writer.episodes_done == 1
        writer.write(make_episode(1))
        writer.finish()
    assert same(read_episode(store, "d1", 1), make_episode(1))


def test_one_dataset_is_written_by_one_process_and_once(store: Store) -> None:
    with StepsWriter(store, make_draft()) as writer:
        with pytest.raises(CatalogLocked, match="is writing the dataset d1"):
            StepsWriter(store, make_draft())
        writer.write(make_episode(0))
        writer.finish()
    with pytest.raises(BadInput, match="exists already"):
        StepsWriter(store, make_draft())
    assert [path.name for path in store.rollouts_dir.iterdir()] == ["d1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((5, 3))}, "dtype float64; the space says float32"),
        ({"observations": np.zeros((4, 3), np.float32)}, r"shape \(4, 3\); expected \(5, 3\)"),
        ({"actions": np.array([0, 1, 2, 0])}, "step 2 has 2; allowed: 0 to 1"),
        ({"actions": np.zeros(4, np.float32)}, "dtype float32; the space says int64"),
        ({"rewards": np.zeros(4, np.float32)}, "rewards of dtype float32"),
        ({"terminated": False, "truncated": False}, "neither terminated nor truncated"),
        ({"policy_outputs": np.zeros((4, 2), np.float32)}, "has policy outputs; expected None"),
        ({"episode_id": -3}, "ids have to ascend from 0"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(store: Store, changes: dict[str, Any], message: str) -> None:
    with StepsWriter(store, make_draft()) as writer, pytest.raises(BadInput, match=message):
        writer.write(make_episode(**{"episode_id": 0, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"component_names": ("x",)}, "component_names has 1 names for 3 values"),
        ({"component_names": ("x", "X", "y")}, "has 'x' more than once"),
        ({"action_names": ()}, "action_names has 0 names for 2 values"),
        ({"observation_space": BOX3.model_copy(update={"dtype": "bool"})}, "dtype 'bool'"),
        ({"dataset_id": "../escape"}, "cannot be the name of a dataset"),
    ],
)
def test_a_draft_that_cannot_be_stored_is_refused(store: Store, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        StepsWriter(store, make_draft(**changes))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "shorter", "zeros"])
def test_a_damaged_shard_is_named_when_it_is_read(store: Store, damage: str) -> None:
    manifest = write(store, make_draft(), [make_episode(i, 50) for i in range(4)], shard_bytes=1500)
    path = store.dataset_dir("d1") / manifest.shards[1].name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-100] if damage == "shorter" else bytes(len(content)))
    with pytest.raises(DamagedStore, match=r"steps-00001\.parquet"):
        read_steps(store, "d1")
    assert same(read_episode(store, "d1", 0), make_episode(0, 50))


@pytest.mark.slow
def test_a_flipped_bit_in_the_data_never_passes_for_data(store: Store) -> None:
    episode = make_episode(0, 50)
    manifest = write(store, make_draft(), [episode])
    path = store.dataset_dir("d1") / manifest.shards[0].name
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    noticed = 0
    for place in range(4, footer, 29):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert same(read_episode(store, "d1", 0), episode)
        except DamagedStore:
            noticed += 1
    assert noticed > 30
