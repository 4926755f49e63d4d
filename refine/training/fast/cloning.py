"""Policies that learn from suggestions and stay close to the baseline, without d3rlpy: all betas, and labels, at once.

The reference is `reference/cloning.py` with `reference/losses.py`. Alone this is the recipe of mode A; critics
stand beside it in `critics.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from storage.schema import Array

from ...policies import MlpPolicy
from ..packing import Columns, Floats
from ..units import as_policy, cutting_bounds, network_layers
from .batched_mlp import Adam, StackedNetworks, softmax


class FastCloning:
    """One training per beta from the same start on the same batches, whose labels may be those of several.

    Both terms of the loss are one: a distance `l(pi(s_i), t_i)` with a weight, where the target `t_i` is the suggestion
    at a labelled state and what the baseline does at any other. Discrete, `KL(pi_0 || pi)` and the cross-entropy to
    `pi_0` have the same gradient, `softmax(z) - t`; continuous, the squared error has `2 (mu - t) / m`, and
    none where a mean that is cut and the suggestion lie beyond the same bound.

    Args:
        start: where all trainings begin; with a head of logits when discrete.
        betas: weight of the distance to the start, one per training; of D labellings all those of the first come first.
        learning_rate: of Adam.
    """

    def __init__(self, start: MlpPolicy, betas: Sequence[float], learning_rate: float) -> None:
        self._start = start
        self._cuts = cutting_bounds(start.action_space)
        self._betas = np.asarray(betas, np.float32)[:, None, None]
        self.networks = StackedNetworks([network_layers(start)] * len(betas), start.activation)
        self._adam = Adam(self.networks.parameters, self.networks.gradients, learning_rate)

    def step(self, batch: Columns) -> None:
        """One step of every training on one batch."""
        if batch.suggestions.ndim > 2:
            suggestions, weights = (
                np.repeat(each, len(self._betas) // len(each), axis=0) for each in (batch.suggestions, batch.weights)
            )
            batch = batch._replace(suggestions=suggestions, weights=weights)
        self.descend(self.behaviour(self.forward(self.normalised(batch.observations)), batch))

    def normalised(self, observations: Array) -> Array:
        """Observations (n, B) as the first layer takes them."""
        inputs = observations if self._start.shift is None else observations - self._start.shift[:, None]
        inputs = inputs if self._start.scale is None else inputs / self._start.scale[:, None]
        limit = self._start.input_limit
        return inputs if limit is None else np.clip(inputs, -limit, limit)

    def forward(self, states: Array) -> Floats:
        """Outputs (E, k, B) of the last layer at normalised observations (n, B)."""
        return self.networks.forward(states)

    def squashed(self, outputs: Floats) -> Floats:
        """Continuous actions (E, m, B) between -1 and 1."""
        return np.clip(outputs, -1, 1) if self._start.head == "clip" else np.tanh(outputs)

    def behaviour(self, outputs: Floats, batch: Columns) -> Array:
        """Slopes (E, k, B) of both terms of the loss at the outputs of the last `forward`."""
        return self._errors(outputs, batch) * self._weights(batch)

    def descend(self, slopes: Array) -> None:
        """One step, from a loss's slopes (E, k, B) at the outputs of the last `forward`."""
        self.networks.backward(slopes)
        self._adam.step()

    def policies(self) -> list[MlpPolicy]:
        """The policies so far, in the order of the betas."""
        return [as_policy(*self.networks.read(number), self._start) for number in range(len(self._betas))]

    def diverged(self, observations: Array) -> bool:
        """Whether a parameter is not finite, or an output at some observations (n, N) that a network takes."""
        outputs = self.forward(self.normalised(observations))
        return not (np.isfinite(self.networks.parameters).all() and np.isfinite(outputs).all())

    def _weights(self, batch: Columns) -> Array:
        """(E, 1, B): each term is a mean over its rows; the distance to the start has the weight beta."""
        count = float(batch.labelled.sum())
        suggestion = batch.labelled * batch.weights / max(count, 1.0)
        return suggestion + (1 - batch.labelled) * (self._betas / max(batch.labelled.size - count, 1.0))

    def _errors(self, outputs: Floats, batch: Columns) -> Array:
        """Slopes (E, k, B) of the distances to the targets, for outputs (E, k, B) of the last layer."""
        labelled = batch.labelled > 0
        if self._start.action_space.is_discrete:
            suggested = np.arange(outputs.shape[1], dtype=np.float32)[:, None] == batch.suggestions
            shares = softmax(np.concatenate([outputs, batch.references[None]]))
            return shares[:-1] - np.where(labelled, suggested, shares[-1])
        targets = np.where(labelled, batch.suggestions, batch.references)
        means = outputs if self._start.head == "clip" else np.tanh(outputs)
        errors = (means - targets) * np.float32(2 / outputs.shape[1])
        if self._start.head == "clip":
            return errors * ~(labelled & self._are_one_action(means, batch.suggestions))
        return errors * (1 - means * means)

    def _are_one_action(self, means: Floats, suggestions: Floats) -> NDArray[np.bool_]:
        """Where means (E, m, B) and suggestions (m, B) are cut to the same bound."""
        low, high = (bounds[:, None] for bounds in self._cuts)
        return (np.minimum(means, suggestions) >= high) | (np.maximum(means, suggestions) <= low)
