"""One episode as short columns of numbers for charts and stepping."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from storage.schema import Array, Episode

Columns = dict[str, Any]
_DIGITS = 4


def choose_grid(length: int, wanted: Collection[int], points: int) -> Array:
    """The steps shown: all if there are few, otherwise regular ones and the wanted ones.

    Args:
        length: steps of the episode; step `length` is its final state.
        wanted: steps that must be included.
        points: approximate number.

    Returns:
        (P,) int64, ascending, from 0 to `length`.
    """
    if length < points:
        return np.arange(length + 1)
    regular = np.linspace(0, length, max(2, points)).astype(np.int64)
    inside = [step for step in wanted if 0 <= step <= length]
    return np.unique(np.concatenate([regular, np.array(inside, dtype=np.int64)]))


def columns_of(episode: Episode, grid: Array, components: Sequence[int], action_names: Sequence[str]) -> Columns:
    """The columns of an episode at the steps of a grid.

    Where the grid skips steps, `r` is the largest reward by size up to the next one, so that no spike is lost.

    Args:
        episode: the episode.
        grid: (P,) steps, ascending, the last one the final state.
        components: indices into the observation.
        action_names: of a discrete action space; empty otherwise.

    Returns:
        `t` the steps, `r` the reward, `g` the return so far, `c` one list per component, `a` the actions in words.
    """
    observations = episode.observations.reshape(len(episode.observations), -1)
    earned = np.concatenate([[0.0], np.cumsum(episode.rewards)])
    return {
        "t": grid.tolist(),
        "r": short_numbers(_peaks(episode.rewards, grid)),
        "g": short_numbers(earned[grid]),
        "c": [short_numbers(observations[grid, place]) for place in components],
        "a": [_action(episode, int(step), action_names) for step in grid],
    }


def short_numbers(values: Array) -> list[float | None]:
    """Numbers rounded to about four digits of the largest one; None for what is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(numbers)
    largest = float(np.abs(numbers[finite]).max(initial=0.0))
    decimals = _DIGITS - 1 - int(np.floor(np.log10(largest))) if largest > 0 else 0
    rounded = np.round(numbers, min(max(decimals, 0), 12)).tolist()
    return [value if known else None for value, known in zip(rounded, finite.tolist(), strict=True)]


def _peaks(rewards: Array, grid: Array) -> Array:
    """The largest reward by size from each step of the grid up to the next one; NaN for the final state."""
    if len(grid) == len(rewards) + 1:
        return np.append(rewards, np.nan)
    pieces = np.split(rewards, grid[1:-1])
    return np.array([*(piece[np.abs(piece).argmax()] for piece in pieces), np.nan])


def _action(episode: Episode, step: int, names: Sequence[str]) -> str:
    if step >= len(episode):
        return ""
    action = episode.actions[step]
    if episode.actions.ndim == 1:
        return names[int(action)] if 0 <= int(action) < len(names) else str(int(action))
    return ", ".join(f"{value:.3g}" for value in action)
