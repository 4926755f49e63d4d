"""Recordings of others: D4RL, d3rlpy and plain tables come in as they are, and what they lack is counted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from d3rlpy.dataset import Episode as D3rlpyEpisode
from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer
from toy_datasets import import_rows, make_draft, make_episode, same, write

from storage.datasets import StepsWriter
from storage.datasets.reader import iterate_episodes
from storage.errors import BadInput
from storage.importing import recordings
from storage.importing.cells import parse_columns
from storage.importing.import_dataset import import_recording, open_recording
from storage.importing.row_validation import ImportReport
from storage.schema import Episode, Manifest
from storage.store import Store

EPISODES = [
    make_episode(number, length) for number, length in enumerate((3, 1, 4))
]  # terminated, truncated, terminated
COLUMNS = ["observation=x,y,z", "action=a", "reward=r", "terminated=done", "truncated=timeout"]


def take_in(store: Store, path: Path, *columns: str, **given: Any) -> tuple[Manifest, list[Episode], ImportReport]:
    report = ImportReport()
    with open_recording(path, parse_columns(columns) or None) as recording:
        manifest = import_recording(store, recording, recording.about.but(**given), report=report)
    return manifest, list(iterate_episodes(store, manifest.dataset_id)), report


def flat(name: str) -> np.ndarray:
    parts = {
        "observations": [episode.observations[:-1] for episode in EPISODES],
        "next_observations": [episode.observations[1:] for episode in EPISODES],
        "actions": [episode.actions for episode in EPISODES],
        "rewards": [episode.rewards for episode in EPISODES],
        "terminals": [[*[False] * (len(e) - 1), e.terminated] for e in EPISODES],
        "timeouts": [[*[False] * (len(e) - 1), e.truncated] for e in EPISODES],
    }
    return np.concatenate(parts[name])


def d4rl(path: Path, **changes: np.ndarray | None) -> Path:
    names = ("observations", "next_observations", "actions", "rewards", "terminals", "timeouts")
    with h5py.File(path, "w") as file:
        for name, values in ({name: flat(name) for name in names} | changes).items():
            if values is not None:
                file[name] = values
    return path


def plain(path: Path, **changes: Any) -> Path:
    observations, after = flat("observations").astype(float), flat("next_observations").astype(float)
    frame = pl.DataFrame(
        {name: observations[:, place] for place, name in enumerate("xyz")}
        | {f"{name}2": after[:, place] for place, name in enumerate("xyz")}
        | {"a": flat("actions"), "r": flat("rewards"), "done": flat("terminals"), "timeout": flat("timeouts")}
        | changes
    )
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
    return path


def unseeded(episode: Episode) -> Episode:
    return Episode(**vars(episode) | {"seed": None})


def equal(left: list[Episode], right: list[Episode]) -> bool:
    return all(same(unseeded(a), unseeded(b)) for a, b in zip(left, right, strict=True))


def nothing_written(store: Store) -> bool:
    return list(store.rollouts_dir.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 65_536])
def test_d4rl_with_next_observations_comes_in_bit_for_bit(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("storage.importing.hdf5.ROWS", rows)
    manifest, episodes, report = take_in(store, d4rl(tmp_path / "d4rl.hdf5"))
    assert equal(episodes, EPISODES)
    assert report == ImportReport()
    assert (manifest.observation_space.dtype, manifest.action_space.n) == ("float32", 2)


def test_the_ends_of_a_file_of_d3rlpy_1_are_terminals_and_timeouts_together(store: Store, tmp_path: Path) -> None:
    ends = flat("terminals") | flat("timeouts")
    path = d4rl(tmp_path / "v1.h5", timeouts=None, episode_terminals=ends.astype(np.float32)[:, None])
    assert equal(take_in(store, path)[1], EPISODES)


@pytest.mark.slow
def test_an_import_that_was_killed_between_shards_goes_on_where_it_was(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = d4rl(tmp_path / "d4rl.hdf5")
    monkeypatch.setattr("storage.importing.import_dataset.StepsWriter", partial(StepsWriter, shard_bytes=1))
    whole, _, _ = take_in(Store.create(tmp_path / "other"), path)
    with monkeypatch.context() as patched:
        patched.setattr(
            "storage.datasets.files.shard_name", lambda number: f"steps-{number:05d}.parquet" if not number else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            take_in(store, path)
    assert len(list(store.rollouts_dir.glob(".partial-*/*.parquet"))) == 1
    again, episodes, _ = take_in(store, path)
    assert (again.dataset_id, again.shards) == (whole.dataset_id, whole.shards)
    assert equal(episodes, EPISODES)


@pytest.mark.slow
def test_d4rl_without_next_observations_repeats_a_terminal_one_and_gives_up_a_truncated_step(
    store: Store, tmp_path: Path
) -> None:
    _, episodes, report = take_in(store, d4rl(tmp_path / "d4rl.hdf5", next_observations=None))
    assert report == ImportReport(repeated=2, vanished=1)
    assert [len(episode) for episode in episodes] == [3, 4]  # the truncated one had one step only
    for episode, whole in zip(episodes, (EPISODES[0], EPISODES[2]), strict=True):
        assert episode.observations[:-1].tobytes() == whole.observations[:-1].tobytes()
        assert episode.observations[-1].tobytes() == whole.observations[-2].tobytes()
        assert episode.rewards.tobytes() == whole.rewards.tobytes()
        assert (episode.terminated, episode.truncated) == (True, False)


def test_a_truncated_episode_ends_one_step_earlier_when_the_observation_after_it_is_unknown(
    store: Store, tmp_path: Path
) -> None:
    timeouts = flat("timeouts")
    timeouts[[-3, -1]] = True  # the last episode is cut in two
    path = d4rl(tmp_path / "d4rl.hdf5", next_observations=None, timeouts=timeouts, terminals=np.zeros(8, np.bool_))
    _, episodes, report = take_in(store, path)
    assert report == ImportReport(dropped=3)
    assert (report.rows, report.steps, report.given_up) == (8, 5, 3)
    assert [len(episode) for episode in episodes] == [3, 1, 1]
    assert episodes[1].observations.tobytes() == EPISODES[2].observations[:2].tobytes()
    assert all(episode.truncated and not episode.terminated for episode in episodes)


def test_rows_that_do_not_follow_each_other_are_refused_with_the_episode_and_step(store: Store, tmp_path: Path) -> None:
    path = d4rl(tmp_path / "d4rl.hdf5", timeouts=None)
    with pytest.raises(BadInput, match="Episode 1, step 0: its next observation is not the observation of the next"):
        take_in(store, path)
    assert nothing_written(store)


@pytest.mark.slow
def test_the_dump_of_a_replay_buffer_comes_in(store: Store, tmp_path: Path) -> None:
    made = [
        D3rlpyEpisode(e.observations[:-1], e.actions[:, None], e.rewards[:, None].astype(np.float32), e.terminated)
        for e in EPISODES
    ]
    with (tmp_path / "dump.h5").open("w+b") as file:
        ReplayBuffer(InfiniteBuffer(), episodes=made).dump(file)  # without the truncated one, for it has one step only
    manifest, episodes, report = take_in(store, tmp_path / "dump.h5")
    assert report == ImportReport(repeated=2)
    assert (manifest.action_space.kind, manifest.action_space.n) == ("discrete", 2)
    assert [episode.actions.tolist() for episode in episodes] == [
        EPISODES[0].actions.tolist(),
        EPISODES[2].actions.tolist(),
    ]
    assert episodes[1].rewards.tolist() == EPISODES[2].rewards.astype(np.float32).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("rows", [2, 65_536])
def test_a_plain_table_comes_in_through_the_meaning_of_its_columns(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, rows: int
) -> None:
    monkeypatch.setattr(recordings, "ROWS", rows)
    path = plain(tmp_path / f"rows{suffix}")
    manifest, episodes, report = take_in(store, path, *COLUMNS, "next_observation=x2,y2,z2")
    assert report == ImportReport()
    assert manifest.component_names == ("x", "y", "z")
    for episode, whole in zip(episodes, EPISODES, strict=True):
        assert episode.observations.astype(np.float32).tobytes() == whole.observations.tobytes()
        assert episode.rewards.tobytes() == whole.rewards.tobytes()
        assert (episode.terminated, episode.truncated) == (whole.terminated, whole.truncated)


@pytest.mark.slow
def test_rows_in_any_order_are_sorted_by_the_columns_that_say_so(store: Store, tmp_path: Path) -> None:
    numbers = {"e": [0, 0, 0, 1, 2, 2, 2, 2], "t": [0, 1, 2, 0, 0, 1, 2, 3], "s": [7, 7, 7, 8, 9, 9, 9, 9]}
    path = plain(tmp_path / "rows.parquet", **numbers)
    pl.read_parquet(path).reverse().write_parquet(path)
    keys = ["episode_id=e", "step=t", "seed=s", "next_observation=x2,y2,z2"]
    _, episodes, _ = take_in(store, path, *COLUMNS, *keys)
    assert [episode.seed for episode in episodes] == [7, 8, 9]
    assert [episode.rewards.tolist() for episode in episodes] == [whole.rewards.tolist() for whole in EPISODES]


def test_an_end_without_a_flag_is_a_truncation_that_is_counted(store: Store, tmp_path: Path) -> None:
    path = plain(tmp_path / "rows.csv", done=[0] * 8, e=[0, 0, 0, 1, 2, 2, 2, 2])
    _, episodes, report = take_in(
        store, path, "episode_id=e", *COLUMNS[:3], "terminated=done", "next_observation=x2,y2,z2"
    )
    assert report == ImportReport(stopped=3)
    assert [(episode.terminated, episode.truncated) for episode in episodes] == [(False, True)] * 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["observation"], "not of the form"),
        (["colour=x"], "not a known meaning"),
        (["reward=r,a"], "more than one column"),
        (["observation=x", "action=a"], "--column reward=... is missing"),
        (["observation=x,w", "action=a", "reward=r"], "The column 'w' is missing"),
        (
            ["observation=x", "action=a", "reward=r", "terminated=x"],
            r"row 0 .*column 'x': '0.1257.*' is neither true nor false",
        ),
        (["observation=x", "action=a", "reward=name"], "column 'name': 'n' is not a number"),
        (["observation=x,name", "action=a", "reward=r"], "column 'name': 'n' is not a number"),
        ([*COLUMNS, "next_observation=x2,y2"], "next observations have 2 numbers, the observations 3"),
    ],
)
def test_a_meaning_that_does_not_fit_is_refused_and_nothing_is_written(
    store: Store, tmp_path: Path, columns: list[str], message: str
) -> None:
    path = plain(tmp_path / "rows.parquet", name=["n"] * 8)
    with pytest.raises(BadInput, match=message):
        take_in(store, path, *columns)
    assert nothing_written(store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "has no 'actions'"),
        ({"rewards": np.zeros(7)}, "7 and 8 rows"),
        ({"terminals": np.array([0, 0, 2, 0, 0, 0, 0, 1])}, r"'terminals', row 2 \(the first is 0\): 2 is neither"),
        ({"timeouts": np.array([0, 0, 0, np.nan, 0, 0, 0, 0])}, r"'timeouts', row 3 .*: nan is neither 0 nor 1"),
        ({"rewards": np.full(8, np.nan)}, "Episode 0, step 0: the reward is not finite"),
        ({"observations": np.zeros((8, 2, 2)), "next_observations": None}, r"Each observation has shape \(2, 2\)"),
        ({"observations": np.array([b"x"] * 8), "next_observations": None}, "'observations' holds texts"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_written(
    store: Store, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        take_in(store, d4rl(tmp_path / "d4rl.hdf5", **changes))
    assert nothing_written(store)


@pytest.mark.parametrize("content", [b"", b"no HDF5"])
def test_a_file_that_is_no_hdf5_is_refused(store: Store, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.h5").write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read"):
        take_in(store, tmp_path / "rows.h5")
    whole = d4rl(tmp_path / "whole.h5").read_bytes()
    (tmp_path / "rows.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="cannot be read"):
        take_in(store, tmp_path / "rows.h5")


@pytest.mark.slow
def test_a_file_is_read_piece_by_piece(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write(store, make_draft(), [make_episode(number, 5) for number in range(8)])
    path = store.dataset_dir("d1") / manifest.shards[0].name
    monkeypatch.setattr(recordings, "ROWS", 7)
    with open_recording(path) as recording:
        sizes = [table.num_rows for table in recording.tables(ImportReport())]
    assert (sum(sizes), max(sizes)) == (48, 6)
    other = Store.create(tmp_path / "other")
    made = import_rows(other, path)
    monkeypatch.setattr(recordings, "ROWS", 1000)
    assert import_rows(other, path) == made


@pytest.mark.parametrize("where", ["terminated_0", "truncated_0"])
def test_the_flag_of_a_dumped_episode_is_one(store: Store, tmp_path: Path, where: str) -> None:
    with h5py.File(tmp_path / "dump.h5", "w") as file:
        values = {"observations_0": np.ones((2, 3)), "actions_0": np.zeros((2, 1)), "rewards_0": np.ones((2, 1))}
        for name, value in {**values, "num_episodes": 1, "terminated_0": 1, "truncated_0": 0, where: 2}.items():
            file.pop(name, None)
            file[name] = value
    with pytest.raises(BadInput, match=rf"'{where}' is 2; it has to be 0 or 1"):
        take_in(store, tmp_path / "dump.h5")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["hdf5", "parquet"])
def test_half_floats_come_in_as_floats_with_the_same_values(store: Store, tmp_path: Path, ending: str) -> None:
    halves = flat("observations").astype(np.float16)
    if ending == "hdf5":
        after = flat("next_observations").astype(np.float16)
        path = d4rl(tmp_path / "f.hdf5", observations=halves, next_observations=after)
        _, episodes, _ = take_in(store, path)
    else:
        path = plain(tmp_path / "f.parquet")
        table = pq.read_table(path)
        for place, name in enumerate("xyz"):
            table = table.set_column(place, name, pa.array(halves[:, place]))
        pq.write_table(table, path)
        _, episodes, _ = take_in(store, path, *COLUMNS)
    assert {episode.observations.dtype for episode in episodes} == {np.dtype(np.float32)}
    shown = np.concatenate([episode.observations[:-1] for episode in episodes])
    steps = [0, 1, 2, 4, 5, 6, 7] if ending == "parquet" else range(8)  # the one that is truncated vanishes
    assert shown.tolist() == halves[list(steps)].astype(np.float32).tolist()
