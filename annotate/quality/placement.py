"""Where labels are: each at its step, spread over the time of their episodes, over the episodes and over the states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.catalog import AGREEMENT_SHARE
from storage.datasets import StepArrays
from storage.schema import Annotation, Array, Space

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Notes:
    """L annotations of one dataset, those with a suggestion, as columns."""

    annotations: tuple[Annotation, ...]
    rows: NDArray[np.int64]  # (L,) rows of the steps
    states: Floats  # (L, n) observations
    suggested: Floats  # (L, m) actions
    logged: Floats  # (L, m) what was done there
    confidence: Floats  # (L,), NaN where none was given
    critical: Bools  # (L,)
    agrees: Bools  # (L,) whether the suggestion confirms the logged action
    action_space: Space

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def episodes(self) -> NDArray[np.int64]:
        """The episode of each, (L,)."""
        return np.array([note.episode_id for note in self.annotations], np.int64)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Discrete suggestions as whole numbers, (L,)."""
        return self.suggested[:, 0].astype(np.int64)


def place_notes(annotations: Sequence[Annotation], steps: StepArrays, action_space: Space) -> Notes:
    """Put annotations beside their steps; those without a suggestion are left out.

    Raises:
        BadInput: if one is of a step that the dataset lacks.
    """
    kept = [note for note in annotations if note.suggested_action is not None]
    rows = steps.rows_of([note.episode_id for note in kept], [note.step for note in kept])
    suggested = np.array([note.suggested_action for note in kept], np.float64).reshape(len(kept), action_space.size)
    logged = np.asarray(steps.action[rows], np.float64).reshape(len(kept), action_space.size)
    confidence = [np.nan if note.confidence is None else note.confidence for note in kept]
    return Notes(
        annotations=tuple(kept),
        rows=rows,
        states=state_rows(steps)[rows],
        suggested=suggested,
        logged=logged,
        confidence=np.array(confidence, np.float64),
        critical=np.array([note.critical for note in kept], np.bool_),
        agrees=same_actions(suggested, logged, action_space),
        action_space=action_space,
    )


def state_rows(steps: StepArrays) -> Floats:
    """Observations as (N, n) numbers."""
    return np.asarray(steps.observation, np.float64).reshape(len(steps), -1)


def same_actions(left: Array, right: Array, space: Space) -> Bools:
    """Whether actions agree, (L,): equal when discrete, else each number within 5% of its range (as the views say).

    Args:
        left: (L, m).
        right: (L, m); where a number has no bounds, its size sets the tolerance.
        space: of the actions.
    """
    if space.is_discrete:
        return np.asarray(left[:, 0] == right[:, 0], np.bool_)
    low = np.full(space.size, -np.inf) if space.low is None else np.array(space.low)
    high = np.full(space.size, np.inf) if space.high is None else np.array(space.high)
    bounded = np.isfinite(low) & np.isfinite(high)
    extent = np.where(bounded, np.where(bounded, high, 0) - np.where(bounded, low, 0), np.maximum(1, np.abs(right)))
    return np.all(np.abs(left - right) <= AGREEMENT_SHARE * extent, axis=1)


TENTHS = 10
CELLS_PER_AXIS = 8
_DRAWS = 20


@dataclass(frozen=True)
class Coverage:
    """Where the labels of a run are."""

    episodes: int  # with a label
    episodes_in_all: int
    by_tenth: tuple[float, ...]  # share of the labels in each tenth of their episode
    evenness: float  # entropy of that, 1 when all tenths are alike
    states: float  # share of all steps that lie in a cell of state space with a label
    states_by_chance: float  # the same for as many steps drawn at random
    outside: float  # share of the labels' states that lie beyond the middle 98% of all steps in some component


def measure_coverage(notes: Notes, steps: StepArrays, seed: int = 0) -> Coverage:
    """Coverage of time and state space.

    The cells are an 8 x 8 grid over the first two principal components of the standardised states, cut at their
    quantiles, so that each row and each column of cells has equally many steps.
    """
    acted = np.flatnonzero(~steps.is_final)
    tenths = _tenths(notes, steps)
    cells = _cells(state_rows(steps)[acted])
    counts = np.bincount(cells, minlength=CELLS_PER_AXIS**2)
    rng = np.random.default_rng(seed)
    places = np.searchsorted(acted, notes.rows)
    drawn = [rng.choice(len(acted), min(len(notes), len(acted)), replace=False) for _ in range(_DRAWS)]
    return Coverage(
        episodes=len(np.unique(notes.episodes)),
        episodes_in_all=len(steps.episodes),
        by_tenth=tuple((tenths / max(1, tenths.sum())).tolist()),
        evenness=_evenness(tenths),
        states=_covered(cells[places], counts),
        states_by_chance=float(np.mean([_covered(cells[rows], counts) for rows in drawn])),
        outside=_outside(notes.states, state_rows(steps)[acted]),
    )


def _tenths(notes: Notes, steps: StepArrays) -> NDArray[np.int64]:
    lengths = steps.lengths[np.searchsorted(steps.episodes, notes.episodes)]
    places = steps.step[notes.rows] * TENTHS // np.maximum(lengths, 1)
    return np.bincount(np.minimum(places, TENTHS - 1), minlength=TENTHS)


def _evenness(counts: NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum() / np.log(len(counts)))


def _cells(states: Floats) -> NDArray[np.int64]:
    """The cell of each state, (N,)."""
    spread = states.std(axis=0)
    z = (states - states.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)
    _, axes = np.linalg.eigh(z.T @ z)
    main = z @ axes[:, ::-1][:, :2]
    cut = [np.quantile(column, np.arange(1, CELLS_PER_AXIS) / CELLS_PER_AXIS) for column in main.T]
    places = [np.searchsorted(edges, column) for edges, column in zip(cut, main.T, strict=True)]
    return np.asarray(places[0] * CELLS_PER_AXIS + (places[1] if len(places) > 1 else 0), np.int64)


def _covered(cells: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    return float(counts[np.unique(cells)].sum() / counts.sum())


def _outside(states: Floats, everything: Floats) -> float:
    if not len(states):
        return 0.0
    low, high = np.quantile(everything, [0.01, 0.99], axis=0)
    return float(np.mean(np.any((states < low) | (states > high), axis=1)))
