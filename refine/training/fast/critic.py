"""A Q function with its target and its optimiser in NumPy, one per training. What it learns is said elsewhere."""

from __future__ import annotations

from typing import Literal

from storage.schema import Array

from ..buffer import Columns, Floats
from .batched_mlp import Adam, Layers, StackedNetworks


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
