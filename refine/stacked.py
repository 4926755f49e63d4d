"""Equal networks with different weights, computed and trained together in NumPy: gradients by hand, one Adam for all.

What they learn is not known here; `fast_cloning.py` says how far each output is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from storage.schema import Array

from .buffer import Floats

_FIRST_DECAY, _SECOND_DECAY, _SMALL = 0.9, 0.999, 1e-8  # as torch has them; as float32, 1 - 0.999 would be 1e-5 off


class StackedNetworks:
    """E copies of a network of dense layers, each with its own parameters.

    A layer is one matrix (in + 1, out) whose last row is the bias, and its inputs have a column of ones: so one
    product gives the outputs, and one the gradients of weights and bias.

    Args:
        weights: (in, out) of each layer.
        biases: (out,) of each layer.
        activation: of the hidden layers.
        copies: E.
    """

    def __init__(
        self, weights: Sequence[Array], biases: Sequence[Array], activation: Literal["tanh", "relu"], copies: int
    ) -> None:
        layers = [np.vstack([weight, bias]).astype(np.float32) for weight, bias in zip(weights, biases, strict=True)]
        shapes = [layer.shape for layer in layers]
        self._activation = activation
        self.parameters: Floats = np.tile(np.concatenate([layer.ravel() for layer in layers]), (copies, 1))  # (E, P)
        self.gradients: Floats = np.zeros_like(self.parameters)
        self._layers = _split(self.parameters, shapes)
        self._slopes = _split(self.gradients, shapes)
        self._hidden: list[Floats] = []

    def forward(self, inputs: Array) -> Floats:
        """Outputs (E, B, k) of the last layer at inputs (B, n), which are the same for all."""
        self._hidden = [np.hstack([inputs, np.ones((len(inputs), 1), np.float32)])]
        for layer in self._layers[:-1]:
            hidden = np.ones((len(layer), len(inputs), layer.shape[2] + 1), np.float32)
            values = hidden[..., :-1]
            np.matmul(self._hidden[-1], layer, out=values)
            if self._activation == "tanh":
                np.tanh(values, out=values)
            else:
                np.maximum(values, 0, out=values)
            self._hidden.append(hidden)
        return self._hidden[-1] @ self._layers[-1]

    def backward(self, slopes: Array) -> None:
        """Set `gradients` from the loss's slopes (E, B, k) at the outputs of the last `forward`."""
        for number in reversed(range(len(self._layers))):
            hidden = self._hidden[number]
            np.matmul(hidden.swapaxes(-1, -2), slopes, out=self._slopes[number])
            if number:
                values = hidden[..., :-1]
                slopes = slopes @ self._layers[number][:, :-1].swapaxes(-1, -2)
                slopes *= 1 - values * values if self._activation == "tanh" else values > 0

    def read(self, copy: int) -> tuple[list[Array], list[Array]]:
        """Weights and biases of one copy, as they were given."""
        return [layer[copy, :-1].copy() for layer in self._layers], [layer[copy, -1].copy() for layer in self._layers]


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


def _split(flat: Floats, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    """Views (E, in + 1, out) of each layer in (E, P)."""
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    parts = np.split(flat, ends[:-1], axis=1)
    return [part.reshape(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True)]
