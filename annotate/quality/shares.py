"""Shares of few cases with their intervals, and exact tests of which of two sides is right more often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are used, which takes a second

CONFIDENCE = 0.95
SIGNIFICANT = 0.05
_TINY = 1e-9


class Rate(NamedTuple):
    """A share of some cases with its exact interval (Clopper and Pearson, Biometrika 1934)."""

    hits: int
    n: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, cases: Iterable[bool]) -> Rate | None:
        """The share of the true ones; None without a case."""
        known = list(cases)
        return cls.counted(sum(known), len(known)) if known else None

    @classmethod
    def counted(cls, hits: int, n: int) -> Rate:
        """The share of `hits` among `n` > 0 cases."""
        interval = scipy.stats.binomtest(hits, n).proportion_ci(CONFIDENCE, "exact")
        return cls(hits, n, hits / n, float(interval.low), float(interval.high))


class Estimated(NamedTuple):
    """A share that is no plain count, with a 95% interval, and the states behind it."""

    share: float
    low: float
    high: float
    n: int  # states
    positive: int  # of them: the higher side of an order, or those that the reader calls critical


class Paired(NamedTuple):
    """Two sides judged on the same states, and the exact McNemar test of their difference."""

    states: int
    both: int
    only_first: int
    only_second: int
    neither: int
    p: float

    @classmethod
    def of(cls, cases: Sequence[tuple[bool, bool]]) -> Paired:
        """Of (first is right, second is right) on each state."""
        counted = Counter(cases)
        first, second = counted[True, False], counted[False, True]
        p = float(scipy.stats.binomtest(min(first, second), first + second).pvalue) if first + second else 1.0
        return cls(len(cases), counted[True, True], first, second, counted[False, False], p)


def order_of(high: Sequence[float], low: Sequence[float]) -> Estimated | None:
    """Probability that one of the first numbers is above one of the second, ties half; None without both.

    The interval is Newcombe's score interval (Statistics in Medicine 2006, method 5), which holds for few states too.
    """
    if not high or not low:
        return None
    one, other = np.array(high)[:, None], np.array(low)[None, :]
    share = float(((one > other) + 0.5 * (one == other)).mean())
    pairs, extra = len(high) * len(low), (len(high) + len(low)) / 2 - 1
    z = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))

    def beyond(true: float) -> float:
        spread = true * (1 - true) * (1 + extra * (1 - true) / (2 - true) + extra * true / (1 + true)) / pairs
        return (true - share) ** 2 - z**2 * spread

    def end(edge: float) -> float:
        if abs(edge - share) <= _TINY:
            return edge
        inside = share + _TINY * (1 if edge > share else -1)
        return float(scipy.optimize.root_scalar(beyond, bracket=sorted((edge, inside)), method="brentq").root)

    return Estimated(share, end(0.0), end(1.0), len(high) + len(low), len(high))
