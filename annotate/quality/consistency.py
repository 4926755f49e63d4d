"""Do a run's labels follow from the states at all? A small model, trained on other episodes, tries to foretell them.

Random labels cannot be foretold, whatever the model; labels by a rule can. It does not say whether the rule is good.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fitting import clustered_error, features_of, fit_classes, fit_numbers, fold_of, predict_out_of_fold
from .notes import Bools, Floats, Notes

FEWEST = 20
"""Labels under which nothing is fitted."""


@dataclass(frozen=True)
class Consistency:
    """How well labels can be foretold in episodes that were left out."""

    measure: str  # "accuracy" when discrete; "explained" (share of the variance) when continuous
    score: float  # out of fold
    trivial: float  # of always saying the commonest action, or the mean, of the other folds
    lift: float  # score - trivial
    standard_error: float  # of the lift, by episodes
    hits: Bools  # (L,) discrete: foretold exactly; continuous: nearer than the mean is
    shuffled: float  # score when labels are dealt out anew among their states: what chance reaches


def measure_consistency(notes: Notes, seed: int = 0) -> Consistency | None:
    """Foretell each label by a model of the other episodes' labels; None when there are too few.

    Discrete: softmax regression on the standardised state and its products of two (ridge 1); its trivial rival says
    the commonest label. Continuous: ridge regression, whose trivial rival says the mean.
    """
    if len(notes) < FEWEST or len(np.unique(notes.episodes)) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(notes))
    if notes.action_space.is_discrete:
        hits, trivial = _classes(notes, np.arange(len(notes)))
        chance = float(_classes(notes, order)[0].mean())
        gains = hits.astype(np.float64) - trivial
        return _sum_up("accuracy", hits.mean(), trivial.mean(), gains, hits, chance, notes)
    errors, total = _numbers(notes, np.arange(len(notes)))
    wrong, spread = _numbers(notes, order)
    gains = (total - errors) / total.mean()
    chance = float(1 - wrong.mean() / spread.mean())
    return _sum_up("explained", gains.mean(), 0.0, gains, errors < total, chance, notes)


def _classes(notes: Notes, order: np.ndarray) -> tuple[Bools, Bools]:
    """Which labels the model foretells, and which the commonest one of the other folds."""
    values, targets = np.unique(notes.classes[order], return_inverse=True)
    folds = fold_of(notes.episodes)
    said = predict_out_of_fold(features_of(notes.states), targets, folds, fit_classes(len(values)))
    commonest = [np.bincount(targets[folds != fold], minlength=len(values)).argmax() for fold in range(folds.max() + 1)]
    return said.argmax(axis=1) == targets, np.array(commonest)[folds] == targets


def _numbers(notes: Notes, order: np.ndarray) -> tuple[Floats, Floats]:
    """Squared errors of the model and of the mean, (L,), each number in units of its spread."""
    targets = notes.suggested[order]
    targets = targets / np.maximum(targets.std(axis=0), 1e-9)
    folds = fold_of(notes.episodes)
    said = predict_out_of_fold(features_of(notes.states), targets, folds, fit_numbers)
    means = np.array([targets[folds != fold].mean(axis=0) for fold in range(folds.max() + 1)])[folds]
    return ((said - targets) ** 2).sum(axis=1), np.maximum(((means - targets) ** 2).sum(axis=1), 1e-12)


def _sum_up(
    measure: str, score: float, trivial: float, gains: Floats, hits: Bools, chance: float, notes: Notes
) -> Consistency:
    error = clustered_error(np.asarray(gains, np.float64), notes.episodes)
    return Consistency(measure, float(score), float(trivial), float(score - trivial), error, hits, chance)
