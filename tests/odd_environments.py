"""Environments that misbehave in one way each; `odd_environments:NAME-v0`."""

from __future__ import annotations

import os
from multiprocessing import parent_process
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Odd(gymnasium.Env[Any, Any]):
    """Five steps of two small numbers; what is odd happens from the third step of an even seed on."""

    observation_space: Any = spaces.Box(-10, np.inf, (2,), np.float32)
    action_space: Any = spaces.Discrete(3)
    length = 5

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time, self.is_odd = 0, seed is not None and seed % 4 == 2
        return self.shown(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.shown(), self.paid(), self.time >= self.length, False, {}

    def now(self) -> bool:
        return self.is_odd and self.time == 3

    def shown(self) -> Any:
        return self.np_random.normal(size=2).astype(np.float32)

    def paid(self) -> Any:
        return 1.0


def with_reward(value: Any) -> type[Odd]:
    class Reward(Odd):
        def paid(self) -> Any:
            return value if self.now() else 1.0

    return Reward


def with_observation(value: Any, space: Any = Odd.observation_space) -> type[Odd]:
    class Observation(Odd):
        observation_space = space

        def shown(self) -> Any:
            return value if self.now() else np.zeros(2, space.dtype)

    return Observation


class Crash(Odd):
    def step(self, action: Any) -> Any:
        if self.is_odd and self.time == 2:
            raise RuntimeError("sensor\nlost")
        return super().step(action)


class OldStep(Odd):
    def step(self, action: Any) -> Any:
        observation, reward, over, _, info = super().step(action)
        return observation, reward, over, info


class OldReset(Odd):
    def reset(self, **_: Any) -> Any:
        return super().reset(**_)[0]


class NoSeed(Odd):
    def reset(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().reset()


class Never(Odd):
    length = 10**9


class Mortal(Odd):
    """Ends every process but the first one."""

    def step(self, action: Any) -> Any:
        if parent_process() is not None:
            os._exit(1)
        return super().step(action)


class Loud(Odd):
    def step(self, action: Any) -> Any:
        print("a step")
        return super().step(action)


ODD = {
    "NanReward": with_reward(float("nan")),
    "InfReward": with_reward(-np.inf),
    "NoReward": with_reward(None),
    "ListReward": with_reward(np.array([1.0])),
    "TextReward": with_reward("much"),
    "IntReward": with_reward(np.int32(1)),
    "NanObservation": with_observation(np.array([np.nan, 0], np.float32)),
    "InfObservation": with_observation(np.array([0, np.inf], np.float32)),
    "HugeObservation": with_observation(np.array([1e300, 0])),
    "LongObservation": with_observation(np.zeros(3, np.float32)),
    "ShortObservation": with_observation(np.zeros(1, np.float32)),
    "NoObservation": with_observation(None),
    "RaggedObservation": with_observation([[1.0], [1.0, 2.0]]),
    "HalfInteger": with_observation(np.array([0.5, 0]), spaces.Box(0, 9, (2,), np.int64)),
    "ListObservation": with_observation([0.25, 1]),
    "WideObservation": with_observation(np.array([0.1, 0])),
    "Crash": Crash,
    "OldStep": OldStep,
    "OldReset": OldReset,
    "NoSeed": NoSeed,
    "Never": Never,
    "Loud": Loud,
    "Mortal": Mortal,
}
for name, kind in ODD.items():
    gymnasium.register(f"{name}-v0", entry_point=kind, disable_env_checker=True)
