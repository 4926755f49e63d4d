"""A policy's layers in the units of a trained network, whose actions lie between -1 and 1, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from storage.schema import Array, Space

from ..policies import MlpPolicy, action_bounds, action_units

_TOLERANCE = 1e-5  # in the network's units; a bound that was rounded is still the bound


def network_layers(policy: MlpPolicy) -> tuple[list[Array], list[Array]]:
    """Weights and biases with the outputs in the network's units; squashed and discrete ones are already."""
    weights, biases = list(policy.weights), list(policy.biases)
    if policy.head == "clip":
        middle, half = action_units(policy.action_space)
        weights[-1], biases[-1] = weights[-1] / half, (biases[-1] - middle) / half
    return weights, biases


def as_policy(weights: Sequence[Array], biases: Sequence[Array], like: MlpPolicy) -> MlpPolicy:
    """A policy like the given one with the layers of a network, (in, out) and (out,) each, in the network's units.

    Raises:
        BadInput: when a weight is not finite.
    """
    weights, biases = list(weights), list(biases)
    if like.head == "clip":
        middle, half = action_units(like.action_space)
        weights[-1], biases[-1] = weights[-1] * half, biases[-1] * half + middle
    return replace(like, weights=tuple(weights), biases=tuple(biases))


def as_logits(policy: MlpPolicy, observations: Array) -> MlpPolicy:
    """Read Q values as logits: `softmax(Q / t)`, where t is the mean lead of the best action over the average one.

    The greedy action is the same at every observation; only how much a suggestion has to overcome depends on t. The
    softmax of Q values is the policy of maximum-entropy learning (Haarnoja et al., ICML 2017).

    Args:
        policy: with a head of Q values.
        observations: (N, n) over which the lead is averaged.
    """
    values = policy.forward(observations)
    lead = float(np.mean(values.max(axis=1) - values.mean(axis=1)))
    factor = np.float32(1.0 / max(lead, 1e-6))
    weights = (*policy.weights[:-1], policy.weights[-1] * factor)
    return replace(policy, weights=weights, biases=(*policy.biases[:-1], policy.biases[-1] * factor), head="logits")


def cutting_bounds(space: Space) -> tuple[Array, Array]:
    """From where on a continuous action is cut, below and above, (m,) each in the network's units; infinite if never.

    Two actions as far out as that, or farther, are played as one.
    """
    low, high = (in_network_units(bounds, space) for bounds in action_bounds(space))
    return low + np.float32(_TOLERANCE), high - np.float32(_TOLERANCE)


def in_network_units(actions: Array, space: Space) -> Array:
    """Actions (B, m) as a network has them: discrete ones from 0, continuous ones between -1 and 1."""
    if space.is_discrete:
        return actions - space.start
    middle, half = action_units(space)
    return (actions - middle) / half
