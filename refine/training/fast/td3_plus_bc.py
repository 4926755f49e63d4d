"""TD3+BC with suggestions, without d3rlpy; the reference is `training/reference/continuous_critic.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from storage.schema import Array

from ...policies import MlpPolicy, action_units
from ..buffer import Columns, Floats
from ..reference.continuous_critic import AnnotatedTD3PlusBCConfig
from .batched_mlp import Layers
from .cloning import FastCloning
from .critic import FastCritic, bellman_targets, follow


class FastTD3PlusBC:
    """One training per beta from the same start on the same batches.

    Until the actors move nothing depends on beta, so one pair of critics learns for all. The noise on the target's
    actions is torch's, of the same shape and in the same order as the reference draws it.

    Args:
        start: where all actors begin.
        betas: weight of the distance to the start, one per training.
        config: of the reference.
        critics: layers of the reference's Q functions.
        return_scale: by which rewards are divided.
    """

    def __init__(
        self,
        start: MlpPolicy,
        betas: Sequence[float],
        config: AnnotatedTD3PlusBCConfig,
        critics: Sequence[Layers],
        return_scale: float,
    ) -> None:
        self._start, self._betas, self._config, self._return_scale = start, betas, config, return_scale
        self._actor = FastCloning(start, betas[:1], config.actor_learning_rate)
        self._target = self._actor.networks.tiled(1)
        self.critics = [FastCritic(layers, start.activation, config.critic_learning_rate) for layers in critics]
        self._steps = 0

    def step(self, batch: Columns) -> None:
        """One step of every critic on one batch, and of every actor once the critics have had their start."""
        if self._steps == self._config.critic_steps:
            self._spread()
        states, logged = self._actor.normalised(batch.observations), self._in_network_units(batch.actions)
        self._learn_values(_join(states, logged), batch)
        if self._steps >= self._config.critic_steps:
            self._improve(states, logged, batch)
            follow(self._target, self._actor.networks, self._config.tau)
        for critic in self.critics:
            critic.follow(self._config.tau)
        self._steps += 1

    def policies(self) -> list[MlpPolicy]:
        """The actors so far, in the order of the betas."""
        return self._actor.policies()

    def diverged(self, observations: Array) -> bool:
        """As of `FastCloning`."""
        return self._actor.diverged(observations)

    def _spread(self) -> None:
        self._actor = FastCloning(self._start, self._betas, self._config.actor_learning_rate)
        self._target = self._target.tiled(len(self._betas))
        for critic in self.critics:
            critic.spread(len(self._betas))

    def _learn_values(self, inputs: Array, batch: Columns) -> None:
        """Squared error of the temporal difference, of each critic."""
        states = self._actor.normalised(batch.next_observations)
        following = _join(states, self._smoothed(states))
        pair = [critic.target.forward(following) for critic in self.critics]
        targets = bellman_targets(batch, np.minimum(*pair), self._config.gamma, self._return_scale)
        for critic in self.critics:
            errors = critic.online.forward(inputs) - targets
            critic.descend(errors * np.float32(2 / errors.shape[-1]))

    def _smoothed(self, states: Array) -> Array:
        """The target policy's actions (E, m, B) with noise on them."""
        actions = self._actor.squashed(self._target.forward(states))
        noise = torch.randn(actions.shape[2], actions.shape[1]).numpy().T
        limit = self._config.target_smoothing_clip
        return np.clip(actions + np.clip(self._config.target_smoothing_sigma * noise, -limit, limit), -1, 1)

    def _improve(self, states: Array, logged: Array, batch: Columns) -> None:
        outputs = self._actor.forward(states)
        actions = self._actor.squashed(outputs)
        own = self._own_slopes(states, actions, logged) * self._slopes_of_squashing(outputs, actions)
        self._actor.descend(self._actor.behaviour(outputs, batch) + self._config.improvement * own)

    def _own_slopes(self, states: Array, actions: Floats, logged: Array) -> Array:
        """Slopes (E, m, B) of the algorithm's own loss at the actions: `-Q / mean |Q|`, and d3rlpy's cloning."""
        critic = self.critics[0].online
        values = critic.forward(_join(states, actions))
        sizes = np.abs(values).mean(axis=(1, 2), keepdims=True)
        factors = self._config.alpha / sizes if self._config.clones else 1 / np.maximum(sizes, 1e-6)
        slopes = critic.slopes_at_inputs(np.broadcast_to(-factors / values.shape[-1], values.shape))
        slopes = slopes[:, -actions.shape[1] :]
        return slopes + np.float32(2 / logged.size) * (actions - logged) if self._config.clones else slopes

    def _slopes_of_squashing(self, outputs: Floats, actions: Floats) -> Array:
        return np.abs(outputs) <= 1 if self._start.head == "clip" else 1 - actions * actions

    def _in_network_units(self, actions: Array) -> Array:
        middle, half = action_units(self._start.action_space)
        return (actions - middle[:, None]) / half[:, None]


def _join(states: Array, actions: Array) -> Array:
    """Inputs of a critic: states (n, B) above actions (m, B) or (E, m, B)."""
    return np.concatenate([np.broadcast_to(states, (*actions.shape[:-2], *states.shape)), actions], axis=-2)
