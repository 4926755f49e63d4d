"""Which candidate to keep when nothing can be played: the one that predicts held-out labels best.

It scores the steps and betas of a refinement; what a policy is worth is `ope.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from storage.datasets import ENOUGH_ROWS, StepArrays
from storage.errors import BadInput
from storage.schema import Array

from ..config import RefineConfig
from ..labels import Labels
from ..policies import MlpPolicy, action_bounds, action_units
from ..training import as_logits, refine

Floats = NDArray[np.float64]
FOLDS = 5


@dataclass(frozen=True)
class Consistency:
    """How well each candidate predicts held-out suggestions, weighted by their confidence."""

    likelihoods: Floats  # (candidates,) mean log-likelihood; continuous: minus the squared error in units of the bounds
    agreements: Floats  # (candidates,) share of equal greedy actions; continuous: minus the absolute error
    baseline: float  # the baseline's likelihood of the same labels
    labels: int  # held out once each

    @property
    def best(self) -> int:
        """The likeliest candidate; of equals the one that was trained less."""
        return int(np.argmax(self.likelihoods))


def out_of_fold(
    steps: StepArrays, labels: Labels, baseline: MlpPolicy, config: RefineConfig, *, folds: int = FOLDS
) -> Consistency:
    """Score every candidate's number of steps and beta on labels of episodes that its training has not seen.

    The labelled episodes are dealt into folds. For each fold the refinement is trained on the other episodes, with all
    of its snapshots, and each snapshot is asked for the held-out suggestions. Of a large dataset the trainings see the
    labelled episodes and, of the others, as many as hold a million rows, drawn by chance.

    Args:
        steps: the logged steps.
        labels: of these steps.
        baseline: where every training starts.
        config: the refinement.
        folds: at most; fewer when fewer episodes have suggestions.

    Raises:
        BadInput: when fewer than two episodes have a suggestion.
    """
    episodes = np.unique(steps.episode_id[labels.rows[labels.weights > 0]])
    if len(episodes) < 2:
        raise BadInput(
            f"{len(episodes)} episodes have suggestions; at least 2 are needed to hold labels out.",
            "Annotate more episodes.",
        )
    order = np.random.default_rng(config.seed).permutation(episodes)
    steps, labels = _restrict(steps, labels, _choose_episodes(steps, labels))
    scored = [
        _score_fold(steps, labels, baseline, config, held_out=order[fold :: min(folds, len(order))])
        for fold in range(min(folds, len(order)))
    ]
    weights = [exam.weights.sum() for _, exam in scored]
    likelihoods, agreements = np.average([scores for scores, _ in scored], axis=0, weights=weights)
    return Consistency(likelihoods[1:], agreements[1:], float(likelihoods[0]), sum(len(exam) for _, exam in scored))


def _score_fold(
    steps: StepArrays, labels: Labels, baseline: MlpPolicy, config: RefineConfig, *, held_out: NDArray[np.int64]
) -> tuple[Floats, Labels]:
    """Likelihoods and agreements (2, candidates + 1), the baseline's first, and the labels that were asked for."""
    snapshots = refine(*_restrict(steps, labels, ~np.isin(steps.episodes, held_out)), baseline, config)
    asked = np.isin(steps.episode_id[labels.rows], held_out) & (labels.weights > 0)
    exam = labels.take(asked)
    start = as_logits(baseline, steps.observation) if baseline.head == "q_values" else baseline
    scores = [_score(policy, steps.observation[exam.rows], exam) for policy in (start, *(s.policy for s in snapshots))]
    return np.array(scores).T, exam


def _choose_episodes(steps: StepArrays, labels: Labels) -> NDArray[np.bool_]:
    """Which episodes are learned from, (E,): those with a label, and others by chance until they hold enough rows."""
    chosen = np.zeros(len(steps.starts), np.bool_)
    chosen[_episode_of(labels, steps)] = True
    others = np.flatnonzero(~chosen)
    if (steps.lengths[others] + 1).sum() > ENOUGH_ROWS:
        others = np.random.default_rng(ENOUGH_ROWS).permutation(others)
        others = others[np.cumsum(steps.lengths[others] + 1) <= ENOUGH_ROWS]
    chosen[others] = True
    return chosen


def _restrict(steps: StepArrays, labels: Labels, stays: NDArray[np.bool_]) -> tuple[StepArrays, Labels]:
    """The steps and labels of some episodes, (E,)."""
    if stays.all():
        return steps, labels
    rows = np.flatnonzero(np.repeat(stays, steps.lengths + 1))
    remaining = labels.take(stays[_episode_of(labels, steps)])
    potential = None if labels.potential is None else labels.potential[rows]
    return steps.at(rows), replace(remaining, rows=np.searchsorted(rows, remaining.rows), potential=potential)


def _episode_of(labels: Labels, steps: StepArrays) -> NDArray[np.int64]:
    """The place of each label's episode, (L,)."""
    return np.searchsorted(steps.starts, labels.rows, side="right") - 1


def _score(policy: MlpPolicy, observations: Array, exam: Labels) -> tuple[float, float]:
    """Weighted mean likelihood of, and agreement with, the suggestions."""
    outputs = policy.forward(observations)
    if policy.action_space.is_discrete:
        wanted = exam.suggestions - policy.action_space.start
        likelihoods = log_softmax(outputs.astype(np.float64), axis=1)[np.arange(len(wanted)), wanted]
        agreements = (outputs.argmax(axis=1) == wanted).astype(np.float64)
    else:
        played = np.clip(outputs, *action_bounds(policy.action_space))
        errors = (played - exam.suggestions) / action_units(policy.action_space)[1]
        likelihoods, agreements = -(errors**2).mean(axis=1), -np.abs(errors).mean(axis=1)
    return (
        float(np.average(likelihoods, weights=exam.weights)),
        float(np.average(agreements, weights=exam.weights)),
    )
