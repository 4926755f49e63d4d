"""Policies that learn from suggestions and stay close to the baseline, without d3rlpy: all betas, and labels, at once.

The reference is `reference/cloning.py` with `reference/losses.py`. Equal networks with different weights are computed
and trained together in NumPy: gradients by hand, one Adam for all. Alone this is the recipe of mode A; critics stand
beside it in `critics.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from storage.schema import Array

from ...policies import MlpPolicy
from ..packing import Columns, Floats, as_policy, cutting_bounds, network_layers

_FIRST_DECAY, _SECOND_DECAY, _SMALL = 0.9, 0.999, 1e-8  # as torch has them; as float32, 1 - 0.999 would be 1e-5 off

Layers = tuple[Sequence[Array], Sequence[Array]]
"""Weights (in, out) and biases (out,) of one network."""


class StackedNetworks:
    """E networks of dense layers of the same shape, each with its own parameters.

    A layer is one matrix (out, in + 1) whose last column is the bias, and its inputs have a row of ones: so one product
    gives the outputs, and one the gradients of weights and bias. The states of a batch are the last axis, along which
    everything is contiguous.

    Args:
        networks: the layers of each.
        activation: of the hidden layers.
    """

    def __init__(self, networks: Sequence[Layers], activation: Literal["tanh", "relu"]) -> None:
        self._activation = activation
        self._shapes = [(weight.shape[1], weight.shape[0] + 1) for weight in networks[0][0]]
        self._own(np.stack([_flatten(*layers) for layers in networks]))

    def _own(self, parameters: Floats) -> None:
        self.parameters: Floats = parameters  # (E, P)
        self.gradients: Floats = np.zeros_like(parameters)
        self._layers = _split(self.parameters, self._shapes)
        self._slopes = _split(self.gradients, self._shapes)
        self._hidden: list[Floats] = []
        self._scratch: list[Floats] = []

    def tiled(self, times: int) -> StackedNetworks:
        """So many copies of each, in turn, with parameters of their own."""
        networks = copy(self)
        networks._own(np.tile(self.parameters, (times, 1)))
        return networks

    def forward(self, inputs: Array) -> Floats:
        """Outputs (E, k, B) of the last layer at inputs (n, B), the same for all, or (E, n, B)."""
        self._make_room(inputs.shape)
        self._hidden[0][..., :-1, :] = inputs
        for number, layer in enumerate(self._layers[:-1]):
            values = self._hidden[number + 1][:, :-1]
            np.matmul(layer, self._hidden[number], out=values)
            if self._activation == "tanh":
                np.tanh(values, out=values)
            else:
                np.maximum(values, 0, out=values)
        return self._layers[-1] @ self._hidden[-1]

    def backward(self, slopes: Array) -> None:
        """Set `gradients` from the loss's slopes (E, k, B) at the outputs of the last `forward`."""
        for number in reversed(range(len(self._layers))):
            np.matmul(slopes, self._hidden[number].swapaxes(-1, -2), out=self._slopes[number])
            if number:
                slopes = self._pass_back(slopes, number)

    def slopes_at_inputs(self, slopes: Array) -> Array:
        """The loss's slopes (E, n, B) at the inputs of the last `forward`, from those at its outputs (E, k, B)."""
        for number in reversed(range(len(self._layers))):
            slopes = self._pass_back(slopes, number)
        return slopes

    def read(self, number: int) -> tuple[list[Array], list[Array]]:
        """Weights (in, out) and biases (out,) of one network."""
        layers = [layer[number] for layer in self._layers]
        return [layer[:, :-1].T.copy() for layer in layers], [layer[:, -1].copy() for layer in layers]

    def _pass_back(self, slopes: Array, number: int) -> Array:
        """From the slopes at a layer's outputs to those at its inputs before their activation."""
        slopes = self._layers[number][..., :-1].swapaxes(-1, -2) @ slopes
        if number == 0:
            return slopes
        values, factors = self._hidden[number][:, :-1], self._scratch[number - 1]
        if self._activation == "tanh":
            np.multiply(values, values, out=factors)
            np.subtract(1, factors, out=factors)
        else:
            np.greater(values, 0, out=factors)
        slopes *= factors
        return slopes

    def _make_room(self, shape: tuple[int, ...]) -> None:
        """Arrays of the hidden values, reused as long as the inputs keep their shape."""
        shape = (*shape[:-2], shape[-2] + 1, shape[-1])
        if self._hidden and self._hidden[0].shape == shape:
            return
        sizes = [(len(self.parameters), out, shape[-1]) for out, _ in self._shapes[:-1]]
        self._hidden = [np.ones(shape, np.float32)]
        self._hidden += [np.ones((copies, out + 1, batch), np.float32) for copies, out, batch in sizes]
        self._scratch = [np.empty(size, np.float32) for size in sizes]


class Adam:
    """Adam with torch's defaults (Kingma and Ba, ICLR 2015), in place and in torch's order of operations.

    Args:
        parameters: any shape; changed by `step`.
        gradients: of the same shape; read by `step`.
        learning_rate: of every parameter.
    """

    def __init__(self, parameters: Floats, gradients: Floats, learning_rate: float) -> None:
        self._parameters, self._gradients, self._learning_rate = parameters, gradients, learning_rate
        self._first, self._second, self._scratch = (np.zeros_like(parameters) for _ in range(3))
        self._steps = 0

    def step(self) -> None:
        """Move the parameters against their gradients."""
        self._steps += 1
        first, second, scratch = self._first, self._second, self._scratch
        np.subtract(self._gradients, first, out=scratch)
        scratch *= 1 - _FIRST_DECAY
        first += scratch
        np.multiply(self._gradients, self._gradients, out=scratch)
        scratch *= 1 - _SECOND_DECAY
        second *= _SECOND_DECAY
        second += scratch
        np.sqrt(second, out=scratch)
        scratch /= (1 - _SECOND_DECAY**self._steps) ** 0.5
        scratch += _SMALL
        np.divide(first, scratch, out=scratch)
        scratch *= self._learning_rate / (1 - _FIRST_DECAY**self._steps)
        self._parameters -= scratch

    def tiled(self, networks: StackedNetworks) -> Adam:
        """The same optimiser in its present state, for networks that were tiled."""
        adam = Adam(networks.parameters, networks.gradients, self._learning_rate)
        times = len(networks.parameters) // len(self._parameters)
        adam._first, adam._second = np.tile(self._first, (times, 1)), np.tile(self._second, (times, 1))
        adam._steps = self._steps
        return adam


def softmax(logits: Floats) -> Floats:
    """Over the last axis but one."""
    ahead = np.exp(logits - logits.max(axis=-2, keepdims=True))
    ahead /= ahead.sum(axis=-2, keepdims=True)
    return ahead


def _flatten(weights: Sequence[Array], biases: Sequence[Array]) -> Floats:
    """All layers (out, in + 1) of one network, (P,)."""
    layers = [np.hstack([weight.T, bias[:, None]]).ravel() for weight, bias in zip(weights, biases, strict=True)]
    return np.concatenate(layers).astype(np.float32)


def _split(flat: Floats, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    """Views (E, out, in + 1) of each layer in (E, P)."""
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    parts = np.split(flat, ends[:-1], axis=1)
    return [part.reshape(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True)]


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
