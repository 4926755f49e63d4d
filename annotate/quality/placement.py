"""Where labels are, and what they can be compared with where there is no truth.

Each label is placed at its step; labels are spread over the time of their episodes, over the episodes and over the
states. Opinions are samples of one run, and runs of other models. Confidence is compared, in bins, with whatever there
is: other opinions on the same step, a model of the other episodes' labels, replays.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from storage.annotations import LabelReplay
from storage.catalog import AGREEMENT_SHARE
from storage.datasets import ENOUGH_ROWS, StepArrays, choose_rows
from storage.schema import Annotation, Array, Space

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class AnnotationColumns:
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


def place_annotations(annotations: Sequence[Annotation], steps: StepArrays, action_space: Space) -> AnnotationColumns:
    """Put annotations beside their steps; those without a suggestion are left out.

    Raises:
        BadInput: if one is of a step that the dataset lacks.
    """
    kept = [note for note in annotations if note.suggested_action is not None]
    rows = steps.rows_of([note.episode_id for note in kept], [note.step for note in kept])
    suggested = np.array([note.suggested_action for note in kept], np.float64).reshape(len(kept), action_space.size)
    logged = np.asarray(steps.action[rows], np.float64).reshape(len(kept), action_space.size)
    confidence = [np.nan if note.confidence is None else note.confidence for note in kept]
    return AnnotationColumns(
        annotations=tuple(kept),
        rows=rows,
        states=state_rows(steps, rows),
        suggested=suggested,
        logged=logged,
        confidence=np.array(confidence, np.float64),
        critical=np.array([note.critical for note in kept], np.bool_),
        agrees=same_actions(suggested, logged, action_space),
        action_space=action_space,
    )


def state_rows(steps: StepArrays, rows: NDArray[np.int64] | slice = slice(None)) -> Floats:
    """Observations of rows as (R, n) numbers."""
    seen = steps.observation[rows]
    return np.asarray(seen, np.float64).reshape(len(seen), math.prod(seen.shape[1:]))


def same_actions(left: Array, right: Array, space: Space) -> Bools:
    """Whether actions agree, (L,): equal when discrete, else each number within 5% of its range (as the views say).

    Args:
        left: (L, m).
        right: (L, m); where a number has no bounds, its size sets the tolerance.
        space: of the actions.
    """
    if space.is_discrete:
        return np.asarray(left[:, 0] == right[:, 0], np.bool_)
    return np.all(np.abs(left - right) <= AGREEMENT_SHARE * action_extent(space, right), axis=1)


def action_extent(space: Space, actions: Array) -> Floats:
    """The unit in which differences of continuous actions count, (L, m): a number's range, or its size (1 at least).

    Args:
        space: of the actions.
        actions: (L, m), for numbers without bounds.
    """
    low = np.full(space.size, -np.inf) if space.low is None else np.array(space.low)
    high = np.full(space.size, np.inf) if space.high is None else np.array(space.high)
    bounded = np.isfinite(low) & np.isfinite(high)
    return np.where(bounded, np.where(bounded, high, 0) - np.where(bounded, low, 0), np.maximum(1, np.abs(actions)))


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


def measure_coverage(notes: AnnotationColumns, steps: StepArrays) -> Coverage:
    """Coverage of time and state space.

    The cells are an 8 x 8 grid over the first two principal components of the standardised states, cut at their
    quantiles, so that each row and each column of cells has equally many steps. Of a large dataset a million steps,
    drawn by chance, stand for all.
    """
    chosen = choose_rows(np.flatnonzero(~steps.is_final), ENOUGH_ROWS)
    acted = np.union1d(chosen, notes.rows)
    tenths = _tenths(notes, steps)
    states = state_rows(steps, acted)
    cells = _cells(states)
    counts = np.bincount(cells[np.searchsorted(acted, chosen)], minlength=CELLS_PER_AXIS**2)
    rng = np.random.default_rng(0)
    places = np.searchsorted(acted, notes.rows)
    drawn = [rng.choice(len(acted), min(len(notes), len(acted)), replace=False) for _ in range(_DRAWS)]
    return Coverage(
        episodes=len(np.unique(notes.episodes)),
        episodes_in_all=len(steps.episodes),
        by_tenth=tuple((tenths / max(1, tenths.sum())).tolist()),
        evenness=_evenness(tenths),
        states=_covered(cells[places], counts),
        states_by_chance=float(np.mean([_covered(cells[rows], counts) for rows in drawn])),
        outside=_outside(notes.states, states),
    )


def _tenths(notes: AnnotationColumns, steps: StepArrays) -> NDArray[np.int64]:
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


def clustered_error(values: Floats, clusters: NDArray[np.int64]) -> float:
    """Standard error of a mean whose values are alike within clusters (the sandwich estimate)."""
    if len(np.unique(clusters)) < 2:
        return float("nan")
    _, place = np.unique(clusters, return_inverse=True)
    sums = np.bincount(place, weights=values - values.mean())
    count = len(sums)
    return float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(values))


@dataclass(frozen=True)
class Pairwise:
    """Pairs of opinions on equal steps."""

    pairs: int
    steps: int
    agreement: float | None  # share of the pairs that agree
    by_chance: float | None  # the same if each opinion were exchanged for that on another step


@dataclass(frozen=True)
class Agreement:
    """Pairs within a run (its samples), and pairs of different models."""

    samples: Pairwise
    models: Pairwise
    of_each: Floats  # (L,) share of the other opinions on its step that agree with each note, NaN where it is alone


def measure_agreement(notes: AnnotationColumns, run_id: str) -> Agreement:
    """Compare notes on equal steps.

    Args:
        notes: of all runs of a dataset.
        run_id: pairs count in which at least one note is of this run.
    """
    own = [note.run_id == run_id for note in notes.annotations]
    by_step: dict[int, dict[str, int]] = defaultdict(dict)
    for place, (row, note) in enumerate(zip(notes.rows.tolist(), notes.annotations, strict=True)):
        opinion = note.request_id or note.annotation_id  # a reply that two runs share is one opinion
        if opinion not in by_step[row] or own[place]:
            by_step[row][opinion] = place
    alike = (combinations(places.values(), 2) for places in by_step.values())
    found = [pair for pairs in alike for pair in pairs if own[pair[0]] or own[pair[1]]]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    agree = same_actions(notes.suggested[pairs[:, 0]], notes.suggested[pairs[:, 1]], notes.action_space)
    shuffled = np.random.default_rng(0).permutation(len(notes))
    chance = same_actions(notes.suggested[pairs[:, 0]], notes.suggested[shuffled[pairs[:, 1]]], notes.action_space)
    counts, agreed = np.zeros(len(notes)), np.zeros(len(notes))
    for side in (0, 1):
        np.add.at(counts, pairs[:, side], 1)
        np.add.at(agreed, pairs[:, side], agree)
    of_each = np.divide(agreed, counts, out=np.full(len(notes), np.nan), where=counts > 0)

    def select(related: Callable[[Annotation, Annotation], bool]) -> Pairwise:
        kept = [related(notes.annotations[one], notes.annotations[other]) for one, other in pairs.tolist()]
        where = np.array(kept, np.bool_)
        if not where.any():
            return Pairwise(0, 0, None, None)
        steps = len(np.unique(notes.rows[pairs[where, 0]]))
        return Pairwise(int(where.sum()), steps, float(agree[where].mean()), float(chance[where].mean()))

    return Agreement(
        samples=select(lambda one, other: one.run_id == other.run_id),
        models=select(lambda one, other: one.model != other.model),
        of_each=of_each,
    )


@dataclass(frozen=True)
class ReplayEvidence:
    """Suggestions that were taken once in their exact state, and then the policy went on."""

    replayed: int
    inexact: int  # states that could not be reached bit for bit; nothing was measured there
    advantage: float  # mean over the suggestions, in units of return
    standard_error: float  # by episodes
    better: float  # share of suggestions with a positive advantage
    worse: float
    environment_steps: int
    of_each: Floats  # (L,) 1 better, 0 worse, NaN when equal or not replayed


def sum_up_replays(notes: AnnotationColumns, replays: Sequence[LabelReplay]) -> ReplayEvidence | None:
    """Sum up the replays of some notes; a label replayed in several ways counts with its newest measure by id order."""
    of_note = {replay.annotation_id: replay for replay in replays}
    mine = [of_note.get(note.annotation_id) for note in notes.annotations]
    found = [replay.advantage if replay is not None else None for replay in mine]
    advantages = np.array([np.nan if value is None else value for value in found], np.float64)
    known = np.isfinite(advantages)
    if not known.any():
        return None
    return ReplayEvidence(
        replayed=int(known.sum()),
        inexact=sum(replay is not None and not replay.exact for replay in mine),
        advantage=float(advantages[known].mean()),
        standard_error=clustered_error(advantages[known], notes.episodes[known]),
        better=float((advantages[known] > 0).mean()),
        worse=float((advantages[known] < 0).mean()),
        environment_steps=sum(replay.environment_steps for replay in mine if replay is not None),
        of_each=np.where(known & (advantages != 0), (advantages > 0).astype(np.float64), np.nan),
    )


EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TELLING_GAP = 0.05
"""A rise of agreement from the less to the more confident half from which on confidence says something."""


@dataclass(frozen=True)
class Bin:
    """Labels of like confidence."""

    low: float
    high: float
    labels: int
    confidence: float  # mean
    agreement: Mapping[str, float]  # source -> share, where there is something to compare with
    compared: Mapping[str, int]  # source -> labels compared


@dataclass(frozen=True)
class Calibration:
    """Agreement by confidence."""

    bins: tuple[Bin, ...]
    rise: Mapping[str, float]  # source -> agreement of the more confident half minus that of the less confident one
    errors: Mapping[str, float]  # source -> expected calibration error: mean |confidence - agreement| over the bins

    @property
    def sources(self) -> tuple[str, ...]:
        """What there was to compare with."""
        return tuple(self.rise)


def measure_calibration(notes: AnnotationColumns, evidence: Mapping[str, Floats]) -> Calibration:
    """Bin labels by confidence.

    Args:
        notes: the labels; those without a confidence are left out.
        evidence: source -> agreement of each label in [0, 1], (L,), NaN where there is nothing to compare with.
    """
    given = np.isfinite(notes.confidence)
    comparable = {
        source: values for source, values in evidence.items() if np.count_nonzero(given & np.isfinite(values)) >= 2
    }
    places = np.where(given, np.digitize(notes.confidence, EDGES[1:-1]), -1)
    bins = tuple(
        _bin(low, high, notes.confidence, places == number, comparable)
        for number, (low, high) in enumerate(pairwise(EDGES))
    )
    filled = tuple(found for found in bins if found.labels)
    return Calibration(
        bins=filled,
        rise={source: _rise(notes.confidence, values, given) for source, values in comparable.items()},
        errors={source: _error(filled, source) for source in comparable},
    )


def _bin(low: float, high: float, confidence: Floats, inside: Bools, evidence: Mapping[str, Floats]) -> Bin:
    known = {source: inside & np.isfinite(values) for source, values in evidence.items()}
    return Bin(
        low=low,
        high=high,
        labels=int(inside.sum()),
        confidence=float(confidence[inside].mean()) if inside.any() else float("nan"),
        agreement={source: float(evidence[source][where].mean()) for source, where in known.items() if where.any()},
        compared={source: int(where.sum()) for source, where in known.items() if where.any()},
    )


def _rise(confidence: Floats, values: Floats, given: Bools) -> float:
    """Agreement above the median confidence minus agreement below it; labels at the median count half on each side."""
    known = given & np.isfinite(values)
    sure, agreed = confidence[known], values[known]
    middle = float(np.median(sure))
    upper = (sure > middle) + 0.5 * (sure == middle)
    lower = 1 - upper
    if upper.sum() == 0 or lower.sum() == 0:
        return 0.0
    return float((upper * agreed).sum() / upper.sum() - (lower * agreed).sum() / lower.sum())


def _error(bins: tuple[Bin, ...], source: str) -> float:
    compared = [(found, found.compared[source]) for found in bins if source in found.compared]
    total = sum(count for _, count in compared)
    return sum(abs(found.confidence - found.agreement[source]) * count for found, count in compared) / total
