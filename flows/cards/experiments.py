"""Small experiments in an environment: wandering about, and the same moment lived twice with different actions.

What the outcomes are good for is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from annotate.cards import Card
from storage.errors import BadInput
from storage.schema import Array

from ..simulation import Environment

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


def wander(env: Environment, *, steps: int, resets: Sequence[Mapping[str, Any]] = ()) -> Steps:
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


class Twins:
    """The same moment again and again, with different actions after it.

    Trial i resets with seed i and takes up to 60 random actions; the environment is deterministic given both, so that
    any difference afterwards is the action's doing. Every outcome is lived once and remembered.

    Args:
        env: the environment.
        wandered: whether random actions come first; otherwise the moment is right after the reset.
    """

    def __init__(self, env: Environment, *, wandered: bool) -> None:
        self._env = env
        self._wandered = wandered
        self._moments: dict[int, Array | None] = {}
        self._outcomes: dict[tuple[int, int, bytes], Array | None] = {}

    def moment(self, trial: int) -> Array | None:
        """The observation of a moment, (n,); None if the episode was over before."""
        if trial not in self._moments:
            self._moments[trial] = self._live_until(trial)
        return self._moments[trial]

    def outcome(self, trial: int, action: Array, *, steps: int) -> Array | None:
        """The observation after holding an action, (n,); None if the episode ended on the way.

        Args:
            trial: number of the moment.
            action: what is held: () for a discrete action's index, (m,) for a continuous one.
            steps: for how many steps.

        Raises:
            BadInput: if the moment is not the one seen before, so that there is nothing to compare.
        """
        key = (trial, steps, action.tobytes())
        if key not in self._outcomes:
            self._outcomes[key] = self._live_on(trial, action, steps)
        return self._outcomes[key]

    def _live_until(self, trial: int) -> Array | None:
        env, rng = self._env, np.random.default_rng([trial, 1])
        observation, _ = env.reset(seed=trial)
        for action in _acts(env, rng, hold=8, count=int(rng.integers(_LONGEST_PREFIX)) if self._wandered else 0):
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return None
        return _flat(observation)

    def _live_on(self, trial: int, action: Array, steps: int) -> Array | None:
        moment, again = self.moment(trial), self._live_until(trial)
        if moment is None or again is None:
            return None
        if not np.array_equal(moment, again):
            raise BadInput("The environment cannot be replayed: one seed and one course of actions gave two states.")
        observation: Any = moment
        for _ in range(steps):
            observation, _, terminated, truncated, _ = self._env.step(_native(self._env, action))
            if terminated or truncated:
                return None
        return _flat(observation)


def _episode(
    env: Environment, seed: int, options: Mapping[str, Any] | None, hold: int, *, limit: int
) -> Iterator[tuple[Array, Array, Array, float, bool]]:
    before, _ = env.reset(seed=seed, options=None if options is None else dict(options))
    for action in _acts(env, np.random.default_rng([seed, 0]), hold=hold, count=limit):
        after, reward, terminated, truncated, _ = env.step(action)
        yield np.array(before), np.array(after), np.array(action), float(reward), bool(terminated)
        if terminated or truncated:
            return
        before = np.array(after)


def _acts(env: Environment, rng: np.random.Generator, *, hold: int, count: int) -> Iterator[Any]:
    """`count` actions: each drawn uniformly and held for 1 to `hold` steps."""
    left, action = 0, None
    for _ in range(count):
        if left == 0:
            left, action = int(rng.integers(1, hold + 1)), _draw(env, rng)
        left -= 1
        yield action


def _draw(env: Environment, rng: np.random.Generator) -> Any:
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return space.start + rng.integers(space.n)
    if isinstance(space, gymnasium.spaces.Box):
        low, high = np.nan_to_num(space.low, neginf=-1.0), np.nan_to_num(space.high, posinf=1.0)
        return rng.uniform(low, high).astype(space.dtype)
    raise BadInput(f"Actions of the kind {type(space).__name__} are not supported; only Box and Discrete are.")


def _native(env: Environment, action: Array) -> Any:
    """An action as the environment takes it, from a discrete action's index or a vector."""
    native = action.astype(env.action_space.dtype)
    return native + _start(env) if _is_discrete(env) else native


def _is_discrete(env: Environment) -> bool:
    return isinstance(env.action_space, gymnasium.spaces.Discrete)


def _start(env: Environment) -> int:
    return int(env.action_space.start) if isinstance(env.action_space, gymnasium.spaces.Discrete) else 0


def _flat(observation: Any) -> NDArray[np.float64]:
    return np.asarray(observation, dtype=np.float64).reshape(-1)
