"""What an environment may give: numbers as its spaces promise them. All else ends in one sentence, with its place."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from soak import SOAK

from flows.datasets.collection import CollectConfig, collect
from flows.simulation import rollouts as rollouts
from flows.simulation.actors import RandomActor
from flows.simulation.environments import make_environment, spaces_of
from flows.simulation.envpool_engine import play_pooled
from flows.simulation.rollouts import Playing, rollout
from refine.policies.mlp import Acts
from storage.datasets.reader import iterate_episodes
from storage.errors import BadInput, TrajnoteWarning
from storage.schema import Array
from storage.store import Store


def config(name: str, **changes: Any) -> CollectConfig:
    env_id = f"odd_environments:{name}-v0"
    given: dict[str, Any] = {"env_id": env_id, "policy": "random", "episodes": 6, "dataset": name.lower()}
    return CollectConfig(**{**given, **changes})


BROKEN = [
    ("NanReward", "Episode 2, step 2: its reward is not finite: nan"),
    ("InfReward", "Episode 2, step 2: its reward is not finite: -inf"),
    ("NoReward", "Episode 2, step 2: its reward is None; a single number"),
    ("ListReward", r"Episode 2, step 2: its reward is array\(\[1\.\]\) of shape \(1,\); a single number"),
    ("TextReward", "Episode 2, step 2: its reward is 'much'; a single number"),
    ("NanObservation", r"Episode 2, step 3: its observation is not finite: \[nan, 0.0\]"),
    ("InfObservation", r"Episode 2, step 3: its observation is not finite: \[0.0, inf\]"),
    ("HugeObservation", "Episode 2, step 3: its observation is not finite"),
    ("LongObservation", r"Episode 2, step 2: its observation is .* of shape \(3,\); .* of shape \(2,\)"),
    ("ShortObservation", r"Episode 2, step 2: its observation is .* of shape \(1,\); .* of shape \(2,\)"),
    ("NoObservation", r"Episode 2, step 2: its observation is None of shape \(\)"),
    ("RaggedObservation", "Episode 2, step 2: its observation is a list of lists of different lengths"),
    ("HalfInteger", r"Episode 2, step 2: its observation \[0.5, 0.0\] is not int64"),
    ("Crash", "Episode 2, step 2: its environment raised RuntimeError: sensor lost"),
]
AT_ONCE = (1, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "envs"),
    list(itertools.product(BROKEN, AT_ONCE))
    if SOAK
    else list(zip(BROKEN[::2], itertools.cycle(AT_ONCE), strict=False)),
    ids=lambda given: given[0] if isinstance(given, tuple) else str(given),
)
def test_what_cannot_be_stored_is_named_and_the_episodes_before_it_are_kept(
    store: Store, case: tuple[str, str], envs: int
) -> None:
    name, message = case
    with pytest.raises(BadInput, match=message) as refusal:
        collect(store, config(name, envs=envs))
    assert (
        refusal.value.hint == "2 whole episodes before it are kept for the next run; --episodes 2 asks for these alone."
    )
    assert not store.dataset_dir(name.lower()).exists()
    made = collect(store, config(name, episodes=2))
    assert (made.episodes, len(made.shards)) == (2, 1)
    alone = collect(store, config(name, episodes=2, dataset="alone"))
    assert alone.shards == made.shards  # the kept episodes are those that a run of its own makes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OldStep", "Episode 0, step 0: its step does not return observation, reward, terminated, truncated and info"),
        ("OldReset", "Episode 0, step 0: its reset does not return an observation and info"),
        ("NoSeed", "Episode 0, step 0: its reset takes no seed; it has to begin with `def reset"),
    ],
)
def test_the_interface_of_old_environments_is_explained(store: Store, name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        collect(store, config(name))


def test_an_episode_without_end_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "LONGEST", 50)
    with pytest.raises(
        BadInput, match="Episode 0, step 49: it has not ended after 50 steps; truncate it with --max-steps"
    ):
        collect(store, config("Never"))
    assert collect(store, config("Never", max_steps=60, episodes=2)).steps == 120


@pytest.mark.slow
def test_whole_numbers_and_lists_are_taken_as_what_they_are(store: Store) -> None:
    assert collect(store, config("IntReward")).steps == 30
    collect(store, config("ListObservation"))
    assert next(e for e in iterate_episodes(store, "listobservation") if e.episode_id == 2).observations[
        3
    ].tolist() == [
        0.25,
        1.0,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["", "processes"])
def test_that_observations_are_rounded_to_the_type_of_their_space_is_said_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    monkeypatch.setenv("TRAJNOTE_RUNNER", runner)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with pytest.warns(TrajnoteWarning) as said:
        collect(store, config("WideObservation"))
    assert [str(warning.message) for warning in said] == [
        "the environment gives observations as float64, but its space promises float32: the policy and the dataset "
        "see them rounded to float32"
    ]
    kept = next(e for e in iterate_episodes(store, "wideobservation") if e.episode_id == 2)
    assert kept.observations[3].tolist() == [float(np.float32(0.1)), 0.0]


def test_processes_keep_the_whole_episodes_before_the_one_that_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJNOTE_RUNNER", "processes")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with pytest.raises(BadInput, match="Episode 2, step 2: its reward is not finite") as refusal:
        collect(store, config("NanReward"))
    assert refusal.value.hint.startswith("2 whole episodes before it are kept")


def test_a_policy_that_gives_no_finite_number_is_named(store: Store) -> None:
    make = partial(make_environment, "MountainCarContinuous-v0")
    environment = make()
    spaces = spaces_of(environment)
    environment.close()

    class Broken(RandomActor):
        def act(self, observations: Array, **options: Any) -> Acts:
            acts = super().act(observations, **options)
            return Acts(acts.actions, np.full((len(observations), 1), np.nan, np.float32))

    with pytest.raises(BadInput, match=r"Episode 0, step 0: the policy's output is not finite: \[nan\]"):
        list(rollout(make, Broken(spaces.action), [0]))


def test_a_pool_that_gives_no_finite_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = make_environment("CartPole-v1")
    spaces = spaces_of(environment)
    environment.close()

    class Pool:
        def reset(self) -> Any:
            return np.zeros((2, 4), np.float32), {}

        def step(self, actions: Array, ids: Array) -> Any:
            shown = np.zeros((len(ids), 4), np.float32)
            shown[ids == 1, 2] = np.inf
            return shown, np.ones(len(ids)), np.zeros(len(ids), bool), np.zeros(len(ids), bool), {}

    monkeypatch.setattr("flows.simulation.envpool_engine.make_pool", lambda *_: Pool())
    episodes = play_pooled(Playing("CartPole-v1", {}, RandomActor(spaces.action), [5, 6], "sampled", first_id=10))
    with pytest.raises(BadInput, match=r"Episode 11, step 1: its observation is not finite: \[0.0, 0.0, inf, 0.0\]"):
        next(episodes)


@pytest.mark.slow
def test_what_an_environment_prints_does_not_stand_in_the_answer(
    run: Callable[[list[str]], str], tmp_path: Path
) -> None:
    words = ["collect", "--env", "odd_environments:Loud-v0", "--policy", "random", "--episodes", "1", "--json"]
    assert json.loads(run([*words, "--store", str(tmp_path / "store")]))["steps"] == 5
