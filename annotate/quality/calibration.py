"""Does confidence mean anything? Agreement of labels by bins of their confidence, with whatever can be compared.

There is no truth to compare with, so each column says what it was compared with: other opinions on the same step, a
model of the other episodes' labels, replays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .notes import Bools, Floats, Notes

EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TELLING_GAP = 0.05
"""A rise of agreement from the less to the more confident half that is worth the name."""
SOURCES = {
    "opinions": "share of the other opinions on the same step that agree",
    "out_of_fold": "share foretold by a model of the other episodes' labels",
    "replays": "share of the suggestions that did better than the logged action when replayed (ties left out)",
}


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
