"""Small regressions of states, and predictions for episodes that a fit has not seen. NumPy and SciPy only.

They measure labels; nothing here is a policy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 5
WIDEST_PAIRED = 12
"""States of up to this many numbers get all products of two of them as features; wider ones only the squares."""
RIDGE = 1.0


def features_of(states: Floats, reference: Floats | None = None) -> Floats:
    """Standardised states, their products and a constant, (L, f).

    Args:
        states: (L, n).
        reference: (N, n) states whose mean and spread are the units; `states` themselves when None.
    """
    source = states if reference is None else reference
    spread = source.std(axis=0)
    kept = spread > 1e-9
    z = np.clip((states[:, kept] - source[:, kept].mean(axis=0)) / spread[kept], -5, 5)
    first, second = np.triu_indices(z.shape[1]) if z.shape[1] <= WIDEST_PAIRED else (np.arange(z.shape[1]),) * 2
    return np.concatenate([np.ones((len(z), 1)), z, z[:, first] * z[:, second]], axis=1)


def fold_of(episodes: Ints) -> Ints:
    """The fold of each row, (L,): whole episodes, dealt out in turn."""
    distinct = np.unique(episodes)
    return np.searchsorted(distinct, episodes) % min(FOLDS, len(distinct))


def predict_out_of_fold(
    features: Floats,
    targets: Floats | Ints,
    folds: Ints,
    fit: Callable[[Floats, Floats | Ints], Callable[[Floats], Floats]],
) -> Floats:
    """For each row what a fit on the other folds says, (L, ...)."""
    parts = [(folds == fold, fit(features[folds != fold], targets[folds != fold])) for fold in range(folds.max() + 1)]
    first = parts[0][1](features[:1])
    predicted = np.zeros((len(features), *first.shape[1:]))
    for inside, predict in parts:
        predicted[inside] = predict(features[inside])
    return predicted


def fit_classes(classes: int) -> Callable[[Floats, Floats | Ints], Callable[[Floats], Floats]]:
    """A softmax regression with a squared penalty; it predicts log-probabilities, (L, classes)."""

    def fit(features: Floats, targets: Floats | Ints) -> Callable[[Floats], Floats]:
        shape = (features.shape[1], classes)
        hot = np.eye(classes)[targets.astype(np.int64)]

        def loss(flat: Floats) -> tuple[float, Floats]:
            weights = flat.reshape(shape)
            said = log_softmax(features @ weights, axis=1)
            gradient = features.T @ (np.exp(said) - hot) + RIDGE * weights
            return float(-(said * hot).sum() + RIDGE / 2 * (weights**2).sum()), gradient.ravel()

        found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 200})
        weights = np.asarray(found.x).reshape(shape)
        return lambda rows: np.asarray(log_softmax(rows @ weights, axis=1))

    return fit


def fit_numbers(features: Floats, targets: Floats | Ints) -> Callable[[Floats], Floats]:
    """Ridge regression of (L, m) numbers; the constant, which is the first feature, is not penalised."""
    penalty = RIDGE * np.eye(features.shape[1])
    penalty[0, 0] = 1e-9
    weights = np.linalg.solve(features.T @ features + penalty, features.T @ targets)
    return lambda rows: rows @ weights


def clustered_error(values: Floats, clusters: Ints) -> float:
    """Standard error of a mean whose values are alike within clusters (the sandwich estimate)."""
    if len(np.unique(clusters)) < 2:
        return float("nan")
    _, place = np.unique(clusters, return_inverse=True)
    sums = np.bincount(place, weights=values - values.mean())
    count = len(sums)
    return float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(values))
