"""Replays: exact where nothing changed, and the first difference by name where something did."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from flows.datasets.collection import CollectConfig, collect
from flows.simulation import replay as replays
from flows.simulation.actors import RandomActor
from flows.simulation.environments import make_environment
from flows.simulation.replay import Branch, Replay, check_replayable, play_branches, replay_episode
from flows.simulation.rollouts import rollout
from flows.simulation.trust import Home, Named
from refine.policies.mlp import Acts
from storage.datasets.reader import read_episode
from storage.errors import BadInput
from storage.schema import Episode, Manifest
from storage.store import Store

Cartpole = tuple[Episode, Manifest]
NEEDS_ATARI = pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs the extra atari")
NAMES = ("x", "dx", "angle", "dangle")


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Cartpole:
    """A short episode of CartPole and its dataset."""
    store = Store.create(tmp_path_factory.mktemp("replay") / "store")
    config = CollectConfig(env_id="CartPole-v1", policy="random", episodes=2, seed=5)
    manifest = collect(store, config, component_names=NAMES)
    return read_episode(store, manifest.dataset_id, 1), manifest


def home_of(manifest: Manifest) -> Home:
    return Home(Named(manifest.env_id), manifest.env_kwargs)


def play_again(episode: Episode, manifest: Manifest) -> Replay:
    return replays.play_again(episode, manifest, home_of(manifest))


def replays_of(store: Store) -> list[tuple[Any, ...]]:
    with store.catalog.read() as con:
        return con.execute("SELECT dataset_id, episode_id, exact, steps, first_mismatch FROM replays").fetchall()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "env_kwargs"),
    [
        ("CartPole-v1", {}),
        ("LunarLander-v3", {}),
        ("LunarLander-v3", {"continuous": True, "enable_wind": True}),
        ("FrozenLake-v1", {}),
        ("Hopper-v5", {}),
        pytest.param("ALE/Pong-v5", {"obs_type": "ram"}, marks=NEEDS_ATARI),
    ],
)
def test_an_episode_replays_to_the_last_bit(store: Store, env_id: str, env_kwargs: dict[str, Any]) -> None:
    config = CollectConfig(env_id=env_id, env_kwargs=env_kwargs, policy="random", episodes=4, max_steps=60, envs=2)
    manifest = collect(store, config)
    replay = replay_episode(store, manifest.dataset_id, 3)
    assert (replay.exact, replay.first_mismatch) == (True, None)
    assert replay.steps == len(read_episode(store, manifest.dataset_id, 3))
    assert replay.detail.startswith(f"exact: seed 3, {replay.steps} steps of {env_id}")


class Reckoning(gymnasium.Env[np.ndarray, Any]):
    """Computes in float32 with its action: three times 0.1 is another number with Python's 3 than with NumPy's."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.random(1, dtype=np.float32)
        return self.state.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(np.float32(0.1) * action)
        self.state = (self.state + reward).astype(np.float32)
        return self.state.copy(), reward, False, False, {}


@pytest.mark.slow
def test_collection_replay_and_branches_hand_over_actions_alike(store: Store) -> None:
    gymnasium.register("Reckoning-v0", entry_point=Reckoning, max_episode_steps=40)
    manifest = collect(store, CollectConfig(env_id="Reckoning-v0", policy="random", episodes=3))
    episode = read_episode(store, manifest.dataset_id, 1)
    assert set(episode.rewards[episode.actions == 3]) == {float(np.float32(0.1)) * 3}
    assert float(np.float32(0.1) * 3) != float(np.float32(0.1)) * 3
    assert replay_episode(store, manifest.dataset_id, 1).exact
    branch = Branch(0, episode, 7, episode.actions[7], pair=0)
    (ending,) = play_branches([branch], manifest, home_of(manifest), Logged(episode), mode="greedy", horizon=None)
    assert ending.difference is None
    assert ending.return_ == sum(episode.rewards[7:].tolist())


class Logged:
    """Acts at every observation as an episode did."""

    def __init__(self, episode: Episode) -> None:
        self._known = dict(zip(episode.observations[:-1, 0].tolist(), episode.actions, strict=True))

    def act(self, observations: np.ndarray, *, mode: str = "greedy", rngs: Any = None) -> Acts:
        actions = np.array([self._known[shown] for shown in observations[:, 0].tolist()])
        return Acts(actions, np.empty((len(actions), 0), np.float32))


def test_a_replay_is_recorded_once(store: Store) -> None:
    manifest = collect(store, CollectConfig(env_id="CartPole-v1", policy="random", episodes=3))
    steps = replay_episode(store, manifest.dataset_id, 2).steps
    replay_episode(store, manifest.dataset_id, 2)
    assert replays_of(store) == [(manifest.dataset_id, 2, True, steps, None)]
    with pytest.raises(BadInput, match="no episode 9"):
        replay_episode(store, manifest.dataset_id, 9)


@pytest.mark.slow
def test_an_episode_that_was_cut_replays_exactly(cartpole: Cartpole) -> None:
    episode, manifest = cartpole
    cut = replace(shortened(episode, 4), truncated=True, terminated=False)
    assert play_again(cut, manifest.model_copy(update={"max_steps": 4})).exact
    assert play_again(cut, manifest).detail.startswith("step 3, truncated: logged True, replayed False")


def shortened(episode: Episode, steps: int) -> Episode:
    """The beginning of an episode, with its flags as they were."""
    return replace(
        episode,
        observations=episode.observations[: steps + 1],
        actions=episode.actions[:steps],
        rewards=episode.rewards[:steps],
    )


def nudged(array: np.ndarray, place: Any) -> np.ndarray:
    """The same array with one number moved to its nearest neighbour."""
    changed = array.copy()
    changed[place] = np.nextafter(changed[place], np.inf, dtype=array.dtype)
    return changed


@pytest.mark.parametrize(
    ("change", "step", "what"),
    [
        (lambda e: replace(e, observations=nudged(e.observations, (6, 2))), 6, "observation angle"),
        (lambda e: replace(e, observations=nudged(e.observations, (0, 1))), 0, "observation dx"),
        (lambda e: replace(e, observations=nudged(e.observations, (len(e), 0))), -1, "observation x"),
        (lambda e: replace(e, rewards=nudged(e.rewards, 3)), 3, "reward: logged 1.0000000000000002, replayed 1.0"),
        (lambda e: replace(e, seed=77), 0, "observation x"),
        (lambda e: replace(e, truncated=True), -2, "truncated: logged True, replayed False"),
        (lambda e: replace(e, actions=1 - e.actions), 1, "observation dx"),
    ],
)
def test_the_first_difference_is_named(
    cartpole: Cartpole, change: Callable[[Episode], Episode], step: int, what: str
) -> None:
    episode, manifest = cartpole
    replay = play_again(change(episode), manifest)
    expected = step if step >= 0 else len(episode) + 1 + step
    assert (replay.exact, replay.first_mismatch, replay.steps) == (False, expected, len(episode))
    assert replay.detail.startswith(f"step {expected}, {what}")
    assert "the versions are the same" in replay.detail


def test_an_episode_that_ended_before_the_environment_does_is_told_apart(cartpole: Cartpole) -> None:
    episode, manifest = cartpole
    replay = play_again(shortened(episode, 5), manifest)
    assert (replay.first_mismatch, replay.detail.partition(":")[0]) == (4, "step 4, terminated")


def test_changed_versions_are_named_as_the_likely_cause(cartpole: Cartpole) -> None:
    episode, manifest = cartpole
    old = manifest.model_copy(update={"versions": {**manifest.versions, "gymnasium": "0.9"}})
    detail = play_again(replace(episode, rewards=nudged(episode.rewards, 0)), old).detail
    assert f"likely because of gymnasium 0.9 then, {manifest.versions['gymnasium']} now" in detail


def test_a_negative_zero_is_not_a_zero(cartpole: Cartpole) -> None:
    _, manifest = cartpole
    lander = manifest.model_copy(update={"env_id": "LunarLander-v3", "component_names": tuple("abcdefgh")})
    (episode,) = rollout(lambda: make_environment("LunarLander-v3"), RandomActor(manifest.action_space), [1])
    assert play_again(episode, lander).exact
    assert episode.observations[2, 6] == 0.0
    changed = episode.observations.copy()
    changed[2, 6] = -changed[2, 6]
    replay = play_again(replace(episode, observations=changed), lander)
    assert replay.detail.startswith("step 2, observation g: logged -0.0, replayed 0.0")


def test_without_environment_or_seed_there_is_no_replay(cartpole: Cartpole) -> None:
    episode, manifest = cartpole
    with pytest.raises(BadInput, match="recorded without a seed"):
        check_replayable(replace(episode, seed=None), manifest)
    with pytest.raises(BadInput, match="recorded without an environment"):
        check_replayable(episode, manifest.model_copy(update={"env_id": None}))


def test_the_environment_is_made_with_the_datasets_arguments(cartpole: Cartpole) -> None:
    episode, manifest = cartpole
    rewarded = manifest.model_copy(update={"env_kwargs": {"sutton_barto_reward": True}})
    assert play_again(episode, manifest).exact
    assert play_again(episode, rewarded).detail.startswith("step 0, reward: logged 1.0, replayed 0.0")
