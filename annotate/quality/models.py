"""Predictions of small models that are fitted on other episodes: consistency, and critical steps.

Random labels cannot be predicted, whatever the model; labels by a rule can, which does not say whether the rule is
good. The value function behind the TD errors is a ridge regression of the discounted return on the standardised state,
its products of two and the time that has passed; it is crude, and what it says is evidence, no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are used, which takes a second
from numpy.typing import NDArray

from storage.datasets import StepArrays

from .placement import AnnotationColumns, Bools, Floats, clustered_error, state_rows

Ints = NDArray[np.int64]

FOLDS = 5
WIDEST_PAIRED = 12
"""States of up to this many numbers get all products of two of them as features; wider ones only the squares."""
RIDGE = 1.0


def features_of(states: Floats) -> Floats:
    """Standardised states (L, n), their products and a constant, (L, f)."""
    spread = states.std(axis=0)
    kept = spread > 1e-9
    z = np.clip((states[:, kept] - states[:, kept].mean(axis=0)) / spread[kept], -5, 5)
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
            log_shares = scipy.special.log_softmax(features @ weights, axis=1)
            gradient = features.T @ (np.exp(log_shares) - hot) + RIDGE * weights
            return float(-(log_shares * hot).sum() + RIDGE / 2 * (weights**2).sum()), gradient.ravel()

        start, limits = np.zeros(shape).ravel(), {"maxiter": 200}
        found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=limits)
        weights = np.asarray(found.x).reshape(shape)
        return lambda rows: np.asarray(scipy.special.log_softmax(rows @ weights, axis=1))

    return fit


def fit_numbers(features: Floats, targets: Floats | Ints) -> Callable[[Floats], Floats]:
    """Ridge regression of (L, m) numbers; the constant, which is the first feature, is not penalised."""
    penalty = RIDGE * np.eye(features.shape[1])
    penalty[0, 0] = 1e-9
    weights = np.linalg.solve(features.T @ features + penalty, features.T @ targets)
    return lambda rows: rows @ weights


FEWEST = 20
"""Labels under which nothing is fitted."""


@dataclass(frozen=True)
class Consistency:
    """How well labels can be predicted in episodes that were left out."""

    measure: str  # "accuracy" when discrete; "explained" (share of the variance) when continuous
    score: float  # out of fold
    trivial: float  # of always saying the commonest action, or the mean, of the other folds
    lift: float  # score - trivial
    standard_error: float  # of the lift, by episodes
    hits: Bools  # (L,) discrete: predicted exactly; continuous: nearer than the mean is
    shuffled: float  # score when labels are dealt out anew among their states: what chance reaches


def measure_consistency(notes: AnnotationColumns) -> Consistency | None:
    """Predict each label by a model of the other episodes' labels; None when there are too few.

    Discrete: softmax regression on the standardised state and its products of two (ridge 1); its trivial rival says
    the commonest label. Continuous: ridge regression, whose trivial rival says the mean.
    """
    if len(notes) < FEWEST or len(np.unique(notes.episodes)) < 2:
        return None
    order = np.random.default_rng(0).permutation(len(notes))
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


def _classes(notes: AnnotationColumns, order: np.ndarray) -> tuple[Bools, Bools]:
    """Which labels the model predicts, and which the commonest one of the other folds."""
    values, targets = np.unique(notes.classes[order], return_inverse=True)
    folds = fold_of(notes.episodes)
    predicted = predict_out_of_fold(features_of(notes.states), targets, folds, fit_classes(len(values)))
    commonest = [np.bincount(targets[folds != fold], minlength=len(values)).argmax() for fold in range(folds.max() + 1)]
    return predicted.argmax(axis=1) == targets, np.array(commonest)[folds] == targets


def _numbers(notes: AnnotationColumns, order: np.ndarray) -> tuple[Floats, Floats]:
    """Squared errors of the model and of the mean, (L,), each number in units of its spread."""
    targets = notes.suggested[order]
    targets = targets / np.maximum(targets.std(axis=0), 1e-9)
    folds = fold_of(notes.episodes)
    predicted = predict_out_of_fold(features_of(notes.states), targets, folds, fit_numbers)
    means = np.array([targets[folds != fold].mean(axis=0) for fold in range(folds.max() + 1)])[folds]
    return ((predicted - targets) ** 2).sum(axis=1), np.maximum(((means - targets) ** 2).sum(axis=1), 1e-12)


def _sum_up(
    measure: str, score: float, trivial: float, gains: Floats, hits: Bools, chance: float, notes: AnnotationColumns
) -> Consistency:
    error = clustered_error(np.asarray(gains, np.float64), notes.episodes)
    return Consistency(measure, float(score), float(trivial), float(score - trivial), error, hits, chance)


GAMMA = 0.99
MOST_ROWS = 200_000


@dataclass(frozen=True)
class Salience:
    """Size of |advantage| and |TD error| at critical steps, against the other steps of the same episodes."""

    critical: int  # critical labels
    advantage_ratio: float  # mean at critical steps / mean over all steps of the labelled episodes
    advantage_rank: float  # mean rank within the episode, 0.5 by chance
    td_ratio: float
    td_rank: float
    rank_error: float  # standard error of td_rank, by episodes
    explained: float  # share of the return's variance that the value function explains, out of fold


def measure_salience(notes: AnnotationColumns, steps: StepArrays) -> Salience | None:
    """Compare critical steps with the others; None without two episodes or any critical label.

    advantage = G_t - V(s_t) with the discounted return G_t of the log; TD error = r_t + gamma V(s_t+1) - V(s_t), where
    V is 0 after a termination (Sutton and Barto, Reinforcement Learning, section 6.1).
    """
    rows = notes.rows[notes.critical]
    if not len(rows) or len(steps.episodes) < 2 or len(steps) > MOST_ROWS:
        return None
    returns = discounted_returns(steps, GAMMA)
    values = _fitted_values(steps, returns)
    acted = ~steps.is_final
    following = np.append(values[1:], 0.0) * ~steps.terminated
    advantages = np.abs(returns - values)
    errors = np.abs(steps.reward + GAMMA * following - values)
    inside = acted & np.isin(steps.episode_id, notes.episodes)
    ranks = _ranks_within_episodes(errors, steps, acted)[rows]
    return Salience(
        critical=len(rows),
        advantage_ratio=float(advantages[rows].mean() / advantages[inside].mean()),
        advantage_rank=float(_ranks_within_episodes(advantages, steps, acted)[rows].mean()),
        td_ratio=float(errors[rows].mean() / errors[inside].mean()),
        td_rank=float(ranks.mean()),
        rank_error=clustered_error(ranks, notes.episodes[notes.critical]),
        explained=float(1 - ((returns - values)[acted] ** 2).mean() / max(returns[acted].var(), 1e-12)),
    )


def discounted_returns(steps: StepArrays, gamma: float) -> Floats:
    """G_t = r_t + gamma G_t+1 within each episode, (N,); 0 on final rows."""
    returns = np.zeros(len(steps))
    for row in range(len(steps) - 2, -1, -1):
        if not steps.is_final[row]:
            returns[row] = steps.reward[row] + gamma * returns[row + 1]
    return returns


def _fitted_values(steps: StepArrays, returns: Floats) -> Floats:
    """V of every row, by fits on other episodes; final rows are predicted, not fitted."""
    states = np.column_stack([state_rows(steps), steps.step.astype(np.float64)])
    features = features_of(states)
    folds = fold_of(steps.episode_id)
    known = ~steps.is_final
    values = np.zeros(len(steps))
    for fold in range(folds.max() + 1):
        predict = fit_numbers(features[known & (folds != fold)], returns[known & (folds != fold), None])
        values[folds == fold] = predict(features[folds == fold])[:, 0]
    return values


def _ranks_within_episodes(sizes: Floats, steps: StepArrays, acted: Bools) -> Floats:
    """The mid-rank of each step among those of its episode, in (0, 1), (N,)."""
    ranks: NDArray[np.float64] = np.full(len(steps), np.nan)
    for start, length in zip(steps.starts.tolist(), steps.lengths.tolist(), strict=True):
        part = slice(start, start + length)
        ranks[part] = (scipy.stats.rankdata(sizes[part]) - 0.5) / max(length, 1)
    return np.where(acted, ranks, np.nan)
