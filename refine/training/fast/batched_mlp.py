"""Equal networks with different weights, computed and trained together in NumPy: gradients by hand, one Adam for all.

They do not know what they learn; `cloning.py` and the `fast_` files beside it say how far each output is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Literal

import numpy as np

from storage.schema import Array

from ..packing import Floats

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
