"""Racing: who plays on after a few episodes, and when a paired comparison is clear. It plays nothing itself.

Candidates are thinned out by successive halving; the one that is left meets the baseline in a sequential test, which
ends as soon as the evidence suffices, either way. Nights share one error rate. `gate.py` has the tests of fixed length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used, which takes a second
from numpy.typing import ArrayLike

from storage.errors import BadInput

from .gate import ERROR_RATE, RESAMPLES, ROUNDING, Decision, Interval, Returns, checked_returns

_RESOLVED = 0.009
"""Smaller errors are found by integration: of the resampled means, too few are that extreme."""
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


def share_over_nights(error: float, kept: int) -> float:
    """The error rate of a night, such that all nights together err with probability `error` at most.

    The k-th night that keeps the policy in force has `error * (1 / sqrt(k) - 1 / sqrt(k + 1))`, and these add up to
    `error`. A night that promotes hands its part on to the next one, as in Wiens' fallback procedure (Pharmaceutical
    Statistics 2003; online: Tian and Ramdas, Statistical Methods in Medical Research 2021): up to the first mistake all
    that was promoted is better, so no part has been used by a night that could err but the last.

    Args:
        error: of all nights together.
        kept: earlier nights that tested a policy and did not promote it.
    """
    return error * (1 / math.sqrt(kept + 1) - 1 / math.sqrt(kept + 2))


def lengthen(most: int, error: float) -> int:
    """Episodes by which a test with a smaller error proves the gain that one with `ERROR_RATE` proves in `most`."""
    return math.ceil(most * (_deviations(error) / _deviations(ERROR_RATE)) ** 2)


def decide_early(differences: ArrayLike, *, most: int, worst: float, error: float = ERROR_RATE) -> Decision | None:
    """Look at the paired differences so far: accepted, rejected, or None if more episodes are to be played.

    Every look may err with an equal part of the error rate (Bonferroni), so the whole test accepts a candidate that is
    no better with that probability at most; a part in proportion to the episodes would leave little for the first
    looks, where most candidates are decided. Each look asks whether `bound_gain` lies above zero. It gives up when even
    the upper limit of the gain is smaller than what the whole test could prove, or when nothing has ever differed.

    Args:
        differences: (n,) candidate minus baseline, n one of `list_looks(most)`.
        most: episodes of the whole test.
        worst: the smallest difference that must be reckoned with, see `bound_gain`.
        error: probability of accepting a candidate that is no better, over all looks together.

    Raises:
        BadInput: if n is none of the looks, and as `bound_gain` does.
    """
    values = checked_returns(differences)
    looks = list_looks(most)
    if len(values) not in looks:
        raise BadInput(f"A look after {len(values)} episodes was asked for; the looks are {looks}.")
    gain = bound_gain(values, worst=reckon_with(values, worst), error=error / len(looks))
    sentence = f"the best candidate's gain on the acceptance seeds is {gain} after {gain.n} of at most {most} episodes"
    if gain.is_above_zero:
        return Decision(True, f"accepted: {sentence}, all of it above zero", gain)
    if len(values) == most:
        return Decision(False, f"rejected: {sentence}, which does not exclude zero", gain)
    spread = values.std(ddof=1)
    upper_limit = values.mean() + scipy.stats.norm.ppf(HOPE) * spread / np.sqrt(len(values))
    if upper_limit < _deviations(error) * spread / np.sqrt(most):  # what the whole test would prove with `POWER`
        return Decision(False, f"rejected: {sentence}, too little to be proven by the others", gain)
    if len(values) >= SAME and not values.any():
        return Decision(False, f"rejected: {sentence}; it returned what the baseline did in every one of them", gain)
    return None


def decide_strictly(differences: ArrayLike, *, worst: float, error: float) -> Decision:
    """Accept or reject a candidate once, with a smaller error rate than resampling alone can promise.

    Args:
        differences: (n,) candidate minus baseline.
        worst: as for `decide_early`.
        error: probability of accepting a candidate that is no better.

    Raises:
        BadInput: as `bound_gain` does.
    """
    values = checked_returns(differences)
    gain = bound_gain(values, worst=reckon_with(values, worst), error=error)
    sentence = f"the best candidate's gain on the acceptance seeds is {gain}"
    if gain.is_above_zero:
        return Decision(True, f"accepted: {sentence}, all of it above zero", gain)
    return Decision(False, f"rejected: {sentence}, which does not exclude zero", gain)


def reckon_with(differences: Returns, worst: float) -> float:
    """The smallest difference that a test reckons with: a loss as large as the largest gain is always possible.

    Where two policies rarely differ, the episodes so far may show gains only, by chance; that is no proof that nothing
    is ever lost.
    """
    return min(worst, -float(differences.max()))


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
    lowest, highest = min(worst, float(values.min())) - mean, float(values.max()) - mean
    if error < _RESOLVED:
        low = _find_quantile(np.append(values - mean, lowest), error)
        high = -_find_quantile(np.append(mean - values, -highest), error)
    else:
        weights = _draw_weights(len(values) + 1)
        inner = weights[:, 1:] @ (values - mean)
        low = float(np.quantile(inner + weights[:, 0] * lowest, error))
        high = float(np.quantile(inner + weights[:, 0] * highest, 1 - error))
    return Interval(mean, mean + min(low, 0.0), mean + max(high, 0.0), len(values))


def _find_quantile(values: Returns, error: float) -> float:
    """The `error` quantile of the mean of numbers with Dirichlet(1, ..., 1) weights, for a small `error`."""
    low, high = float(values.min()), float(values.mean())
    if high - low <= ROUNDING * max(1.0, abs(low)):
        return low
    margin = 1e-9 * (high - low)
    missed: Callable[[float], float] = lambda level: chance_below_zero(values - level) - error  # noqa: E731
    found: Any = scipy.optimize.brentq(missed, low + margin, high, xtol=margin)
    return float(found)


def chance_below_zero(values: Returns) -> float:
    """The probability that the mean of numbers with Dirichlet(1, ..., 1) weights is below zero, also a tiny one.

    `bound_gain` lies above zero where this is less than its error, for its differences and its worst one.

    It is the probability that `Q = sum_i E_i * x_i < 0` with standard exponential E. The two-sided Laplace transform of
    Q is `prod_i 1 / (1 + s * x_i)`; the inverse is integrated along the vertical line through the saddle point, where
    nothing cancels, so that also the smallest probabilities have a small relative error.
    """
    if values.min() >= 0 or values.max() <= 0:
        return float(values.max() <= 0)
    numbers, counts = np.unique(values, return_counts=True)
    end = -1 / numbers[0]
    found: Any = scipy.optimize.minimize_scalar(
        lambda place: -counts @ np.log1p(place * end * numbers) - math.log(place * end),
        bounds=(1e-9, 1 - 1e-9),
        method="bounded",
        options={"xatol": 1e-6},
    )
    saddle = float(found.x) * end
    curvature = counts @ (numbers / (1 + saddle * numbers)) ** 2 + saddle**-2
    nodes, step = np.linspace(0, 12, 121, retstep=True)
    line = saddle + 1j * np.sinh(nodes) / math.sqrt(curvature)
    heights = np.exp(-np.log1p(np.outer(line, numbers)) @ counts - np.log(line)).real * np.cosh(nodes)
    return float((heights.sum() - heights[0] / 2) * step / math.sqrt(curvature) / math.pi)


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


def _deviations(error: float) -> float:
    """Standard errors that a gain has to have to be proven with probability `POWER`."""
    return float(scipy.stats.norm.ppf(1 - error) + scipy.stats.norm.ppf(POWER))
