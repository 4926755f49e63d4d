"""Annotations as arrays beside the steps they speak of, and when two actions count as the same.

It judges nothing; what follows from the arrays is in `consistency.py`, `calibration.py`, `coverage.py`, `salience.py`.
"""

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
