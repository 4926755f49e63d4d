"""Did the labels do it: the rank of the annotator's arm among draws of its placebos, an exact test.

Under "the labels are no better than exchanged ones" the annotator's arm is one more draw of the placebo, so its rank
among K + 1 arms is uniform, whatever number is ranked (Besag and Clifford, "Sequential Monte Carlo p-values",
Biometrika 1991). That holds as long as the number comes about in the same way for every arm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are used, which takes a second
from numpy.typing import ArrayLike

from storage.errors import BadInput

from .gate import CONFIDENCE, ROUNDING, Answer, Interval, Verdict, checked_returns, paired_difference

LEVEL = 0.05
"""Probability of crediting labels that are one more draw of a placebo."""
HOPELESS = 3
"""Draws at least as good as the labels after which no more are played."""


@dataclass(frozen=True)
class Rank:
    """How the labels stand among the draws of one placebo."""

    arm: str
    draws: int  # different ones that were played, until it was clear
    as_good: int  # of them, at least as good as the labels
    asked: int  # draws that may be played
    exhausted: bool = False  # whether all were played and there are no more different ones, as of a list of few rules

    @property
    def is_hopeless(self) -> bool:
        """Whether so many draws are as good that no more need to be played."""
        return self.as_good >= HOPELESS

    @property
    def p(self) -> float:
        """The chance of standing so high as one more draw of the placebo."""
        return self.as_good / self.draws if self.is_hopeless else (self.as_good + 1) / (self.draws + 1)

    @property
    def answer(self) -> Answer:
        """Whether the labels are credited against this placebo."""
        if self.is_hopeless or (self.exhausted and self.as_good):
            return "no"
        return "yes" if self.exhausted or self.p <= LEVEL + ROUNDING else "not shown"

    @property
    def wanted(self) -> int:
        """Draws with which the labels are credited if no further one is as good."""
        return math.ceil((self.as_good + 1) / LEVEL - ROUNDING) - 1

    def __str__(self) -> str:
        beaten = f"{self.draws - self.as_good} of {self.draws}"
        if self.exhausted:
            return f"{beaten} {self.arm} draws, which are all that differ"
        return f"{beaten} {self.arm} draws (p = {self.p:.2g})"


def rank_labels(arm: str, own: float, draws: Sequence[float], *, asked: int, exhausted: bool = False) -> Rank:
    """Count the draws that are at least as good as the labels, in their order, until there are `HOPELESS` of them.

    Args:
        arm: the placebo.
        own: the number of the annotator's arm.
        draws: the same number of each draw that differs from those before it, in the order of playing.
        asked: draws that may be played in all.
        exhausted: whether all of them were played, and some were equal: then there is no chance left, and each has to
            be beaten.

    Raises:
        BadInput: without a draw.
    """
    if not draws:
        raise BadInput(f"No draw of {arm} was played, so the labels have no rank among them.")
    as_good = np.asarray(draws) >= own - ROUNDING * max(1.0, abs(own))
    reached = np.flatnonzero(np.cumsum(as_good) == HOPELESS)
    last = int(reached[0]) + 1 if len(reached) else len(draws)
    return Rank(arm, last, int(as_good[:last].sum()), asked, exhausted)


def deal(count: int, draws: int) -> list[slice]:
    """Positions of `count` report seeds, dealt among the draws of a placebo in runs of nearly equal length.

    A run has at least two seeds; where there are too few for that, the last draws have none.
    """
    ends = np.linspace(0, count, min(draws, max(1, count // 2)) + 1).round().astype(int).tolist()
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def interval_over_draws(returns: ArrayLike, draws: int) -> Interval:
    """The mean over draws that each played a part of the seeds, as `deal` deals them.

    Episodes of one draw depend on each other, so Student's t is over the draws' means.

    Args:
        returns: (n,) returns or differences, in the order of the seeds.
        draws: how many shared them.

    Raises:
        BadInput: if fewer than two draws have a part.
    """
    values = checked_returns(returns)
    return interval_of_means([float(values[part].mean()) for part in deal(len(values), draws)], len(values))


def interval_of_means(means: Sequence[float], episodes: int) -> Interval:
    """Student's t over the means of draws that were played on different seeds.

    Args:
        means: one per draw.
        episodes: behind them.

    Raises:
        BadInput: for fewer than two draws.
    """
    values = checked_returns(means)
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half, episodes)


def judge_labels(ranks: Sequence[Rank], leads: Mapping[str, Interval], *, accepted: bool = True) -> Verdict:
    """Second verdict: did the labels do it?

    `yes` asks for all of these, an intersection-union test that needs no correction (Berger, Technometrics 1982):

    1. The labels' rank among the draws of every placebo has a probability of at most 5%.
    2. What they lead to is ahead of the mean placebo, on the report seeds.

    `no` says that a placebo is as good, or that there is no gain to credit; `not shown` that neither is shown.

    Args:
        ranks: one for each placebo that is drawn.
        leads: placebo -> the labels' return minus its mean, with the interval; also of placebos that are not drawn.
        accepted: whether the gate accepted the labels' policy; if not, there is nothing to credit.

    Raises:
        BadInput: without a placebo.
    """
    if not leads:
        raise BadInput("Without a placebo arm nothing can be said about the labels.")
    if not accepted:
        return Verdict("no", "there is nothing to credit: the refinement was rejected", leads)
    effects = f"labels minus the mean placebo: {', '.join(f'{arm} {lead}' for arm, lead in leads.items())}"
    found = [*((rank.answer, _say_rank(rank)) for rank in ranks), *(_judge_lead(*lead) for lead in leads.items())]
    for answer in ("no", "not shown"):
        reasons = [reason for given, reason in found if given == answer]
        if reasons:
            return Verdict(answer, f"{_OPENING[answer]}: {'; '.join(reasons)}; {effects}", leads)
    beaten = " and ".join(str(rank) for rank in ranks)
    return Verdict("yes", f"the labels did it: better than {beaten}; {effects}", leads)


_OPENING: Mapping[Answer, str] = {"no": "a placebo is as good", "not shown": "the labels are not shown to have done it"}


def _say_rank(rank: Rank) -> str:
    if rank.answer == "no":
        chance = "" if rank.exhausted else f" (p = {rank.p:.2g})"
        return f"{rank.as_good} of {rank.draws} {rank.arm} draws reach the labels{chance}"
    if not rank.as_good:
        return f"better than {rank}, but only --draws {rank.wanted} can show it"
    return f"better than {rank}; --draws {rank.wanted} shows it if no further one reaches them"


def _judge_lead(arm: str, lead: Interval) -> tuple[Answer, str]:
    if lead.is_above_zero:
        return "yes", ""
    if lead.mean <= 0:
        return "no", f"{arm} returns as much"
    return "not shown", f"the lead over {arm} does not exclude zero; more --report or --draws may show it"


def pair_with_labels(own: ArrayLike, other: ArrayLike, draws: int) -> Interval:
    """The labels' return minus a placebo's, paired by seed; of several draws that share the seeds, over the draws."""
    if draws < 2:
        return paired_difference(own, other)
    return interval_over_draws(checked_returns(own) - checked_returns(other), draws)
