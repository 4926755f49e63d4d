"""What labels can be compared with where there is no truth: other opinions on equal steps, replays, their confidence.

Opinions are samples of one run, and runs of other models. Confidence is compared, in bins, with whatever there is:
other opinions on the same step, a model of the other episodes' labels, replays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from storage.annotations import LabelReplay
from storage.schema import Annotation

from .models import clustered_error
from .placement import Bools, Floats, Notes, same_actions


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


def measure_agreement(notes: Notes, run_id: str, seed: int = 0) -> Agreement:
    """Compare notes on equal steps.

    Args:
        notes: of all runs of a dataset.
        run_id: pairs count in which at least one note is of this run.
        seed: of the exchange that gives agreement by chance.
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
    shuffled = np.random.default_rng(seed).permutation(len(notes))
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


def sum_up_replays(notes: Notes, replays: Sequence[LabelReplay]) -> ReplayEvidence | None:
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


def measure_calibration(notes: Notes, evidence: Mapping[str, Floats]) -> Calibration:
    """Bin labels by confidence.

    Args:
        notes: the labels; those without a confidence are left out.
        evidence: source -> agreement of each label in [0, 1], (L,), NaN where there is nothing to compare with.
    """
    given = np.isfinite(notes.confidence)
    comparable = {
        source: values for source, values in evidence.items() if np.count_nonzero(given & np.isfinite(values)) >= 2
    }
    bins = tuple(
        _bin(low, high, notes.confidence, given & _within(notes.confidence, low, high), comparable)
        for low, high in pairwise(EDGES)
    )
    filled = tuple(found for found in bins if found.labels)
    return Calibration(
        bins=filled,
        rise={source: _rise(notes.confidence, values, given) for source, values in comparable.items()},
        errors={source: _error(filled, source) for source in comparable},
    )


def _within(confidence: Floats, low: float, high: float) -> Bools:
    return (confidence >= low) & ((confidence < high) | ((high == EDGES[-1]) & (confidence <= high)))


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
