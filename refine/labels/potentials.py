"""Potentials: how good states are by lists of rules, on one scale, and the placebos that stand in for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from storage.catalog import component_columns
from storage.datasets import StepArrays
from storage.errors import BadInput

from ..policies import CompiledRules, States

Columns = Mapping[str, tuple[int, float]]
"""For a placebo, the component that each column reads, and its factor."""
Potential = NDArray[np.float64]

CHUNK = 65_536  # rows whose numbers are in memory at once
_TRIES = 100
_FEATURES = 16  # of a random potential
_CONSTANT = 1e-9  # least spread beside the size of the values


def find_potential(lists: Sequence[CompiledRules], steps: StepArrays, columns: Columns | None = None) -> Potential:
    """The mean of some lists' potentials, each with mean 0 and standard deviation 1 over the steps acted in, (N,).

    Args:
        lists: each has a potential.
        steps: N rows, final ones included.
        columns: what the columns read, for a placebo.

    Returns:
        NaN where one of them has no value.

    Raises:
        BadInput: if one is the same in all steps, or has no value in any.
    """
    return np.mean([_normalised(_compute(compiled, steps, columns), steps, compiled) for compiled in lists], axis=0)


def states_at(rows: NDArray[np.int64], steps: StepArrays) -> States:
    """Rows of steps as rules see them."""
    before = steps.observation[np.maximum(rows - 1, 0)]
    return States(steps.observation[rows], before, steps.step[rows])


def permute_columns(columns: Sequence[str], units: Mapping[str, str], rng: np.random.Generator) -> Columns:
    """For each column the component that it reads, of the same unit, and a sign; none reads itself as it is.

    Args:
        columns: of the components, in their order.
        units: of columns; one that is missing has the empty unit.
        rng: draws.
    """
    read: dict[str, tuple[int, float]] = {}
    for unit in dict.fromkeys(units.get(column, "") for column in columns):
        alike = [place for place, column in enumerate(columns) if units.get(column, "") == unit]
        drawn = rng.permutation(alike)
        signs = np.where(drawn == alike, -1.0, rng.choice([-1.0, 1.0], len(alike)))
        read |= {columns[p]: (int(q), float(sign)) for p, q, sign in zip(alike, drawn, signs, strict=True)}
    return read


def permuted_potential(
    own: Potential,
    lists: Sequence[CompiledRules],
    steps: StepArrays,
    units: Mapping[str, str],
    rng: np.random.Generator,
) -> Potential:
    """The potential of lists that read other components; their own, with its values exchanged, where none varies."""
    names = component_columns(lists[0].component_names)
    for _ in range(_TRIES):
        try:
            found = find_potential(lists, steps, permute_columns(names, units, rng))
        except BadInput:
            continue
        if not np.allclose(found, own, equal_nan=True):
            return found
    values, places = np.unique(own, return_inverse=True)  # like states keep like values
    return rng.permutation(values)[places]


def random_potential(like: Potential, steps: StepArrays, rng: np.random.Generator) -> Potential:
    """A random smooth function of the state, with the mean and the spread of another potential.

    Args:
        like: (N,).
        steps: N rows.
        rng: draws; a discrete observation gets a normal number of its own.
    """
    if steps.observation.ndim == 1:
        states, places = np.unique(steps.observation, return_inverse=True)
        drawn = rng.standard_normal(len(states))[places]
    else:
        acted = steps.observation[~steps.is_final].astype(np.float64)
        spread = acted.std(axis=0)
        away = (steps.observation - acted.mean(axis=0)) / np.where(spread > _CONSTANT, spread, 1.0)
        mixed = away @ rng.standard_normal((away.shape[1], _FEATURES)) + rng.standard_normal(_FEATURES)
        drawn = np.tanh(mixed) @ rng.standard_normal(_FEATURES)
    mean, size = _moments(drawn, steps)
    wanted_mean, wanted_size = _moments(like, steps)
    return (drawn - mean) * (wanted_size / size if size > 0 else 0.0) + wanted_mean


def _compute(compiled: CompiledRules, steps: StepArrays, columns: Columns | None) -> Potential:
    rows = np.arange(len(steps))
    parts = np.array_split(rows, max(1, -(-len(rows) // CHUNK)))
    return np.concatenate([compiled.potential(states_at(part, steps), columns) for part in parts])


def _normalised(values: Potential, steps: StepArrays, compiled: CompiledRules) -> Potential:
    mean, size = _moments(values, steps)
    known = values[np.isfinite(values)]
    if len(known) and not np.isfinite(size):  # their squares are too large
        values = values / np.abs(known).max()
        mean, size = _moments(values, steps)
    if not (np.isfinite(size) and size > _CONSTANT * abs(mean)):
        raise BadInput(
            f"The potential of the rules {compiled.listed.list_id} has no value in any step, or the same value in all.",
            "Give another potential, or use --use A.",
        )
    return np.where(np.isfinite(values), (values - mean) / size, np.nan)


def _moments(values: Potential, steps: StepArrays) -> tuple[float, float]:
    """Mean and standard deviation over the steps acted in; NaN where no value is finite."""
    known = values[~steps.is_final & np.isfinite(values)]
    if not len(known):
        return np.nan, np.nan
    with np.errstate(over="ignore", invalid="ignore"):
        return float(known.mean()), float(known.std())
