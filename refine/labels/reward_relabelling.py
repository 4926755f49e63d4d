"""Reward relabelling: an annotator's implicit rewards become part of the logged rewards. Nothing is learned here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.datasets import StepArrays
from storage.errors import BadInput

from ..config import RefineConfig
from .labels import Labels

Rewards = NDArray[np.float64]

FLOODING = 0.5
"""Share of the absolute rewards of an episode above which the annotator's part is called dominant."""


@dataclass(frozen=True)
class Relabelled:
    """Rewards with an annotator's part in them, and how large that part is."""

    rewards: Rewards  # (N,)
    share: float
    """Median over the annotated episodes of `sum |r' - r| / (sum |r' - r| + sum |r|)`: 0 nothing, 1 all."""
    without_value: int = 0  # states where a potential has no value

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to say to the user: that the annotator's part dominates, and that a potential has gaps."""
        flood = (
            f"reward flooding: in the median annotated episode {self.share:.0%} of the absolute rewards are the"
            " annotator's; what is learned follows them more than the environment. Lower the reward weight, or set a"
            " reward cap"
        )
        gaps = f"the potential has no value in {self.without_value} states; its mean stands there"
        return (flood,) * (self.share > FLOODING) + (gaps,) * (self.without_value > 0)


def relabel(steps: StepArrays, labels: Labels, config: RefineConfig) -> Relabelled:
    """Relabel the rewards of a dataset as a configuration asks for.

    A potential of the labels shapes every step, whatever `shaping` says.

    Args:
        steps: N rows.
        labels: their labels.
        config: `shaping`, `reward_weight`, `reward_cap` and `gamma`.

    Raises:
        BadInput: for a cap where the environment gave no reward at all, for the cap is in units of those.
    """
    cap = None if config.reward_cap is None else config.reward_cap * _size_of_rewards(steps)
    if labels.potential is not None:
        weight = config.reward_weight * scale_of_returns(steps, steps.reward, gamma=config.gamma)
        rewards = shape_rewards(steps, weight * labels.potential, gamma=config.gamma, cap=cap)
        gaps = int(np.count_nonzero(~np.isfinite(labels.potential)))
        return Relabelled(rewards, _median_share(steps, labels, rewards), gaps)
    if config.shaping == "potential":
        rewards = relabel_potential(steps, labels, weight=config.reward_weight, gamma=config.gamma, cap=cap)
    else:
        rewards = relabel_additive(steps, labels, weight=config.reward_weight, cap=cap)
    return Relabelled(rewards, _median_share(steps, labels, rewards))


def relabel_additive(steps: StepArrays, labels: Labels, *, weight: float, cap: float | None = None) -> Rewards:
    """Add implicit rewards at the annotated steps: `r' = r + weight * g`.

    `g` is the mean of the implicit rewards given to that step. This is ULTRA-R (Tan, Yan and Yang, arXiv 2505.20671)
    on logged transitions. It may change which policy is best.

    Args:
        steps: N rows.
        labels: their labels.
        weight: of an implicit reward of 1, in units of the environment's reward.
        cap: most that a step's reward changes, in the same unit; what is larger is cut.

    Returns:
        (N,) rewards; unchanged where nothing was annotated and on final rows.
    """
    annotated, means = _mean_rewards(labels)
    rewards = steps.reward.copy()
    rewards[annotated] += _cut(weight * means, cap)
    return rewards


def relabel_potential(
    steps: StepArrays, labels: Labels, *, weight: float, gamma: float, cap: float | None = None
) -> Rewards:
    """Add implicit rewards as differences of a potential: `r' = r + gamma * phi(s') - phi(s)`.

    Potential-based shaping (Ng, Harada and Russell, ICML 1999) leaves the order of policies unchanged; with a potential
    that depends on time, too (Devlin and Kudenko, AAMAS 2012), which is what is used here: `phi` is 0 before the first
    annotation of an episode, `weight * g` from the step after an annotation until the next one, and 0 where the
    episode terminated. So a praised step gains at once, a blamed one loses at once, and an episode's discounted return
    from its first step changes by nothing.

    Args:
        steps: N rows.
        labels: their labels.
        weight: of an implicit reward of 1, in units of the environment's reward.
        gamma: discount factor per step.
        cap: most that a step's reward changes. The potential is cut to `cap / (1 + gamma)`, not its differences, so
            that they remain those of a potential.

    Returns:
        (N,) rewards; 0 on final rows.
    """
    return shape_rewards(steps, weight * _carried_forward(steps, labels), gamma=gamma, cap=cap)


def shape_rewards(steps: StepArrays, potential: Rewards, *, gamma: float, cap: float | None = None) -> Rewards:
    """Add differences of a potential, `r' = r + gamma * phi(s') - phi(s)`, at every step.

    The potential is 0 where an episode terminated, and stays what it is where one was cut off.

    Args:
        steps: N rows.
        potential: (N,) of each row's state, in units of the environment's reward; 0 counts where it is not finite.
        gamma: discount factor per step.
        cap: most that a step's reward changes; the potential is cut to `cap / (1 + gamma)`.

    Returns:
        (N,) rewards; 0 on final rows.
    """
    limit = None if cap is None else cap / (1.0 + gamma)
    potential = _cut(np.where(np.isfinite(potential), potential, 0.0), limit)
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
    from scipy.signal import lfilter  # takes a second to load, and only critics need it

    squares = 0.0
    for start, length in zip(steps.starts, steps.lengths, strict=True):
        backwards = rewards[start : start + length][::-1]
        squares += float(np.sum(np.square(lfilter([1.0], [1.0, -gamma], backwards))))
    mean = squares / max(int(np.sum(steps.lengths)), 1)
    return mean**0.5 if mean > 0 else 1.0


def _cut(values: Rewards, limit: float | None) -> Rewards:
    return values if limit is None else np.clip(values, -limit, limit)


def _size_of_rewards(steps: StepArrays) -> float:
    """Root mean square of the environment's rewards per step."""
    size = float(np.sqrt(np.square(steps.reward[~steps.is_final]).mean()))
    if size == 0:
        raise BadInput(
            "All logged rewards are 0, so nothing can be capped in units of them.",
            "Leave the reward cap out and choose the reward weight.",
        )
    return size


def _median_share(steps: StepArrays, labels: Labels, rewards: Rewards) -> float:
    """See `Relabelled.share`; 0 without an annotated episode."""
    episode = np.repeat(np.arange(len(steps.starts)), steps.lengths + 1)  # the final row belongs to it
    annotated = np.unique(episode[labels.rows])
    given = np.bincount(episode, np.abs(rewards - steps.reward))[annotated]
    own = np.bincount(episode, np.abs(steps.reward))[annotated]
    total = given + own
    shares = np.divide(given, total, out=np.zeros_like(total), where=total > 0)
    return float(np.median(shares)) if len(shares) else 0.0


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
