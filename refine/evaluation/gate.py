"""The statistics of the gate: intervals, paired differences, ranking, acceptance and the two verdicts.

It is given returns and says what they prove; it runs no environment and reads no file. Returns of two policies are
paired: position i of both belongs to the same seed.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy  # its parts are loaded when they are used, which takes a second
from numpy.typing import ArrayLike, NDArray

from storage.errors import BadInput

CONFIDENCE = 0.95
ERROR_RATE = 0.05
"""Probability of accepting a candidate that is no better."""
RESAMPLES = 9_999
_MOST_DECIMALS = 6
ROUNDING = 1e-12
"""Relative differences of this size are rounding: returns this close together count as equal."""
MINIMUM_EPISODES = 10
"""Fewer paired episodes than this cannot accept anything: a bootstrap of a handful of numbers is too sure of itself."""

Returns = NDArray[np.float64]
Answer = Literal["yes", "no", "not shown"]
"""A verdict in words, the same wherever it is shown; `not shown`: the evidence is for neither of the others."""


@dataclass(frozen=True)
class Interval:
    """A mean and the bootstrap interval around it."""

    mean: float
    low: float
    high: float
    n: int  # episodes behind it

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval is positive."""
        return self.low > 0

    def __str__(self) -> str:
        places = self._decimals()
        return f"{self.mean:.{places}f} [{self.low:.{places}f}, {self.high:.{places}f}]"

    def _decimals(self) -> int:
        """One, or as many as show where a narrow interval begins and ends; returns of FrozenLake lie within 0 and 1."""
        width = self.high - self.low or abs(self.mean) / 10 or 1.0
        return max(1, min(_MOST_DECIMALS, -math.floor(math.log10(width))))


@dataclass(frozen=True)
class Decision:
    """Whether the best candidate takes the baseline's place, and why."""

    accepted: bool
    reason: str
    gain: Interval  # candidate minus baseline, paired on the acceptance seeds


@dataclass(frozen=True)
class Verdict:
    """One claim, whether the evidence carries it, and the sentence that says so."""

    answer: Answer
    reason: str
    differences: Mapping[str, Interval]  # what was subtracted -> paired difference

    @property
    def holds(self) -> bool:
        """Whether the answer is yes."""
        return self.answer == "yes"


@dataclass(frozen=True)
class SeedPlan:
    """Which seeds choose a candidate, which accept it and which report it; no seed does two of these.

    The search over candidates is a selection, so its winner's selection returns are flattering; the acceptance seeds
    have not seen the search, and the report seeds have not seen the acceptance.

    Raises:
        BadInput: when two of the ranges share a seed or one has fewer than two.
    """

    select: range
    accept: range
    report: range

    def __post_init__(self) -> None:
        for purpose, seeds in self.purposes().items():
            if len(seeds) < 2:
                raise BadInput(f"The {purpose} seeds are {list(seeds)}; at least 2 are needed.")
        self.check_unused(())

    @classmethod
    def starting_at(cls, first: int, *, select: int, accept: int, report: int) -> SeedPlan:
        """Lay three ranges of the given lengths one after the other."""
        ends = np.cumsum([first, select, accept, report]).tolist()
        return cls(*(range(start, end) for start, end in itertools.pairwise(ends)))

    @property
    def whole(self) -> range:
        """All seeds, of the three purposes together."""
        return range(self.select.start, self.report.stop)

    def purposes(self) -> dict[str, range]:
        """Each purpose and its seeds."""
        return {"select": self.select, "accept": self.accept, "report": self.report}

    def check_unused(self, seeds: Iterable[int]) -> None:
        """Check that no seed has two uses and that none of `seeds` (those of the dataset) is used here.

        Raises:
            BadInput: naming the first seed in two places.
        """
        uses = dict.fromkeys(seeds, "dataset")
        for purpose, planned in self.purposes().items():
            for seed in planned:
                other = uses.setdefault(seed, purpose)
                if other != purpose:
                    raise BadInput(
                        f"Seed {seed} is among the {other} seeds and the {purpose} seeds; they must not share any.",
                        "Choose another first seed for the evaluation.",
                    )


def interval(returns: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Estimate the mean return and a bootstrap interval around it.

    Bias-corrected and accelerated bootstrap (Efron, "Better Bootstrap Confidence Intervals", JASA 1987) with a fixed
    generator, so equal returns give an equal interval. Where all returns are equal the interval is that value.

    Args:
        returns: (n,) undiscounted returns, n >= 2.
        confidence: probability that the interval covers the true mean.

    Raises:
        BadInput: for fewer than two returns or one that is not finite.
    """
    values = checked_returns(returns)
    mean = float(values.mean())
    if np.ptp(values) <= ROUNDING * max(1.0, float(np.abs(values).max())):
        return Interval(mean, mean, mean, len(values))
    low, high = _bootstrap(values, "BCa", confidence)
    if not np.isfinite([low, high]).all():  # the correction fails on some samples of very few distinct values
        low, high = _bootstrap(values, "percentile", confidence)
    return Interval(mean, low, high, len(values))


def paired_difference(returns: ArrayLike, baseline: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Estimate the mean of `returns - baseline`, both from the same seeds in the same order.

    Raises:
        BadInput: when the lengths differ, and as in `interval`.
    """
    left, right = checked_returns(returns), checked_returns(baseline)
    if len(left) != len(right):
        raise BadInput(f"Paired returns need the same seeds; {len(left)} and {len(right)} episodes were given.")
    return interval(left - right, confidence=confidence)


def rank(returns: Mapping[str, ArrayLike]) -> list[str]:
    """Order candidates by mean selection return, best first; equals keep their order (fewer steps come first).

    Raises:
        BadInput: without a candidate, and as in `interval`.
    """
    if not returns:
        raise BadInput("There is no candidate to rank.")
    means = {name: float(checked_returns(values).mean()) for name, values in returns.items()}
    return sorted(means, key=lambda name: -means[name])


def decide_acceptance(returns: ArrayLike, baseline: ArrayLike, *, tested: int = 1) -> Decision:
    """Decide whether a candidate takes the baseline's place.

    The candidate must be the winner of a search on other seeds. Only the winner is tested here, so there is one test
    and its error does not grow with the number of candidates. A caller that tests several winners on the same
    acceptance seeds says how many: the interval is widened by Bonferroni's correction, `1 - 0.05 / tested`.

    Args:
        returns: (n,) the candidate's returns on the acceptance seeds.
        baseline: (n,) the baseline's, on the same seeds.
        tested: candidates that are tested on these seeds, this one included.

    Raises:
        BadInput: as in `paired_difference`, or when `tested` is not positive.
    """
    if tested < 1:
        raise BadInput(f"{tested} candidates tested; at least 1 is expected.")
    gain = paired_difference(returns, baseline, confidence=1 - (1 - CONFIDENCE) / tested)
    sentence = f"the best candidate's gain on the acceptance seeds is {gain}"
    if gain.n < MINIMUM_EPISODES:
        return Decision(False, f"rejected: {sentence} from {gain.n} episodes; {MINIMUM_EPISODES} are needed", gain)
    if gain.is_above_zero:
        return Decision(True, f"accepted: {sentence}, all of it above zero", gain)
    return Decision(False, f"rejected: {sentence}, {_shortfall(gain)}", gain)


def judge_improvement(refined: ArrayLike, baseline: ArrayLike, *, accepted: bool = True) -> Verdict:
    """First verdict: is the refined policy better than the baseline, on the report seeds?

    Args:
        refined: (n,) returns on the report seeds of the policy that is in force.
        baseline: (n,) the baseline's on the same seeds.
        accepted: whether the gate accepted a refined policy; if not, the baseline is in force.

    Raises:
        BadInput: as in `paired_difference`.
    """
    gain = paired_difference(refined, baseline)
    if not accepted:
        return Verdict("no", "the refinement was rejected, so the baseline is in force", {"baseline": gain})
    if _is_proven(gain):
        return Verdict("yes", f"the refined policy is better than the baseline by {gain}", {"baseline": gain})
    reason = f"the refined policy is not shown to be better than the baseline: {gain}, {_shortfall(gain)}"
    return Verdict("not shown", reason, {"baseline": gain})


def _bootstrap(values: Returns, method: Literal["BCa", "percentile"], confidence: float) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a failed correction is a NaN, which the caller handles
        found: Any = scipy.stats.bootstrap(
            (values,),
            np.mean,
            method=method,
            confidence_level=confidence,
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(0),
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _is_proven(difference: Interval) -> bool:
    return difference.n >= MINIMUM_EPISODES and difference.is_above_zero


def _shortfall(gain: Interval) -> str:
    if gain.n < MINIMUM_EPISODES:
        return f"from {gain.n} episodes; {MINIMUM_EPISODES} are needed"
    if gain.high < 0:
        return "which is a loss"
    return "which does not exclude zero"


def checked_returns(returns: ArrayLike | Sequence[float]) -> Returns:
    """Returns of at least two episodes as one row of finite numbers, (n,).

    Raises:
        BadInput: if they are not.
    """
    values = np.asarray(returns, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise BadInput(f"Returns have shape {values.shape}; at least two episodes in one row are needed.")
    if not np.isfinite(values).all():
        raise BadInput(f"{int((~np.isfinite(values)).sum())} of {len(values)} returns are not finite numbers.")
    return values


def interval_over_seeds(returns: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Estimate the mean return over all trainings and all episodes of which a few were drawn.

    Every training is judged on the same episodes, so the design is crossed and both are random effects. With `MS_t`,
    `MS_e` and `MS_r` the mean squares of trainings, episodes and the rest, the variance of the grand mean is estimated
    by `(MS_t + MS_e - MS_r) / (S * E)` (Searle, Casella and McCulloch, "Variance Components", 1992, ch. 4), never below
    the larger of its parts alone, and Student's t has Satterthwaite's degrees of freedom (Biometrics Bulletin 1946).
    A bootstrap of two to five trainings would be far too sure of itself.

    Args:
        returns: (S, E), one row per training seed, one column per episode seed.
        confidence: probability that the interval covers the true mean.

    Returns:
        The interval; `n` is E. With one training, or equal ones, it is that of `gate.interval` over the episodes.

    Raises:
        BadInput: for another shape, fewer than two episodes, or a return that is not finite.
    """
    table = np.asarray(returns, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise BadInput(f"Returns have shape {table.shape}; (trainings, episodes) is expected.")
    if np.ptp(table, axis=0).max() <= ROUNDING * max(1.0, float(np.abs(table).max())):
        return interval(table[0], confidence=confidence)
    if not np.isfinite(table).all():
        raise BadInput(f"{int((~np.isfinite(table)).sum())} of {table.size} returns are not finite numbers.")
    mean = float(table.mean())
    variance, freedom = _variance_of_mean(table)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance))
    return Interval(mean, mean - half, mean + half, table.shape[1])


def _variance_of_mean(table: np.ndarray) -> tuple[float, float]:
    """Variance of the grand mean of (S, E) returns, and its degrees of freedom."""
    seeds, episodes = table.shape
    grand, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    rest = table - rows[:, None] - columns + grand
    ms_rows = episodes * ((rows - grand) ** 2).sum() / (seeds - 1)
    ms_columns = seeds * ((columns - grand) ** 2).sum() / (episodes - 1)
    ms_rest = (rest**2).sum() / ((seeds - 1) * (episodes - 1))
    total = max(ms_rows, ms_columns, ms_rows + ms_columns - ms_rest)
    spread = ms_rows**2 / (seeds - 1) + ms_columns**2 / (episodes - 1) + ms_rest**2 / ((seeds - 1) * (episodes - 1))
    return float(total / (seeds * episodes)), float(total**2 / spread)
