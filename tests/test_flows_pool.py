"""envpool as the engine: an episode is what its seed makes it, a dataset says which engine made it, and it replays."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.datasets.collection import CollectConfig, collect
from flows.simulation.actors import RandomActor
from flows.simulation.environments import look_up_spaces
from flows.simulation.envpool_engine import make_pool, play_pooled
from flows.simulation.replay import replay_episode
from flows.simulation.rollouts import Playing
from storage.datasets.reader import list_datasets, read_episode, read_manifest
from storage.errors import BadInput, Prerequisite
from storage.schema import Episode, Manifest, canonical_json
from storage.store import Store

HAS_ENVPOOL = importlib.util.find_spec("envpool") is not None
needs_envpool = pytest.mark.skipif(not HAS_ENVPOOL, reason="envpool is not installed")
ENVIRONMENTS = ["CartPole-v1", "LunarLander-v3", "Pendulum-v1", "FrozenLake-v1", "Hopper-v5", "Walker2d-v5"]


def config_for(env_id: str, **options: Any) -> CollectConfig:
    return CollectConfig(env_id=env_id, policy="random", mode="sampled", episodes=7, **options)


def bits_of(episode: Episode) -> tuple[Any, ...]:
    arrays = (episode.observations, episode.actions, episode.rewards)
    plain = (episode.episode_id, episode.seed, episode.terminated, episode.truncated)
    return (*plain, *(array.tobytes() for array in arrays), *(array.dtype for array in arrays))


def play(env_id: str, lanes: int, **options: Any) -> list[Episode]:
    actor = RandomActor(look_up_spaces(env_id).action)
    playing = Playing(env_id, {}, actor, range(40, 47), "sampled", envs=lanes)
    return list(play_pooled(playing, **options))


@needs_envpool
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_an_episode_of_envpool_does_not_depend_on_how_many_run_beside_it(env_id: str) -> None:
    alone = play(env_id, 1, max_steps=90)
    assert [(episode.episode_id, episode.seed) for episode in alone] == list(zip(range(7), range(40, 47), strict=True))
    for lanes in (3, 7, 64):
        assert list(map(bits_of, play(env_id, lanes, max_steps=90))) == list(map(bits_of, alone))


@needs_envpool
def test_an_episode_of_envpool_does_not_depend_on_the_size_of_its_pool() -> None:
    whole = play("LunarLander-v3", 2, max_steps=90)
    pooled = play("LunarLander-v3", 2, max_steps=90, pool_size=3)
    assert list(map(bits_of, pooled)) == list(map(bits_of, whole))


@needs_envpool
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_a_dataset_of_envpool_says_so_and_replays_in_envpool_to_the_last_bit(tmp_path: Path, env_id: str) -> None:
    store = Store.create(tmp_path / "store")
    manifest = collect(store, config_for(env_id, engine="envpool"))
    assert read_manifest(store, manifest.dataset_id).engine == "envpool"
    assert {"envpool", "numpy", "gymnasium"} <= manifest.versions.keys()
    replays = [replay_episode(store, manifest.dataset_id, episode_id) for episode_id in range(7)]
    assert all(replay.exact for replay in replays), replays


@needs_envpool
def test_the_two_engines_give_two_datasets_of_one_shape(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    pooled, plain = (collect(store, config_for("CartPole-v1", engine=engine)) for engine in ("envpool", "gymnasium"))
    assert len(list_datasets(store)) == 2
    assert (pooled.observation_space, pooled.action_space) == (plain.observation_space, plain.action_space)
    one, other = (read_episode(store, manifest.dataset_id, 0) for manifest in (pooled, plain))
    assert one.observations.tobytes() != other.observations.tobytes()
    np.testing.assert_allclose(one.observations[0], other.observations[0], atol=0.1)


@needs_envpool
def test_the_time_limit_and_the_cut_of_envpool_are_truncations() -> None:
    assert {(len(episode), episode.truncated) for episode in play("Pendulum-v1", 4)} == {(200, True)}
    assert {(len(episode), episode.truncated) for episode in play("Pendulum-v1", 4, max_steps=9)} == {(9, True)}


@needs_envpool
@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "seed", "problem"),
    [
        ("MountainCar-v9", {}, 0, "envpool has no environment 'MountainCar-v9'"),
        ("LunarLander-v3", {"continuous": True}, 0, "envpool cannot make LunarLander-v3 with .*continuous"),
        ("CartPole-v1", {}, 2**31, "2147483648 is too large for envpool"),
    ],
)
def test_what_envpool_does_not_take_is_refused(env_id: str, env_kwargs: Any, seed: int, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        make_pool(env_id, env_kwargs, look_up_spaces("CartPole-v1"), [seed])


@needs_envpool
def test_an_environment_that_is_another_one_in_envpool_is_refused() -> None:
    with pytest.raises(BadInput, match="Pendulum-v1 is another environment in envpool"):
        make_pool("Pendulum-v1", {}, look_up_spaces("CartPole-v1"), [0])


@pytest.mark.skipif(HAS_ENVPOOL, reason="envpool is installed")
def test_without_envpool_its_datasets_are_neither_made_nor_replayed(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    with pytest.raises(Prerequisite, match="needs the package envpool"):
        collect(store, config_for("CartPole-v1", engine="envpool"))
    assert list_datasets(store) == []


@pytest.mark.slow
def test_a_manifest_of_gymnasium_keeps_the_bytes_that_it_had_before_there_were_engines(tmp_path: Path) -> None:
    manifest = collect(Store.create(tmp_path / "store"), config_for("CartPole-v1"))
    assert manifest.engine == "gymnasium"
    assert '"engine"' not in canonical_json(manifest)
    assert '"engine":"envpool"' in canonical_json(manifest.model_copy(update={"engine": "envpool"}))
    assert Manifest.model_validate_json(canonical_json(manifest)) == manifest
