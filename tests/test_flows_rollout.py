"""Rollouts: an episode is what its seed, policy and mode make it, whatever runs beside it, in one process or many."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import OrderEnforcing, RecordEpisodeStatistics, TimeLimit
from soak import in_soak

from flows.simulation.actors import Answer, Foreign, ForeignActor, NetworkActor, RandomActor, legal_action
from flows.simulation.environments import bare_step, make_environment, spaces_of
from flows.simulation.rollouts import acting_generator, play, returns_of, rollout
from flows.simulation.workers import play_policies
from refine.policies.mlp import Acts, MlpPolicy
from storage.errors import BadInput
from storage.schema import Episode, Space


def network_for(env_id: str, env_kwargs: dict[str, Any] | None = None, *, seed: int = 0) -> MlpPolicy:
    """A random perceptron for an environment, stochastic in both kinds of action."""
    observation, action = spaces_of(make_environment(env_id, env_kwargs))
    rng = np.random.default_rng(seed)
    sizes = [observation.n or observation.size, 16, action.n or action.size]
    pairs = list(itertools.pairwise(sizes))
    return MlpPolicy(
        observation,
        action,
        tuple(rng.standard_normal(pair) for pair in pairs),
        tuple(rng.standard_normal(pair[1]) for pair in pairs),
        "tanh",
        "logits" if action.is_discrete else "clip",
        log_std=None if action.is_discrete else np.zeros(action.size),
    )


def same_bits(one: Episode, other: Episode) -> bool:
    arrays = ("observations", "actions", "rewards", "policy_outputs")
    plain = ("episode_id", "seed", "terminated", "truncated")
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in arrays) and all(
        getattr(one, name) == getattr(other, name) for name in plain
    )


class Counting(gymnasium.Env[np.ndarray, int]):
    """Counts its steps in one reused array; ends by itself after `seed` steps; rewards are the actions taken."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.state, self.end = np.zeros(2), seed
        return self.state, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.state += (1, action)
        return self.state, float(action), self.state[0] == self.end, False, {}


class Alternating:
    """Acts 5, 6, 7, 5, ... by the step that the observation shows; its output is the observation."""

    def act(self, observations: np.ndarray, *, mode: str = "greedy", rngs: Any = None) -> Acts:
        return Acts(5 + observations[:, 0].astype(np.int64) % 3, observations.astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "env_kwargs"),
    [
        ("CartPole-v1", {}),
        ("LunarLander-v3", {}),
        ("LunarLander-v3", {"continuous": True}),
        ("FrozenLake-v1", {}),
        ("Hopper-v5", {}),
    ],
)
@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_an_episode_does_not_depend_on_how_many_run_beside_it(
    env_id: str, env_kwargs: dict[str, Any], mode: Any
) -> None:
    make, network = partial(make_environment, env_id, env_kwargs), network_for(env_id, env_kwargs)
    play_with = partial(rollout, make, network, range(40, 47), mode=mode, max_steps=60)
    alone = list(play_with(envs=1))
    assert [episode.seed for episode in alone] == list(range(40, 47))
    for envs in (3, 7, 16):
        assert all(same_bits(*pair) for pair in zip(alone, play_with(envs=envs), strict=True))


def test_an_episode_does_not_depend_on_what_was_played_before_it() -> None:
    make, network = partial(make_environment, "LunarLander-v3"), network_for("LunarLander-v3")
    many = list(rollout(make, network, [3, 9, 4], mode="sampled", envs=2))
    (single,) = rollout(make, network, [4], mode="sampled", first_id=2)
    assert same_bits(many[2], single)


def test_environments_that_are_slow_to_make_are_fewer_and_the_episodes_the_same() -> None:
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return make_environment("CartPole-v1")

    play_all = partial(rollout, make, network_for("CartPole-v1"), range(6), mode="sampled")
    many = list(play_all(making_s=3600.0))
    assert len(made) == 6
    assert all(same_bits(*pair) for pair in zip(many, play_all(making_s=0.0), strict=True))
    assert len(made) == 7


def test_episodes_come_in_the_order_of_their_seeds_with_everything_that_happened() -> None:
    seeds = [9, 1, 4, 2]
    episodes = list(rollout(Counting, Alternating(), seeds, envs=2, first_id=10))
    assert [(episode.episode_id, episode.seed) for episode in episodes] == [(10, 9), (11, 1), (12, 4), (13, 2)]
    assert [len(episode) for episode in episodes] == seeds
    nine = episodes[0]
    actions = [5, 6, 7] * 3
    np.testing.assert_array_equal(nine.actions, actions)
    np.testing.assert_array_equal(nine.rewards, actions)
    np.testing.assert_array_equal(nine.observations[:, 0], range(10))
    np.testing.assert_array_equal(nine.observations[:, 1], np.cumsum([0, *actions]))
    np.testing.assert_array_equal(nine.policy_outputs, nine.observations[:-1])
    assert nine.return_ == 54.0
    assert (nine.terminated, nine.truncated) == (True, False)
    assert nine.observations.dtype == np.float64
    assert nine.actions.dtype == np.int64


def test_long_episodes_outgrow_the_tape_without_losing_a_step() -> None:
    seeds = [1500, 3, 700, 2, 2, 2]
    episodes = list(rollout(Counting, Alternating(), seeds, envs=3))
    assert [len(episode) for episode in episodes] == seeds
    for episode in episodes:
        np.testing.assert_array_equal(episode.observations[:, 0], range(len(episode) + 1))


def test_a_cut_episode_is_truncated_at_the_cut_and_an_ended_one_is_not() -> None:
    cut, ended, both = rollout(Counting, Alternating(), [9, 3, 4], max_steps=4)
    assert (len(cut), cut.terminated, cut.truncated) == (4, False, True)
    assert (len(ended), ended.terminated, ended.truncated) == (3, True, False)
    assert (len(both), both.terminated, both.truncated) == (4, True, False)


def test_an_environments_own_time_limit_is_a_truncation() -> None:
    make = partial(make_environment, "Pendulum-v1", {"max_episode_steps": 5})
    (episode,) = rollout(make, network_for("Pendulum-v1"), [0])
    assert (len(episode), episode.terminated, episode.truncated) == (5, False, True)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3, 4, 5])
@pytest.mark.parametrize("max_steps", [None, 3, 4, 5])
def test_flags_at_a_time_limit_are_those_that_gymnasium_gives(limit: int, max_steps: int | None) -> None:
    """The environment ends by itself after 4 steps; the limit comes before, at the same time or later."""
    given: list[tuple[bool, bool]] = []
    with_limit = TimeLimit(Specified(), limit)
    with_limit.reset(seed=4)
    while not given or not any(given[-1]):
        given.append(with_limit.step(5)[2:4])
    steps = min(len(given), max_steps or limit)
    terminated, truncated = given[steps - 1]

    (episode,) = rollout(lambda: TimeLimit(Specified(), limit), Alternating(), [4], max_steps=max_steps)
    assert len(episode) == steps
    assert (episode.terminated, episode.truncated) == (terminated, truncated or not terminated)


class Specified(Counting):
    """Has a specification, as what `gymnasium.make` returns."""

    spec = gymnasium.envs.registration.EnvSpec("Counting-v0")


def test_only_gymnasiums_own_outermost_wrappers_are_looked_through() -> None:
    class OwnLimit(TimeLimit):
        pass

    inner, without_specification = Specified(), Counting()
    assert bare_step(TimeLimit(OrderEnforcing(inner), 9)) == (inner.step, 9)
    assert bare_step(OrderEnforcing(inner)) == (inner.step, sys.maxsize)
    for kept in (OwnLimit(inner, 9), TimeLimit(without_specification, 9), RecordEpisodeStatistics(inner)):
        assert bare_step(kept) == (kept.step, sys.maxsize)
    doubly = TimeLimit(TimeLimit(inner, 9), 5)
    assert bare_step(doubly) == (doubly.env.step, 5)


def test_continuous_actions_are_logged_as_they_were_executed() -> None:
    executed: list[np.ndarray] = []

    class Spy(gymnasium.Wrapper):
        def step(self, action: np.ndarray) -> Any:
            executed.append(action.copy())
            result = self.env.step(action)
            action[:] = 99.0  # an environment that spoils what it was given
            return result

    network = network_for("Pendulum-v1")
    (episode,) = rollout(lambda: Spy(make_environment("Pendulum-v1")), network, [1], mode="sampled", max_steps=50)
    np.testing.assert_array_equal(episode.actions, executed)
    assert np.abs(episode.actions).max() == 2.0
    assert episode.actions.dtype == np.float32


def test_environments_are_closed_also_when_only_some_episodes_are_taken() -> None:
    closed: list[int] = []

    class Closing(Counting):
        def close(self) -> None:
            closed.append(1)

    episodes = rollout(Closing, Alternating(), [1, 2, 3], envs=2)
    next(episodes)
    episodes.close()
    assert len(closed) == 2


def test_no_seeds_are_no_episodes() -> None:
    assert list(rollout(Counting, Alternating(), [])) == []


def test_an_observation_of_another_shape_than_promised_is_refused() -> None:
    class Wrong(Counting):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(1), {}

    with pytest.raises(BadInput, match=r"shape \(1,\).*promises numbers of shape \(2,\)"):
        list(rollout(Wrong, Alternating(), [0]))


def test_chance_has_its_own_stream_per_seed() -> None:
    draws = {seed: acting_generator(seed).random() for seed in (0, 1, 2)}
    assert len(set(draws.values())) == 3
    assert draws[1] == acting_generator(1).random()
    assert draws[1] != np.random.default_rng(1).random()


def test_random_actions_are_uniform_over_a_shifted_discrete_space() -> None:
    actor = RandomActor(Space(kind="discrete", dtype="int64", size=1, n=3, start=5))
    generators = [acting_generator(seed) for seed in range(6000)]
    actions, outputs = actor.act(np.zeros((6000, 2)), rngs=generators)
    counts = np.bincount(actions, minlength=8)
    assert counts[:5].sum() == 0
    assert np.all(np.abs(counts[5:] - 2000) < 150)  # 4 standard deviations
    assert outputs.shape == (6000, 0)


def test_random_actions_fill_a_box_and_leave_open_ends_open() -> None:
    bounds = {"low": (-3.0, 2.0, -np.inf, -np.inf), "high": (1.0, np.inf, 4.0, np.inf)}
    actor = RandomActor(Space(kind="box", dtype="float32", size=4, **bounds))
    actions, _ = actor.act(np.zeros((4000, 1)), rngs=[acting_generator(seed) for seed in range(4000)])
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions.mean(axis=0), [-1.0, 3.0, 3.0, 0.0], atol=0.1)
    np.testing.assert_allclose(actions.std(axis=0), [4 / 12**0.5, 1.0, 1.0, 1.0], atol=0.1)
    assert actions[:, 0].min() >= -3
    assert actions[:, 0].max() <= 1
    assert actions[:, 1].min() >= 2
    assert actions[:, 2].max() <= 4


def test_random_integers_stay_inside_an_integer_box() -> None:
    actor = RandomActor(Space(kind="box", dtype="int64", size=1, low=(-1.0,), high=(2.0,)))
    actions, _ = actor.act(np.zeros((2000, 1)), rngs=[acting_generator(seed) for seed in range(2000)])
    assert np.bincount(actions[:, 0] + 1).tolist() == pytest.approx([500] * 4, abs=80)


@pytest.mark.parametrize(
    ("action", "problem"),
    [(7.5, "takes 5 .. 7"), (4, "takes 5 .. 7"), (8, "takes 5 .. 7"), ([5, 6], "1 number"), (np.nan, "not finite")],
)
def test_an_illegal_action_is_refused_with_what_is_legal(action: Any, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        legal_action(action, Space(kind="discrete", dtype="int64", size=1, n=3, start=5), "py:m:f")


def test_a_continuous_action_is_cut_to_the_bounds() -> None:
    box = Space(kind="box", dtype="float32", size=2, low=(-1.0, -2.0), high=(1.0, 2.0))
    np.testing.assert_array_equal(legal_action([3.0, -0.5], box, "py:m:f"), np.float32([[1.0, -0.5]]))


def test_returns_are_those_of_the_episodes() -> None:
    np.testing.assert_array_equal(returns_of(Counting, Alternating(), [3, 1, 4], envs=2), [18.0, 5.0, 23.0])
    environments = [Counting()]
    assert [episode.return_ for episode in play(environments, Alternating(), [2, 2])] == [11.0, 11.0]


@pytest.mark.slow
def test_processes_return_what_one_process_returns_to_the_last_bit() -> None:
    policies = [network_for("LunarLander-v3", seed=seed) for seed in range(3)]
    told: list[tuple[int, int]] = []
    evaluate = partial(play_policies, "LunarLander-v3", {}, policies, range(70, 81), "sampled")
    many = np.array(list(evaluate(workers=2, advance=lambda done, total: told.append((done, total)))))
    assert many.shape == (3, 11)
    assert many.tobytes() == np.array(list(evaluate(workers=1))).tobytes()
    one = returns_of(partial(make_environment, "LunarLander-v3"), policies[1], range(70, 81), mode="sampled")
    assert many[1].tobytes() == one.tobytes()
    assert told[-1] == (33, 33)
    assert told == sorted(told)
    lengths: list[int] = []
    own = [[72], range(70, 80), range(75, 81)]
    some = list(play_policies("LunarLander-v3", {}, policies, own, "sampled", 2, lengths=lengths))
    assert [len(returns) for returns in some] == [1, 10, 6]
    assert len(lengths) == 17
    for number, seeds in enumerate(own):
        assert some[number].tobytes() == many[number][np.array(seeds) - 70].tobytes()


@pytest.mark.slow
@in_soak  # those of any work do, in test_flows_runners.py
def test_an_error_in_a_process_reaches_the_caller_and_the_next_call_works() -> None:
    with pytest.raises(BadInput, match="Unknown environment 'LunarLander'"):
        list(play_policies("LunarLander", {}, [network_for("LunarLander-v3")] * 2, range(9), workers=2))
    returns = np.array(list(play_policies("CartPole-v1", {}, [network_for("CartPole-v1")], range(9), workers=2)))
    assert returns.shape == (1, 9)


SCRIPT = """
import numpy as np, sys
from pathlib import Path
from flows.simulation.workers import play_policies
from refine.policies.mlp import Acts

class Slow:
    def act(self, observations, *, mode="greedy", rngs=None):
        import os, time
        learners = [name for name in ("torch", "d3rlpy", "duckdb", "prefect") if name in sys.modules]
        Path(f"pids/{os.getpid()}").write_text(" ".join(learners))
        time.sleep(0.02)
        return Acts(np.zeros(len(observations), np.int64), np.zeros((len(observations), 0), np.float32))

if __name__ == "__main__":
    list(play_policies("CartPole-v1", {}, [Slow()] * 500, range(16), workers=2))
"""


def wait_until(condition: Callable[[], bool]) -> bool:
    return any(condition() or time.sleep(0.05) for _ in range(2400))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_processes_load_no_learner_and_end_when_the_parent_is_interrupted_or_killed(
    tmp_path: Path, sent: signal.Signals
) -> None:
    (tmp_path / "slow.py").write_text(SCRIPT)
    (tmp_path / "pids").mkdir()
    root = str(Path(__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, "slow.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert wait_until(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
        pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
        parent.send_signal(sent)
        _, errors = parent.communicate(timeout=20)
        assert wait_until(lambda: not any(map(is_alive, pids)))
        assert [path.read_text() for path in (tmp_path / "pids").iterdir()] == ["", ""]
        assert errors.count("Traceback") == (1 if sent == signal.SIGINT else 0), errors
    finally:
        parent.kill()


def test_a_foreign_policy_loads_again_after_it_travelled() -> None:
    spaces = spaces_of(make_environment("CartPole-v1"))
    actor = ForeignActor("py:math:floor", "0", spaces, load_ones)
    assert actor.act(np.zeros((2, 4))).actions.tolist() == [1, 1]
    travelled = pickle.loads(pickle.dumps(actor))
    assert "foreign" not in travelled.__dict__
    assert travelled.act(np.zeros((3, 4))).actions.tolist() == [1, 1, 1]
    assert not isinstance(actor, NetworkActor | MlpPolicy)


def load_ones(spec: str, spaces: Any) -> Foreign:
    return Foreign(lambda observation, mode, rng: Answer(np.ones(len(observation))))
