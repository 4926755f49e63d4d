"""Logs of environments that reset themselves: proven ones are refused, likely ones named, clean ones never."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from soak import every

from storage.datasets.columns import decode_episodes
from storage.datasets.reader import iterate_episodes
from storage.errors import BadInput
from storage.importing.cells import parse_columns
from storage.importing.episode_ends import ResetSigns
from storage.importing.import_dataset import Choices, import_recording, open_recording
from storage.importing.row_validation import ImportReport
from storage.schema import Episode, Manifest
from storage.store import Store

Row = dict[str, Any]
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*/rollouts"))
ISSUE = """obs,next_obs,a,r,done
0.0,1.0,0,1.0,false
1.0,2.0,1,1.0,false
2.0,3.0,0,1.0,false
3.0,4.0,1,1.0,true
4.0,100.0,1,0.0,false
100.0,101.0,0,1.0,false
101.0,102.0,1,1.0,false
102.0,103.0,0,1.0,false
103.0,104.0,1,1.0,true
"""


def log_of(env_id: str, steps: int, mode: str, **kwargs: Any) -> list[Row]:
    """A log of a vector environment with one environment in it, as people write it: one row per call of `step`."""
    envs = gymnasium.make_vec(env_id, 1, vector_kwargs={"autoreset_mode": mode}, vectorization_mode="sync", **kwargs)
    envs.action_space.seed(3)
    shown, _ = envs.reset(seed=3)
    rows: list[Row] = []
    for _ in range(steps):
        action = envs.action_space.sample()
        after, reward, terminated, truncated, _ = envs.step(action)
        rows.append(
            {
                "o": np.atleast_1d(shown[0]).tolist(),
                "n": np.atleast_1d(after[0]).tolist(),
                "a": np.atleast_1d(action[0]).tolist(),
                "r": float(reward[0]),
                "end": bool(terminated[0]),
                "cut": bool(truncated[0]),
            }
        )
        shown = after
    envs.close()
    return rows


def take_in(store: Store, path: Path, *, after: bool = True, **choices: Any) -> tuple[list[Episode], ImportReport]:
    columns = ["observation=o", "action=a", "reward=r", "terminated=end", "truncated=cut"]
    report = ImportReport()
    with open_recording(path, parse_columns([*columns, "next_observation=n"] if after else columns)) as recording:
        manifest = import_recording(store, recording, recording.about, choices=Choices(**choices), report=report)
    return list(iterate_episodes(store, manifest.dataset_id)), report


def parquet(path: Path, rows: list[Row]) -> Path:
    pl.DataFrame(rows).write_parquet(path)
    return path


WORLDS = [
    ("CartPole-v1", {}, 150),
    ("Pendulum-v1", {"max_episode_steps": 30}, 150),
    ("MountainCar-v0", {"max_episode_steps": 20}, 100),
    ("FrozenLake-v1", {}, 150),
    ("Acrobot-v1", {"max_episode_steps": 25}, 120),
]


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "kwargs", "steps"), every(WORLDS, 2))
def test_a_reset_in_the_next_step_is_proven_by_the_next_observation(
    store: Store, tmp_path: Path, env_id: str, kwargs: dict[str, Any], steps: int
) -> None:
    rows = log_of(env_id, steps, "NextStep", **kwargs)
    path = parquet(tmp_path / "log.parquet", rows)
    with pytest.raises(BadInput, match=r"begin where another one ended.*--autoreset drop") as refusal:
        take_in(store, path)
    resets = [place + 1 for place, row in enumerate(rows[:-1]) if row["end"] or row["cut"]]
    assert refusal.value.problem.startswith(f"{len(resets)} episodes (1, ")
    assert list(store.rollouts_dir.iterdir()) == []
    clean, report = take_in(store, path, autoreset="drop")
    assert (report.resets, report.rows) == (len(resets), steps)
    assert sum(map(len, clean)) == steps - len(resets)
    assert [row["r"] for place, row in enumerate(rows) if place not in resets] == [r for e in clean for r in e.rewards]
    kept, report = take_in(store, path, autoreset="keep")
    assert (sum(map(len, kept)), report.warnings) == (steps, [])


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "kwargs", "steps"), every(WORLDS[:3], 3))
def test_without_a_next_observation_it_is_a_warning_with_the_way_to_drop_them(
    store: Store, tmp_path: Path, env_id: str, kwargs: dict[str, Any], steps: int
) -> None:
    rows = log_of(env_id, steps, "NextStep", **kwargs)
    _, report = take_in(store, parquet(tmp_path / "log.parquet", rows), after=False)
    assert len(report.warnings) == 1
    assert "--autoreset drop leaves out" in report.warnings[0]
    clean, report = take_in(store, tmp_path / "log.parquet", after=False, autoreset="drop")
    resets = [place + 1 for place, row in enumerate(rows[:-2]) if row["end"] or row["cut"]]
    assert report.resets >= 0.8 * len(resets)
    assert not take_in(store, tmp_path / "log.parquet", after=False, autoreset="keep")[1].warnings
    assert sum(map(len, clean)) < steps


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "kwargs", "steps"), WORLDS[:3])
def test_a_reset_within_the_last_step_is_proven_and_its_observation_left_out(
    store: Store, tmp_path: Path, env_id: str, kwargs: dict[str, Any], steps: int
) -> None:
    rows = log_of(env_id, steps, "SameStep", **kwargs)
    path = parquet(tmp_path / "log.parquet", rows)
    with pytest.raises(BadInput, match=r"end where another one begins.*--autoreset drop"):
        take_in(store, path)
    clean, report = take_in(store, path, autoreset="drop")
    assert report.repeated + report.dropped == sum(row["end"] or row["cut"] for row in rows[:-1])
    firsts = [episode.observations[0].tobytes() for episode in clean]
    assert not any(episode.observations[-1].tobytes() in firsts for episode in clean)


@pytest.mark.slow
def test_a_short_log_of_two_episodes_is_enough(store: Store, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(ISSUE)
    columns = parse_columns(["observation=obs", "next_observation=next_obs", "action=a", "reward=r", "terminated=done"])
    with open_recording(tmp_path / "log.csv", columns) as recording:
        with pytest.raises(BadInput, match=r"1 episodes \(1\) begin where another one ended"):
            import_recording(store, recording, recording.about)
        made = import_recording(store, recording, recording.about, choices=Choices(autoreset="drop"))
    episodes = list(iterate_episodes(store, made.dataset_id))
    assert [episode.observations[:, 0].tolist() for episode in episodes] == [[0, 1, 2, 3, 4], [100, 101, 102, 103, 104]]


@pytest.mark.slow
@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.parent.name)
def test_the_shipped_rollouts_show_no_resets(folder: Path) -> None:
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    signs = ResetSigns()
    for shard in manifest.shards:
        for episode in decode_episodes(pq.read_table(folder / shard.name), manifest):
            signs.see(episode)
    assert signs.find() is None


def episode_of(number: int, observations: np.ndarray, rewards: np.ndarray) -> Episode:
    actions = np.zeros(len(rewards), np.int64)
    return Episode(number, None, observations, actions, rewards, terminated=True, truncated=False)


def noise(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.normal(size=(length + 1, 2))


def walk(rng: np.random.Generator, length: int) -> np.ndarray:
    return np.cumsum(rng.normal(size=(length + 1, 2)), axis=0)


def grid(rng: np.random.Generator, length: int) -> np.ndarray:
    return rng.integers(0, 16, (length + 1, 1))


def from_one_start(rng: np.random.Generator, length: int) -> np.ndarray:
    cells = grid(rng, length)
    cells[0] = 0
    return cells


def alike(rng: np.random.Generator, length: int) -> np.ndarray:
    return np.zeros((length + 1, 1))


@pytest.mark.parametrize("shown", [noise, walk, grid, from_one_start, alike])
@pytest.mark.parametrize("paid", ["always", "sometimes", "at the end"])
def test_clean_episodes_are_suspected_in_one_recording_of_fifty_at_most(
    shown: Callable[[np.random.Generator, int], np.ndarray], paid: str
) -> None:
    assert sum(is_suspected(seed, shown, paid) for seed in range(50)) <= 1


def is_suspected(seed: int, shown: Callable[[np.random.Generator, int], np.ndarray], paid: str) -> bool:
    rng = np.random.default_rng(seed)
    signs, longest = ResetSigns(), int(rng.integers(1, 31))
    for number in range(int(rng.integers(1, 13))):
        length = int(rng.integers(1, longest + 1))
        rewards = {
            "always": rng.normal(size=length),
            "sometimes": rng.integers(0, 2, length).astype(float),
            "at the end": np.eye(length)[-1],
        }[paid]
        signs.see(episode_of(number, shown(rng, length), rewards))
    return signs.find() is not None
