"""Who answers for the oracle: a trained policy, or a controller by hand where PPO finds none.

Both mountain cars need a long way without any reward before the first one, which PPO did not find; pushing the way the
car is moving pumps energy into it and reaches the goal from every start. Both landers have Gymnasium's own heuristic,
since PPO hovers for longer than two cores can train it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from refine.policies.mlp import MlpPolicy
from storage.content_hash import content_id
from storage.schema import Array


class Expert(Protocol):
    """What the oracle asks."""

    @property
    def sha256(self) -> str:
        """Names it in the rows' keys."""
        ...

    def advise(self, observations: Array) -> Array:
        """Its actions, (N,) or (N, m), at (N, n) observations."""
        ...


@dataclass(frozen=True)
class TrainedExpert:
    """The greedy actions of a policy."""

    policy: MlpPolicy

    @property
    def sha256(self) -> str:
        """The policy's."""
        return self.policy.sha256

    def advise(self, observations: Array) -> Array:
        """Its greedy actions."""
        return self.policy.act(observations).actions


@dataclass(frozen=True)
class Controller:
    """A rule by hand, known by the environment that it is for."""

    env: str

    @property
    def sha256(self) -> str:
        """Of its name, for its rule is in the code."""
        return content_id("x_", ["controller", self.env])

    def advise(self, observations: Array) -> Array:
        """Its actions."""
        return CONTROLLERS[self.env](observations)


def _land(observations: Array, *, continuous: bool) -> Array:
    """Gymnasium's heuristic, state by state."""
    from gymnasium.envs.box2d.lunar_lander import LunarLander, heuristic

    environment = LunarLander(continuous=continuous)
    return np.array([heuristic(environment, state) for state in observations])


CONTROLLERS: Mapping[str, Callable[[Array], Array]] = {
    "MountainCar-v0": lambda seen: np.where(seen[:, 1] < 0, 0, 2),
    "LunarLander-v3": partial(_land, continuous=False),
    "LunarLander-v3-continuous": partial(_land, continuous=True),
    "MountainCarContinuous-v0": lambda seen: np.where(seen[:, 1:] < 0, -1.0, 1.0),
}
