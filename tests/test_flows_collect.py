"""Collecting: one name per content, the same files after any number of kills, and refusals that write nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from soak import in_soak

from flows.datasets.collection import CollectConfig, collect
from flows.simulation.actors import RandomActor
from flows.simulation.environments import make_environment, package_versions, spaces_of
from flows.simulation.rollouts import rollout
from refine.policies.mlp import MlpPolicy
from storage.datasets.reader import iterate_episodes, read_steps
from storage.errors import BadInput
from storage.schema import Manifest
from storage.store import Store

CARTPOLE = {"env_id": "CartPole-v1", "policy": "random", "episodes": 5}


def files_of(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """The files of a dataset; of its manifest everything but the time."""
    folder = store.dataset_dir(manifest.dataset_id)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    content = json.loads(files.pop("manifest.json"))
    del content["created_at"]
    return files | {"manifest.json": json.dumps(content).encode()}


def registered(store: Store) -> list[str]:
    with store.catalog.read() as con:
        return [name for (name,) in con.execute("SELECT dataset_id FROM datasets").fetchall()]


def episodes_of(store: Store) -> list[Any]:
    with store.catalog.read() as con:
        return con.execute("SELECT * FROM episodes ORDER BY episode_id").fetchall()


def network(folder: Path) -> Path:
    """A policy folder for CartPole that leans with its pole."""
    spaces = spaces_of(make_environment("CartPole-v1"))
    weights = np.float32([[0, 0], [0, 0], [-2, 2], [-1, 1]])
    folder.mkdir()
    for name, content in MlpPolicy(*spaces, (weights,), (np.zeros(2),), "tanh", "logits").to_files().items():
        (folder / name).write_bytes(content)
    return folder


def test_a_dataset_holds_what_was_played_and_says_how(store: Store, tmp_path: Path) -> None:
    policy = network(tmp_path / "policy")
    config = CollectConfig(
        env_id="CartPole-v1", policy=f"policy:{policy}", mode="sampled", episodes=4, seed=20, max_steps=50
    )
    manifest = collect(store, config, component_names=["x", "dx", "angle", "dangle"], action_names=["left", "right"])
    environment = make_environment("CartPole-v1")
    actor = MlpPolicy.from_files({path.name: path.read_bytes() for path in policy.iterdir()})
    played = list(rollout(partial(make_environment, "CartPole-v1"), actor, range(20, 24), mode="sampled", max_steps=50))
    stored = list(iterate_episodes(store, manifest.dataset_id))
    assert [episode.seed for episode in stored] == [20, 21, 22, 23]
    for one, other in zip(played, stored, strict=True):
        for name in ("observations", "actions", "rewards", "policy_outputs"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
    assert manifest.dataset_id.startswith("cartpole-v1-")
    assert len(manifest.dataset_id) == len("cartpole-v1-") + 12
    assert (manifest.seed, manifest.max_steps, manifest.episodes) == (20, 50, 4)
    assert (manifest.policy_mode, manifest.policy_output, manifest.policy_sha256) == ("sampled", "logits", actor.sha256)
    assert (manifest.component_names, manifest.action_names) == (("x", "dx", "angle", "dangle"), ("left", "right"))
    assert manifest.versions == package_versions(environment)
    assert manifest.steps == sum(map(len, played))


def test_without_a_card_names_are_numbered_and_chance_has_no_outputs(store: Store) -> None:
    manifest = collect(store, CollectConfig(**CARTPOLE))
    assert manifest.component_names == ("o0", "o1", "o2", "o3")
    assert manifest.action_names == ("a0", "a1")
    assert (manifest.policy_mode, manifest.policy_output) == ("sampled", None)
    assert read_steps(store, manifest.dataset_id).policy_output is None


def test_a_second_run_returns_the_same_dataset_and_says_so(store: Store) -> None:
    told: list[tuple[str, int, int | None]] = []
    first = collect(store, CollectConfig(**CARTPOLE), lambda *line: told.append(line))
    name = f"collect {first.dataset_id}"
    assert told == [(name, done, 5) for done in range(6)]
    told.clear()
    assert collect(store, CollectConfig(**CARTPOLE, envs=1), lambda *line: told.append(line)) == first
    assert told == [(f"{first.dataset_id} was collected before", 5, 5)]
    assert registered(store) == [first.dataset_id]


@pytest.mark.slow
def test_the_name_follows_everything_that_decides_the_rows_and_nothing_else(store: Store, tmp_path: Path) -> None:
    def name(names: list[str] | None = None, **changes: Any) -> str:
        config = CollectConfig(**{**CARTPOLE, "episodes": 2, **changes})
        return collect(store, config, component_names=names).dataset_id

    base = name()
    assert name(envs=3) == base
    others = [
        name(seed=1),
        name(episodes=3),
        name(max_steps=7),
        name(env_kwargs={"sutton_barto_reward": True}),
        name(policy=f"policy:{network(tmp_path / 'policy')}"),
        name(policy=f"policy:{tmp_path / 'policy'}", mode="sampled"),
        name(names=["x", "dx", "angle", "dangle"]),
    ]
    assert len({base, *others}) == 8


@pytest.mark.slow
def test_the_same_policy_under_another_path_is_the_same_dataset(store: Store, tmp_path: Path) -> None:
    folder = network(tmp_path / "policy")
    first = collect(store, CollectConfig(env_id="CartPole-v1", policy=f"policy:{folder}", episodes=2))
    moved = folder.rename(tmp_path / "moved")
    assert collect(store, CollectConfig(env_id="CartPole-v1", policy=f"policy:{moved}", episodes=2)) == first


def test_a_named_dataset_is_not_mistaken_for_another(store: Store) -> None:
    first = collect(store, CollectConfig(**CARTPOLE, dataset="mine"))
    assert first.dataset_id == "mine"
    assert collect(store, CollectConfig(**CARTPOLE, dataset="mine")) == first
    with pytest.raises(BadInput, match="mine exists and was made differently"):
        collect(store, CollectConfig(**CARTPOLE, dataset="mine", seed=1))
    with pytest.raises(BadInput, match="mine has 5 episodes; 6 were asked for"):
        collect(store, CollectConfig(**{**CARTPOLE, "episodes": 6}, dataset="mine"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"env_id": "CartPole-v9"},
        {"policy": "keras:model"},
        {"policy": "policy:./absent"},
        {"env_kwargs": {"nonsense": 1}},
    ],
)
def test_a_refused_collection_writes_nothing(store: Store, wrong: dict[str, Any]) -> None:
    before = sorted(path for path in store.root.rglob("*"))
    with pytest.raises(BadInput):
        collect(store, CollectConfig(**{**CARTPOLE, **wrong}))
    assert sorted(path for path in store.root.rglob("*")) == before


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"seed": -1}, {"envs": 0}, {"max_steps": 0}, {"mode": "epsilon"}])
def test_a_configuration_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CollectConfig(**{**CARTPOLE, **wrong})


@pytest.mark.slow
def test_an_interrupted_collection_goes_on_where_its_last_shard_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[int] = []
    act = RandomActor.act

    def spy(self: RandomActor, observations: np.ndarray, **rest: Any) -> Any:
        played.append(len(observations))
        return act(self, observations, **rest)

    def stop(_: str, done: int, total: int | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(RandomActor, "act", spy)
    config = CollectConfig(**{**CARTPOLE, "episodes": 8}, envs=1)
    with pytest.raises(KeyboardInterrupt):
        collect(store, config, stop, shard_bytes=1)
    assert registered(store) == []
    played.clear()
    told: list[int] = []
    manifest = collect(store, config, lambda _, done, total: told.append(done), shard_bytes=1)
    assert told == [4, 5, 6, 7, 8]
    rest = [len(episode) for episode in iterate_episodes(store, manifest.dataset_id, [4, 5, 6, 7])]
    assert len(played) == sum(rest)
    assert [shard.first_episode for shard in manifest.shards] == list(range(8))


SCRIPT = """
import sys
from flows.datasets.collection import CollectConfig, collect
from storage.store import Store

config = CollectConfig(env_id="LunarLander-v3", policy="random", episodes=40)
report = lambda _, done, total: print(done, flush=True)
collect(Store.create(sys.argv[1]), config, report, shard_bytes=12_000)
"""


def run_until(root: Path, episode: int) -> int:
    """Collect in another process, and kill it when it has told of an episode; returns its exit code."""
    command = [sys.executable, "-c", SCRIPT, str(root)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if int(line) >= episode:
                time.sleep(0.002 * (episode % 7))  # somewhere else in the work each time
                process.send_signal(signal.SIGKILL)
                break
    return process.wait(timeout=60)


@pytest.mark.slow
@in_soak
def test_a_collection_killed_again_and_again_ends_in_the_same_files_as_an_undisturbed_one(tmp_path: Path) -> None:
    config = CollectConfig(env_id="LunarLander-v3", policy="random", episodes=40)
    undisturbed = Store.create(tmp_path / "undisturbed")
    expected = collect(undisturbed, config, shard_bytes=12_000)
    killed = tmp_path / "killed"
    codes = [run_until(killed, episode) for episode in (6, 22, 40)]
    assert codes[:2] == [-signal.SIGKILL] * 2
    again = Store.create(killed)
    manifest = collect(again, config, shard_bytes=12_000)
    assert len(manifest.shards) > 10
    assert files_of(again, manifest) == files_of(undisturbed, expected)
    rows = episodes_of(undisturbed)
    assert len(rows) == 40
    assert episodes_of(again) == rows
    assert [path.name for path in again.rollouts_dir.iterdir()] == [manifest.dataset_id]
