"""Small experiments in an environment: wandering about, and the same moment lived twice with different actions.

What the outcomes are good for is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from annotate.cards import Card
from storage.errors import BadInput
from storage.schema import Array

MakeEnv = Callable[[], gymnasium.Env[Any, Any]]
_LONGEST_HOLD = 30
_LONGEST_PREFIX = 60


@dataclass(frozen=True)
class Steps:
    """Single steps from many episodes, N in all."""

    before: NDArray[np.float64]  # (N, n) observations
    after: NDArray[np.float64]  # (N, n) observations
    actions: NDArray[np.float64]  # (N,) index of the action when discrete, else (N, m)
    rewards: NDArray[np.float64]  # (N,)
    terminated: NDArray[np.bool_]  # (N,)

    def named(self, card: Card) -> dict[str, Array]:
        """The values that a card's expressions speak of, (N,) each."""
        before = dict(zip(card.component_names, self.before.T, strict=True))
        after = {f"next_{name}": column for name, column in zip(card.component_names, self.after.T, strict=True)}
        if card.is_discrete:
            acts = {f"action_{name}": self.actions == index for index, name in enumerate(card.action_names)}
        else:
            acts = {f"action_{name}": self.actions[:, index] for index, name in enumerate(card.action_names)}
        acts = {name: column.astype(np.float64) for name, column in acts.items()}
        return before | after | acts | {"reward": self.rewards, "terminated": self.terminated}


def wander(env: gymnasium.Env[Any, Any], *, steps: int, resets: Sequence[Mapping[str, Any]] = ()) -> Steps:
    """Act at random for a number of steps, in episodes of seeds 0, 1, 2, ...

    Every other episode holds each random action for up to 30 steps, which reaches states that shivering does not.

    Args:
        env: the environment.
        steps: number of steps; the last episode is cut there.
        resets: options of reset, each used in turn with the plain reset.
    """
    rows: list[tuple[Array, Array, Array, float, bool]] = []
    episode = 0
    while len(rows) < steps:
        options = (None, *resets)[episode % (len(resets) + 1)]
        hold = _LONGEST_HOLD if episode // (len(resets) + 1) % 2 else 1
        rows += list(_episode(env, episode, options, hold, limit=steps - len(rows)))
        episode += 1
    before, after, actions, rewards, terminated = zip(*rows, strict=True)
    flat = [np.stack(part).reshape(len(rows), -1).astype(np.float64) for part in (before, after, actions)]
    acts = flat[2][:, 0] - _start(env) if _is_discrete(env) else flat[2]
    return Steps(flat[0], flat[1], acts, np.asarray(rewards, dtype=np.float64), np.asarray(terminated, dtype=np.bool_))


@dataclass(frozen=True)
class Life:
    """What followed from one moment."""

    start: NDArray[np.float64]  # (n,) the observation of the moment
    end: NDArray[np.float64] | None  # (n,) the observation afterwards; None if the episode ended on the way


class Twins:
    """The same moment again and again, with different actions after it.

    Trial i resets with seed i and takes up to 60 random actions; the environment is deterministic given both, so that
    any difference afterwards is the action's doing.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._env = env
        self._known: dict[tuple[object, ...], Life | None] = {}

    def outcome(self, trial: int, action: Array, *, steps: int, wandered: bool) -> Life | None:
        """What follows from holding an action at a moment.

        Args:
            trial: number of the moment.
            action: what is held: () for a discrete action's index, (m,) for a continuous one.
            steps: for how many steps.
            wandered: whether random actions come before; otherwise the moment is right after the reset.

        Returns:
            None if the episode was over before the moment came.
        """
        key = (trial, action.tobytes(), steps, wandered)
        if key not in self._known:
            self._known[key] = self._live(trial, action, steps, wandered)
        return self._known[key]

    def _live(self, trial: int, action: Array, steps: int, wandered: bool) -> Life | None:
        env, rng = self._env, np.random.default_rng([trial, 1])
        observation, _ = env.reset(seed=trial)
        for act in _acts(env, rng, hold=8, count=int(rng.integers(_LONGEST_PREFIX)) if wandered else 0):
            observation, _, terminated, truncated, _ = env.step(act)
            if terminated or truncated:
                return None
        start = _flat(observation)
        held = action.astype(env.action_space.dtype)
        for _ in range(steps):
            observation, _, terminated, truncated, _ = env.step(held + _start(env) if _is_discrete(env) else held)
            if terminated or truncated:
                return Life(start, None)
        return Life(start, _flat(observation))


def same_moment(a: Array, b: Array) -> None:
    """Refuse twins that were not twins.

    Raises:
        BadInput: if two runs of the same seed and actions reached different observations.
    """
    if not np.array_equal(a, b):
        raise BadInput("The environment is not reproducible: the same seed and actions led to different observations.")


def _episode(
    env: gymnasium.Env[Any, Any], seed: int, options: Mapping[str, Any] | None, hold: int, *, limit: int
) -> Iterator[tuple[Array, Array, Array, float, bool]]:
    before, _ = env.reset(seed=seed, options=None if options is None else dict(options))
    for action in _acts(env, np.random.default_rng([seed, 0]), hold=hold, count=limit):
        after, reward, terminated, truncated, _ = env.step(action)
        yield np.array(before), np.array(after), np.array(action), float(reward), bool(terminated)
        if terminated or truncated:
            return
        before = np.array(after)


def _acts(env: gymnasium.Env[Any, Any], rng: np.random.Generator, *, hold: int, count: int) -> Iterator[Any]:
    """`count` actions: each drawn uniformly and held for 1 to `hold` steps."""
    left, action = 0, None
    for _ in range(count):
        if left == 0:
            left, action = int(rng.integers(1, hold + 1)), _draw(env, rng)
        left -= 1
        yield action


def _draw(env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> Any:
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return space.start + rng.integers(space.n)
    if isinstance(space, gymnasium.spaces.Box):
        return rng.uniform(space.low, space.high).astype(space.dtype)
    raise BadInput(f"Actions of the kind {type(space).__name__} are not supported; only Box and Discrete are.")


def _is_discrete(env: gymnasium.Env[Any, Any]) -> bool:
    return isinstance(env.action_space, gymnasium.spaces.Discrete)


def _start(env: gymnasium.Env[Any, Any]) -> int:
    return int(env.action_space.start) if isinstance(env.action_space, gymnasium.spaces.Discrete) else 0


def _flat(observation: Any) -> NDArray[np.float64]:
    return np.asarray(observation, dtype=np.float64).reshape(-1)
