"""Spaces as numbers that networks take and give: inputs, sizes and bounds. What a network computes is not here."""

from __future__ import annotations

import numpy as np

from storage.errors import BadInput
from storage.schema import Array, Space


def input_size(space: Space) -> int:
    """Numbers that one observation becomes: the box's components, or one per value when discrete."""
    return int(space.n or 1) if space.is_discrete else space.size


def output_size(space: Space) -> int:
    """Numbers that decide one action: the box's components, or one per value when discrete."""
    return int(space.n or 1) if space.is_discrete else space.size


def network_inputs(observations: Array, space: Space) -> Array:
    """Turn observations into float32 rows that a network takes: as they are, or one-hot when discrete.

    Args:
        observations: (N, n), or (N,) or (N, 1) when discrete.
        space: the observation space.

    Returns:
        (N, n) or (N, number of values) float32.

    Raises:
        BadInput: for a wrong shape or a value out of range.
    """
    observations = np.asarray(observations)
    if not space.is_discrete:
        if observations.ndim != 2 or observations.shape[1] != space.size:
            raise BadInput(f"Observations have shape {observations.shape}; (N, {space.size}) is expected.")
        return np.ascontiguousarray(observations, dtype=np.float32)
    if observations.ndim > 2 or (observations.ndim == 2 and observations.shape[1] != 1):
        raise BadInput(f"Discrete observations have shape {observations.shape}; (N,) or (N, 1) is expected.")
    index = observations.reshape(-1).astype(np.int64) - space.start
    count = input_size(space)
    if index.size and (index.min() < 0 or index.max() >= count):
        raise BadInput(f"A discrete observation is outside {space.start} .. {space.start + count - 1}.")
    return np.eye(count, dtype=np.float32)[index]


def action_bounds(space: Space) -> tuple[Array, Array]:
    """Lower and upper bounds of a continuous action space, (m,) float32 each; infinite where it has none."""
    low = np.full(space.size, -np.inf) if space.low is None else np.asarray(space.low)
    high = np.full(space.size, np.inf) if space.high is None else np.asarray(space.high)
    return low.astype(np.float32), high.astype(np.float32)


def action_units(space: Space) -> tuple[Array, Array]:
    """Middle and half width of a continuous action space, (m,) float32 each.

    A network's own unit is `(action - middle) / half`, so that the bounds are -1 and 1. A dimension without finite
    bounds keeps the environment's unit: middle 0, half width 1.
    """
    low, high = action_bounds(space)
    bounded = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(bounded, low, np.float32(-1)), np.where(bounded, high, np.float32(1))
    return (low + high) / 2, (high - low) / 2
