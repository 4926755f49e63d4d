"""Racing: who plays on after a few episodes, and when a paired comparison is clear. It plays nothing itself.

Candidates are thinned out by successive halving; the one that is left meets the baseline in a sequential test, which
ends as soon as the evidence suffices, either way. `gate.py` has the tests of fixed length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from storage.errors import BadInput

from .gate import RESAMPLES, Decision, Interval, Returns, checked_returns

ERROR_RATE = 0.05
"""Probability of accepting a candidate that is no better, over all looks together."""
SHORTEST = 2
"""Episodes that a rung adds at least: a judge gives no interval for a single one."""
FIRST_LOOK = 12
"""Episodes of the first look; the next looks come after twice as many each."""
HOPE = 0.9
"""Confidence of the upper limit that must fall short before a candidate is given up."""
POWER = 0.95
"""A gain is in reach if the whole test would prove it with this probability."""
SAME = 24
"""Episodes after which a candidate that returned exactly what the baseline did, in all of them, is given up."""


@dataclass(frozen=True)
class Rung:
    """One round of successive halving: how many candidates play, and up to which episode each of them gets."""

    entrants: int
    episodes: int  # of each entrant, those of earlier rungs included


def list_rungs(candidates: int, episodes: int) -> list[Rung]:
    """Halve the candidates from rung to rung while their episodes double, until two are left to play all `episodes`.

    Successive halving (Karnin, Koren and Somekh, "Almost optimal exploration in multi-armed bandits", ICML 2013). Ten
    candidates and 24 episodes are 10 x 3, 5 x 6, 3 x 12 and 2 x 24, which is 87 episodes in place of 240. A rung
    that would add fewer than two episodes is left out, for returns are judged two at a time at least.

    Args:
        candidates: how many there are, at least 1.
        episodes: of the last rung, at least 2.
    """
    entrants = [candidates]
    while entrants[-1] > 2:
        entrants.append(math.ceil(entrants[-1] / 2))
    rungs: list[Rung] = []
    for number, count in enumerate(entrants, start=1):
        length = max(SHORTEST, round(episodes / 2 ** (len(entrants) - number)))
        if not rungs or length >= rungs[-1].episodes + SHORTEST:
            rungs.append(Rung(count, length))
    return rungs


def list_looks(most: int) -> list[int]:
    """Episodes after which the acceptance test is looked at: 12, 24, 48, ... and `most`.

    Raises:
        BadInput: if `most` is below 2.
    """
    if most < 2:
        raise BadInput(f"A test of {most} episodes was asked for; at least 2 are needed.")
    doubling = [FIRST_LOOK * 2**look for look in range(64) if FIRST_LOOK * 2**look < most * 2 / 3]
    return [*doubling, most]


def decide_early(differences: ArrayLike, *, most: int, worst: float) -> Decision | None:
    """Look at the paired differences so far: accepted, rejected, or None if more episodes are to be played.

    Every look may err with an equal part of the error rate (Bonferroni), so the whole test accepts a candidate that is
    no better with probability 0.05 at most; a part in proportion to the episodes would leave little for the first
    looks, where most candidates are decided. Each look asks whether `bound_gain` lies above zero. It gives up when even
    the upper limit of the gain is smaller than what the whole test could prove, or when nothing has ever differed.

    Args:
        differences: (n,) candidate minus baseline, n one of `list_looks(most)`.
        most: episodes of the whole test.
        worst: the smallest difference that must be reckoned with, see `bound_gain`.

    Raises:
        BadInput: if n is none of the looks, and as `bound_gain` does.
    """
    values = checked_returns(differences)
    looks = list_looks(most)
    if len(values) not in looks:
        raise BadInput(f"A look after {len(values)} episodes was asked for; the looks are {looks}.")
    gain = bound_gain(values, worst=worst, error=ERROR_RATE / len(looks))
    sentence = f"the best candidate's gain on the acceptance seeds is {gain} after {gain.n} of at most {most} episodes"
    if gain.is_above_zero:
        return Decision(True, f"accepted: {sentence}, all of it above zero", gain)
    if len(values) == most:
        return Decision(False, f"rejected: {sentence}, which does not exclude zero", gain)
    if _upper_limit(values) < _smallest_provable(values, most):
        return Decision(False, f"rejected: {sentence}, too little to be proven by the others", gain)
    if len(values) >= SAME and not values.any():
        return Decision(False, f"rejected: {sentence}; it returned what the baseline did in every one of them", gain)
    return None


def bound_gain(differences: ArrayLike, *, worst: float, error: float) -> Interval:
    """Bound a mean from few, skewed numbers: each limit is missed with probability `error`.

    The Bayesian bootstrap (Rubin, Annals of Statistics 1981) with one more number at the end of what is possible, as in
    Gaffke's bound (2005; see Learned-Miller and Thomas, arXiv 1905.06208): with Dirichlet(1, ..., 1) weights D over the
    n + 1 numbers, the lower limit is the `error` quantile of `D_0 * worst + sum_i D_i * d_i`. Twenty equal gains say
    little about a rare disaster, which is what makes resampling alone too sure of itself; the added number says it.

    Args:
        differences: (n,) paired differences, n >= 2.
        worst: the smallest difference that must be reckoned with; one below all of them changes nothing else.
        error: of each limit, between 0 and 0.5.

    Raises:
        BadInput: for fewer than two differences or one that is not finite.
    """
    values = checked_returns(differences)
    mean = float(values.mean())
    weights = _draw_weights(len(values) + 1)
    inner = weights[:, 1:] @ (values - mean)
    lowest, highest = min(worst, float(values.min())) - mean, float(values.max()) - mean
    low = float(np.quantile(inner + weights[:, 0] * lowest, error))
    high = float(np.quantile(inner + weights[:, 0] * highest, 1 - error))
    return Interval(mean, mean + min(low, 0.0), mean + max(high, 0.0), len(values))


def rank_survivors(returns: Sequence[Returns], alive: Sequence[int], keep: int) -> list[int]:
    """The `keep` best of the candidates that are alive, in their own order; of equals the earlier ones stay.

    Args:
        returns: of every candidate, on the same seeds for those that are alive.
        alive: their indices.
        keep: how many go on.
    """
    best = sorted(alive, key=lambda index: -float(returns[index].mean()))[:keep]
    return sorted(best)


@lru_cache(maxsize=8)
def _draw_weights(count: int) -> Returns:
    """Dirichlet(1, ..., 1) weights, (RESAMPLES, count); the same ones each time, so equal numbers get equal bounds."""
    drawn = np.random.default_rng(0).standard_exponential((RESAMPLES, count))
    return drawn / drawn.sum(axis=1, keepdims=True)


def _upper_limit(values: Returns) -> float:
    return float(values.mean() + stats.norm.ppf(HOPE) * values.std(ddof=1) / np.sqrt(len(values)))


def _smallest_provable(values: Returns, most: int) -> float:
    """The gain that `most` episodes of this spread would prove with probability `POWER`."""
    deviations = stats.norm.ppf(1 - ERROR_RATE) + stats.norm.ppf(POWER)
    return float(deviations * values.std(ddof=1) / np.sqrt(most))
