"""Discrete CQL and TD3+BC for several betas at once: a Q function with its target and optimiser, and what it learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from storage.schema import Array

from ...config import RefineConfig
from ...policies import MlpPolicy, action_units
from ..packing import Columns, Floats
from ..reference import (
    AnnotatedDiscreteCQLConfig,
    AnnotatedTD3PlusBCConfig,
    create_algorithm,
    module_layers,
    quiet,
)
from .cloning import Adam, FastCloning, Layers, StackedNetworks, softmax


class FastCritic:
    """One Q function per training, all with the same start.

    Args:
        layers: of d3rlpy's own Q function, as it was initialised.
        activation: of the hidden layers.
        learning_rate: of Adam.
    """

    def __init__(self, layers: Layers, activation: Literal["tanh", "relu"], learning_rate: float) -> None:
        self.online = StackedNetworks([layers], activation)
        self.target = self.online.tiled(1)
        self._adam = Adam(self.online.parameters, self.online.gradients, learning_rate)

    def spread(self, copies: int) -> None:
        """From one training to so many, which go on from the same place."""
        self.online, self.target = self.online.tiled(copies), self.target.tiled(copies)
        self._adam = self._adam.tiled(self.online)

    def descend(self, slopes: Array) -> None:
        """One step, from the loss's slopes (E, k, B) at the outputs of the last `online.forward`."""
        self.online.backward(slopes)
        self._adam.step()

    def follow(self, rate: float) -> None:
        """Move the target by this share of the way to the Q function; 1 copies it."""
        follow(self.target, self.online, rate)


def follow(target: StackedNetworks, online: StackedNetworks, rate: float) -> None:
    """Move networks by this share of the way to others, in d3rlpy's order of operations."""
    target.parameters *= 1 - rate
    target.parameters += rate * online.parameters


def bellman_targets(batch: Columns, next_values: Floats, gamma: float, return_scale: float) -> Array:
    """`r / scale + gamma * V(s')`, (E, 1, B), without the second part where an episode terminated."""
    return batch.rewards * (1 / return_scale) + gamma * next_values * (1 - batch.terminals)


class FastActorCritic(ABC):
    """One training per beta from the same start on the same batches.

    Until the actors move nothing depends on beta, so one set of critics learns for all.

    Args:
        start: where all actors begin; with a head of logits when discrete.
        betas: weight of the distance to the start, one per training.
        config: of the reference.
        critics: at the start of the reference's Q functions.
        return_scale: by which rewards are divided.
    """

    def __init__(
        self, start: MlpPolicy, betas: Sequence[float], config: Any, critics: Sequence[FastCritic], return_scale: float
    ) -> None:
        self._start, self._betas, self._return_scale = start, betas, return_scale
        self._config = config
        self._actor = FastCloning(start, betas[:1], config.actor_learning_rate)
        self.critics = critics
        self._steps = 0

    def step(self, batch: Columns) -> None:
        """One step of every critic on one batch, and of every actor once the critics have had their start."""
        if self._steps == self._config.critic_steps:
            self._spread()
        self._learn(batch, moves=self._steps >= self._config.critic_steps)
        self._steps += 1

    def policies(self) -> list[MlpPolicy]:
        """The actors so far, in the order of the betas."""
        return self._actor.policies()

    def diverged(self, observations: Array) -> bool:
        """As of `FastCloning`."""
        return self._actor.diverged(observations)

    def _spread(self) -> None:
        """From one training to one per beta."""
        self._actor = FastCloning(self._start, self._betas, self._config.actor_learning_rate)
        for critic in self.critics:
            critic.spread(len(self._betas))

    @abstractmethod
    def _learn(self, batch: Columns, *, moves: bool) -> None:
        """One step of the critics, and of the actors if they move."""


class FastDiscreteCQL(FastActorCritic):
    """Conservative Q-learning with a categorical actor."""

    _config: AnnotatedDiscreteCQLConfig

    @property
    def _critic(self) -> FastCritic:
        return self.critics[0]

    def _learn(self, batch: Columns, *, moves: bool) -> None:
        states = self._actor.normalised(batch.observations)
        self._learn_values(states, batch)
        if self._steps % self._config.target_update_interval == 0:
            self._critic.follow(1)
        if moves:
            self._improve(states, batch)

    def _learn_values(self, states: Array, batch: Columns) -> None:
        """Huber's loss of the temporal difference, and the conservative one, `logsumexp Q(s, .) - Q(s, a)`."""
        next_values = self._next_values(self._actor.normalised(batch.next_observations))
        targets = bellman_targets(batch, next_values, self._config.gamma, self._return_scale)
        values = self._critic.online.forward(states)
        logged = _one_hot(batch.actions, values)
        errors = (values * logged).sum(axis=1, keepdims=True) - targets
        slopes = logged * np.clip(errors, -1, 1) + self._config.alpha * (softmax(values) - logged)
        self._critic.descend(slopes / values.shape[-1])

    def _next_values(self, states: Array) -> Floats:
        """(E, 1, B), under the actor or, as of d3rlpy, of the critic's best action."""
        values = self._critic.target.forward(states)
        if self._config.evaluate_actor:
            shares: Array = softmax(self._actor.forward(states))
        else:
            best = self._critic.online.forward(states).argmax(axis=1, keepdims=True)
            shares = _one_hot(best, values)
        return (shares * values).sum(axis=1, keepdims=True)

    def _improve(self, states: Array, batch: Columns) -> None:
        values = self._critic.online.forward(states)
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


class FastTD3PlusBC(FastActorCritic):
    """TD3+BC, or the recipe with its pair of critics.

    The noise on the target's actions is torch's, of the same shape and in the same order as the reference draws it.
    """

    _config: AnnotatedTD3PlusBCConfig

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._target = self._actor.networks.tiled(1)

    def _spread(self) -> None:
        super()._spread()
        self._target = self._target.tiled(len(self._betas))

    def _learn(self, batch: Columns, *, moves: bool) -> None:
        states = self._actor.normalised(batch.observations)
        middle, half = action_units(self._start.action_space)
        logged = (batch.actions - middle[:, None]) / half[:, None]
        self._learn_values(_join(states, logged), batch)
        if moves:
            self._improve(states, logged, batch)
            follow(self._target, self._actor.networks, self._config.tau)
        for critic in self.critics:
            critic.follow(self._config.tau)

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
        squashing = np.abs(outputs) <= 1 if self._start.head == "clip" else 1 - actions * actions
        own = self._own_slopes(states, actions, logged) * squashing
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


def _join(states: Array, actions: Array) -> Array:
    """Inputs of a critic: states (n, B) above actions (m, B) or (E, m, B)."""
    return np.concatenate([np.broadcast_to(states, (*actions.shape[:-2], *states.shape)), actions], axis=-2)


def create_with_critic(start: MlpPolicy, config: RefineConfig, return_scale: float) -> FastActorCritic:
    """A training with a critic, which starts as the reference's does: seed torch before, see `reproducible`.

    Raises:
        BadInput: as `create_algorithm`.
    """
    with quiet():
        reference: Any = create_algorithm(start, config, 0.0, return_scale=return_scale)  # its beta is not used
    layers = [module_layers(module) for module in reference.impl.q_function]
    critics = [FastCritic(each, start.activation, config.learning_rate) for each in layers]
    kind = FastDiscreteCQL if start.action_space.is_discrete else FastTD3PlusBC
    return kind(start, config.betas or (), reference.config, critics, return_scale)
