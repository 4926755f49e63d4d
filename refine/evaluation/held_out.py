"""Which candidate to keep when nothing can be played: the one that predicts held-out labels best.

It scores the steps and betas of a refinement; what a policy is worth is `ope.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from storage.datasets import StepArrays
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
    of its snapshots, and each snapshot is asked for the held-out suggestions.

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
    scored = [
        _score_fold(steps, labels, baseline, config, held_out=order[fold :: min(folds, len(order))])
        for fold in range(min(folds, len(order)))
    ]
    weights = np.array([fold.weight for fold in scored])
    likelihoods, agreements = (
        np.sum([fold.weight * getattr(fold, name) for fold in scored], axis=0) / weights.sum()
        for name in ("likelihoods", "agreements")
    )
    held_out = sum(fold.labels for fold in scored)
    return Consistency(likelihoods[1:], agreements[1:], float(likelihoods[0]), held_out)


@dataclass(frozen=True)
class _Fold:
    """Scores on one fold, the baseline's first."""

    likelihoods: Floats
    agreements: Floats
    weight: float
    labels: int


def _score_fold(
    steps: StepArrays, labels: Labels, baseline: MlpPolicy, config: RefineConfig, *, held_out: NDArray[np.int64]
) -> _Fold:
    is_held_out = np.isin(steps.episode_id, held_out)
    seen, known = _without(steps, labels, is_held_out)
    snapshots = refine(seen, known, baseline, config)
    asked = is_held_out[labels.rows] & (labels.weights > 0)
    exam = _chosen(labels, asked)
    start = as_logits(baseline, steps.observation) if baseline.head == "q_values" else baseline
    scores = [_score(policy, steps.observation[exam.rows], exam) for policy in (start, *(s.policy for s in snapshots))]
    likelihoods, agreements = np.array(scores).T
    return _Fold(likelihoods, agreements, float(exam.weights.sum()), len(exam))


def _without(steps: StepArrays, labels: Labels, gone: NDArray[np.bool_]) -> tuple[StepArrays, Labels]:
    """The steps and labels of the other episodes."""
    columns: dict[str, Any] = {field.name: getattr(steps, field.name) for field in fields(steps)}
    left: dict[str, Any] = {name: None if column is None else column[~gone] for name, column in columns.items()}
    places, stays = np.cumsum(~gone) - 1, ~gone[labels.rows]
    remaining = _chosen(labels, stays)
    potential = None if labels.potential is None else labels.potential[~gone]
    return StepArrays(**left), replace(remaining, rows=places[remaining.rows], potential=potential)


def _chosen(labels: Labels, chosen: NDArray[np.bool_]) -> Labels:
    """Some of L labels."""
    return Labels(
        labels.rows[chosen], labels.suggestions[chosen], labels.weights[chosen], labels.implicit_rewards[chosen]
    )


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
