"""A bonus for states that are new to a network: random network distillation, as RICE explores with.

Burda, Edwards, Storkey and Klimov, "Exploration by Random Network Distillation", ICLR 2019: a network learns to
foretell the outputs of a fixed random one; its error is large where it has seldom been.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import nn

from storage.schema import Array

_WIDTH, _OUTPUTS, _LEARNING_RATE, _CLIP = 64, 16, 1e-3, 5.0


class Novelty:
    """How new observations are, in units of the running deviation of that."""

    def __init__(self, size: int, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._target, self._predictor = _make_network(size), _make_network(size)
        self._optimizer = torch.optim.Adam(self._predictor.parameters(), _LEARNING_RATE)
        self._seen, self._errors = RunningMeanStd(shape=(size,)), RunningMeanStd(shape=())

    def rate(self, observations: Array) -> Array:
        """Bonus of each observation, (N,) from (N, n), after which they are a little less new."""
        self._seen.update(observations)
        scaled = np.clip((observations - self._seen.mean) / np.sqrt(self._seen.var + 1e-8), -_CLIP, _CLIP)
        inputs = torch.as_tensor(scaled, dtype=torch.float32)
        with torch.no_grad():
            target = self._target(inputs)
        errors = (self._predictor(inputs) - target).square().mean(dim=1)
        self._optimizer.zero_grad()
        errors.mean().backward()
        self._optimizer.step()
        found = errors.detach().numpy()
        self._errors.update(found)
        return found / np.sqrt(self._errors.var + 1e-8)


class NoveltyReward(VecEnvWrapper):
    """Adds a weighted bonus for the observation that an action led to."""

    def __init__(self, environments: VecEnv, novelty: Novelty, weight: float, inputs: Any) -> None:
        super().__init__(environments)
        self._novelty, self._weight, self._inputs = novelty, weight, inputs

    def reset(self) -> Any:
        """Reset all environments."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """Step all environments; at an episode's end the bonus is for the observation that it ended with."""
        observations, rewards, dones, infos = self.venv.step_wait()
        reached = np.array(observations)
        for index in np.flatnonzero(dones):
            reached[index] = infos[index]["terminal_observation"]
        return observations, rewards + self._weight * self._novelty.rate(self._inputs(reached)), dones, infos


def _make_network(size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _OUTPUTS))
