"""Estimates of what policies are worth, and what they may claim: intervals and the two verdicts without a simulator.

How an estimate is made is `ope.py`. Nothing here has been played, and every sentence says so: an estimate is never
`accepted`, and where it speaks of better it says `estimated better`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are used, which takes a second
from numpy.typing import NDArray
from pydantic import Field

from storage.errors import BadInput
from storage.schema import Frozen

from .gate import CONFIDENCE, Interval, Verdict

Floats = NDArray[np.float64]
CAVEAT = (
    "an estimate from logged steps, not played; its intervals cover the chance of which episodes were logged,"
    " not the error for actions that nobody logged"
)


class OpeConfig(Frozen):
    """How much work an estimate takes."""

    gamma: float = Field(default=0.99, gt=0, lt=1, description="discount per step; the estimate is of this return")
    resamples: int = Field(default=20, ge=5, description="refits on resampled episodes, from which the intervals come")
    features: int = Field(default=128, ge=8, description="random features of the Q function, for every action")
    ridge: float = Field(default=0.01, gt=0, description="ridge penalty, relative to a feature's mean size")
    transitions: int = Field(default=20_000, ge=100, description="largest number of transitions in one refit")
    seed: int = Field(default=0, ge=0, description="of the resampling and of the features")


@dataclass(frozen=True)
class Estimate:
    """What a policy is worth as far as the log can tell."""

    value: float  # mean discounted return from the logged starts
    refits: Floats  # (K,) the same from K resamples of the episodes; refit k of any policy has the same episodes
    support: (
        float  # share of logged steps at which the policy would most likely take the logged action; nan if continuous
    )
    episodes: int  # behind it

    @property
    def interval(self) -> Interval:
        """The value with its interval."""
        return estimated_interval(self.value, self.refits, self.episodes)


def estimated_interval(value: float, refits: Floats, episodes: int) -> Interval:
    """A bootstrap interval from few refits: Student's t around the value, with the refits' spread.

    Raises:
        BadInput: for fewer than two refits.
    """
    if len(refits) < 2:
        raise BadInput(f"{len(refits)} refits have no spread; at least 2 are needed.")
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(refits) - 1) * refits.std(ddof=1))
    return Interval(value, value - half, value + half, episodes)


def estimated_gain(policy: Estimate, other: Estimate) -> Interval:
    """What a policy is estimated to be ahead of another, refit by refit on the same episodes."""
    return estimated_interval(policy.value - other.value, policy.refits - other.refits, policy.episodes)


def judge_estimated_improvement(policy: Estimate, baseline: Estimate) -> Verdict:
    """First verdict: is the policy estimated to be better than the baseline?"""
    gain = estimated_gain(policy, baseline)
    if gain.is_above_zero:
        return Verdict("yes", f"estimated better than the baseline by {gain} (not played)", {"baseline": gain})
    reason = f"not estimated better than the baseline: {gain} does not lie above zero (not played)"
    return Verdict("not shown", reason, {"baseline": gain})


def judge_estimated_labels(policy: Estimate, placebos: Mapping[str, Sequence[Estimate]]) -> Verdict:
    """Second verdict: are the labels estimated to have done it, that is, better than every draw of every placebo?

    The estimate must also lie above the one-sided 95% prediction bound for one more draw of each placebo that was drawn
    several times (Hahn and Meeker, "Statistical Intervals", 1991): an estimate of one policy is no rank.

    Raises:
        BadInput: without a placebo.
    """
    if not placebos:
        raise BadInput("Without a placebo arm nothing can be said about the labels.")
    differences = {
        arm if len(draws) == 1 else f"{arm} {number}": estimated_gain(policy, draw)
        for arm, draws in placebos.items()
        for number, draw in enumerate(draws, start=1)
    }
    beaten = sum(difference.is_above_zero for difference in differences.values())
    closest = min(differences, key=lambda arm: differences[arm].low)
    evidence = (
        f"estimated better than {beaten} of {len(differences)} placebos; "
        f"the closest one is {closest}, behind by {differences[closest]} (not played)"
    )
    in_reach = [arm for arm, draws in placebos.items() if _next_draw(draws) >= policy.value]
    if beaten == len(differences) and not in_reach:
        return Verdict("yes", f"the labels are estimated to have done it: {evidence}", differences)
    if beaten == len(differences):
        evidence += f"; but its draws leave open that another {in_reach[0]} one reaches as much"
    return Verdict("not shown", f"the labels are not estimated to have done it: {evidence}", differences)


def _next_draw(draws: Sequence[Estimate]) -> float:
    """The estimate that one more draw exceeds with probability 0.05; a single draw tells nothing beyond itself."""
    values = np.array([draw.value for draw in draws])
    if len(values) < 2:
        return float(values.mean())
    spread = float(values.std(ddof=1)) * np.sqrt(1 + 1 / len(values))
    return float(values.mean() + scipy.stats.t.ppf(CONFIDENCE, len(values) - 1) * spread)
