"""Reward relabelling: an annotator's implicit rewards become part of the logged rewards. Nothing is learned here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from storage.steps import StepArrays

from .labels import Labels

Rewards = NDArray[np.float64]


def relabel_additive(steps: StepArrays, labels: Labels, *, weight: float) -> Rewards:
    """Add implicit rewards at the annotated steps: `r' = r + weight * g`.

    `g` is the mean of the implicit rewards given to that step. This is ULTRA-R (Tan, Yan and Yang, arXiv 2505.20671)
    on logged transitions. It may change which policy is best.

    Args:
        steps: N rows.
        labels: their labels.
        weight: of an implicit reward of 1, in units of the environment's reward.

    Returns:
        (N,) rewards; unchanged where nothing was annotated and on final rows.
    """
    annotated, means = _mean_rewards(labels)
    rewards = steps.reward.copy()
    rewards[annotated] += weight * means
    return rewards


def relabel_potential(steps: StepArrays, labels: Labels, *, weight: float, gamma: float) -> Rewards:
    """Add implicit rewards as differences of a potential: `r' = r + gamma * phi(s') - phi(s)`.

    Potential-based shaping (Ng, Harada and Russell, ICML 1999) leaves the order of policies as it is; with a potential
    that depends on time, too (Devlin and Kudenko, AAMAS 2012), which is what is used here: `phi` is 0 before the first
    annotation of an episode, `weight * g` from the step after an annotation until the next one, and 0 where the
    episode terminated. So a praised step gains at once, a blamed one loses at once, and an episode's discounted return
    from its first step changes by nothing.

    Args:
        steps: N rows.
        labels: their labels.
        weight: of an implicit reward of 1, in units of the environment's reward.
        gamma: discount factor per step.

    Returns:
        (N,) rewards; 0 on final rows.
    """
    potential = weight * _carried_forward(steps, labels)
    ended = np.flatnonzero(steps.terminated)
    potential[ended + 1] = 0  # the row after a terminating step is that episode's final one
    shaping = np.zeros(len(steps))
    shaping[:-1] = gamma * potential[1:] - potential[:-1]
    return steps.reward + np.where(steps.is_final, 0.0, shaping)


def scale_of_returns(steps: StepArrays, rewards: Rewards, *, gamma: float) -> float:
    """Root mean square of the discounted return to go over all steps, by which a critic may divide its rewards.

    Args:
        steps: N rows.
        rewards: (N,), relabelled or not.
        gamma: discount factor per step.

    Returns:
        A positive number; 1 when all rewards are 0.
    """
    squares = 0.0
    for start, length in zip(steps.starts, steps.lengths, strict=True):
        backwards = rewards[start : start + length][::-1]
        squares += float(np.sum(np.square(lfilter([1.0], [1.0, -gamma], backwards))))
    mean = squares / max(int(np.sum(steps.lengths)), 1)
    return mean**0.5 if mean > 0 else 1.0


def _mean_rewards(labels: Labels) -> tuple[NDArray[np.int64], Rewards]:
    rows, inverse, counts = np.unique(labels.rows, return_inverse=True, return_counts=True)
    return rows, np.bincount(inverse, labels.implicit_rewards, minlength=len(rows)) / counts


def _carried_forward(steps: StepArrays, labels: Labels) -> Rewards:
    """The last implicit reward given before each row in its episode, (N,); 0 where there is none."""
    annotated, means = _mean_rewards(labels)
    given = np.zeros(len(steps))
    source = np.zeros(len(steps), np.int64)  # the row whose value a row carries
    source[steps.starts] = steps.starts
    source[annotated + 1] = annotated + 1  # never a start: an annotated row is not final
    given[annotated + 1] = means
    return given[np.maximum.accumulate(source)]
