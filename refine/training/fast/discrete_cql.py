"""Discrete CQL with an actor beside it, without d3rlpy; the reference is `training/reference/discrete_critic.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from storage.schema import Array

from ...policies import MlpPolicy
from ..buffer import Columns, Floats
from ..reference.discrete_critic import AnnotatedDiscreteCQLConfig
from .batched_mlp import Layers, softmax
from .cloning import FastCloning
from .critic import FastCritic, bellman_targets


class FastDiscreteCQL:
    """One training per beta from the same start on the same batches.

    Until the actors move nothing depends on beta, so one critic learns for all.

    Args:
        start: where all actors begin; with a head of logits.
        betas: weight of the distance to the start, one per training.
        config: of the reference.
        critic: layers of the reference's Q function.
        return_scale: by which rewards are divided.
    """

    def __init__(
        self,
        start: MlpPolicy,
        betas: Sequence[float],
        config: AnnotatedDiscreteCQLConfig,
        critic: Layers,
        return_scale: float,
    ) -> None:
        self._start, self._betas, self._config, self._return_scale = start, betas, config, return_scale
        self._actor = FastCloning(start, betas[:1], config.actor_learning_rate)
        self.critic = FastCritic(critic, start.activation, config.learning_rate)
        self._steps = 0

    def step(self, batch: Columns) -> None:
        """One step of every critic on one batch, and of every actor once the critics have had their start."""
        if self._steps == self._config.critic_steps:
            self._actor = FastCloning(self._start, self._betas, self._config.actor_learning_rate)
            self.critic.spread(len(self._betas))
        states = self._actor.normalised(batch.observations)
        self._learn_values(states, batch)
        if self._steps % self._config.target_update_interval == 0:
            self.critic.follow(1)
        if self._steps >= self._config.critic_steps:
            self._improve(states, batch)
        self._steps += 1

    def policies(self) -> list[MlpPolicy]:
        """The actors so far, in the order of the betas."""
        return self._actor.policies()

    def diverged(self, observations: Array) -> bool:
        """As of `FastCloning`."""
        return self._actor.diverged(observations)

    def _learn_values(self, states: Array, batch: Columns) -> None:
        """Huber's loss of the temporal difference, and the conservative one, `logsumexp Q(s, .) - Q(s, a)`."""
        next_values = self._next_values(self._actor.normalised(batch.next_observations))
        targets = bellman_targets(batch, next_values, self._config.gamma, self._return_scale)
        values = self.critic.online.forward(states)
        logged = _one_hot(batch.actions, values)
        errors = (values * logged).sum(axis=1, keepdims=True) - targets
        slopes = logged * np.clip(errors, -1, 1) + self._config.alpha * (softmax(values) - logged)
        self.critic.descend(slopes / values.shape[-1])

    def _next_values(self, states: Array) -> Floats:
        """(E, 1, B), under the actor or, as of d3rlpy, of the critic's best action."""
        values = self.critic.target.forward(states)
        if self._config.evaluate_actor:
            shares: Array = softmax(self._actor.forward(states))
        else:
            best = self.critic.online.forward(states).argmax(axis=1, keepdims=True)
            shares = _one_hot(best, values)
        return (shares * values).sum(axis=1, keepdims=True)

    def _improve(self, states: Array, batch: Columns) -> None:
        values = self.critic.online.forward(states)
        advantages = values - (softmax(batch.references) * values).sum(axis=1, keepdims=True)
        advantages /= np.maximum(np.abs(advantages).mean(axis=(1, 2), keepdims=True), 1e-6)
        logits = self._actor.forward(states)
        shares = softmax(logits)
        lead = advantages - (shares * advantages).sum(axis=1, keepdims=True)
        own = shares * lead * np.float32(-self._config.improvement / values.shape[-1])
        self._actor.descend(self._actor.behaviour(logits, batch) + own)


def _one_hot(actions: NDArray[np.generic], values: Floats) -> NDArray[np.bool_]:
    """(..., k, B) from indices (..., 1, B), for values (E, k, B)."""
    return np.arange(values.shape[1])[:, None] == actions
