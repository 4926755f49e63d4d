"""The statistics of the gate: intervals, paired differences, ranking, acceptance and the two verdicts.

It is given returns and says what they prove; it runs no environment and reads no file. Returns of two policies are
paired: position i of both belongs to the same seed.

Whether the labels did it is an exact test. Under "the labels are no better than exchanged ones" the annotator's arm is
one more draw of the placebo, so its rank among K + 1 arms is uniform, whatever number is ranked (Besag and Clifford,
"Sequential Monte Carlo p-values", Biometrika 1991). That holds as long as the number comes about in the same way for
every arm.
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


def interval(returns: ArrayLike) -> Interval:
    """Estimate the mean return and a 95% bootstrap interval around it.

    Bias-corrected and accelerated bootstrap (Efron, "Better Bootstrap Confidence Intervals", JASA 1987) with a fixed
    generator, so equal returns give an equal interval. Where all returns are equal the interval is that value.

    Args:
        returns: (n,) undiscounted returns, n >= 2.

    Raises:
        BadInput: for fewer than two returns or one that is not finite.
    """
    values = checked_returns(returns)
    mean = float(values.mean())
    if np.ptp(values) <= ROUNDING * max(1.0, float(np.abs(values).max())):
        return Interval(mean, mean, mean, len(values))
    low, high = _bootstrap(values, "BCa")
    if not np.isfinite([low, high]).all():  # the correction fails on some samples of very few distinct values
        low, high = _bootstrap(values, "percentile")
    return Interval(mean, low, high, len(values))


def paired_difference(returns: ArrayLike, baseline: ArrayLike) -> Interval:
    """Estimate the mean of `returns - baseline`, both from the same seeds in the same order.

    Raises:
        BadInput: when the lengths differ, and as in `interval`.
    """
    left, right = checked_returns(returns), checked_returns(baseline)
    if len(left) != len(right):
        raise BadInput(f"Paired returns need the same seeds; {len(left)} and {len(right)} episodes were given.")
    return interval(left - right)


def rank(returns: Mapping[str, ArrayLike]) -> list[str]:
    """Order candidates by mean selection return, best first; equals keep their order (fewer steps come first).

    Raises:
        BadInput: without a candidate, and as in `interval`.
    """
    if not returns:
        raise BadInput("There is no candidate to rank.")
    means = {name: float(checked_returns(values).mean()) for name, values in returns.items()}
    return sorted(means, key=lambda name: -means[name])


def decide_acceptance(returns: ArrayLike, baseline: ArrayLike) -> Decision:
    """Decide whether a candidate takes the baseline's place.

    The candidate must be the winner of a search on other seeds. Only the winner is tested here, so there is one test
    and its error does not grow with the number of candidates.

    Args:
        returns: (n,) the candidate's returns on the acceptance seeds.
        baseline: (n,) the baseline's, on the same seeds.

    Raises:
        BadInput: as in `paired_difference`.
    """
    gain = paired_difference(returns, baseline)
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
    if gain.n >= MINIMUM_EPISODES and gain.is_above_zero:
        return Verdict("yes", f"the refined policy is better than the baseline by {gain}", {"baseline": gain})
    reason = f"the refined policy is not shown to be better than the baseline: {gain}, {_shortfall(gain)}"
    return Verdict("not shown", reason, {"baseline": gain})


def _bootstrap(values: Returns, method: Literal["BCa", "percentile"]) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a failed correction is a NaN, which the caller handles
        found: Any = scipy.stats.bootstrap(
            (values,),
            np.mean,
            method=method,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(0),
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


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


def interval_over_seeds(returns: ArrayLike) -> Interval:
    """Estimate the mean return over all trainings and all episodes of which a few were drawn.

    Every training is judged on the same episodes, so the design is crossed and both are random effects. With `MS_t`,
    `MS_e` and `MS_r` the mean squares of trainings, episodes and the rest, the variance of the grand mean is estimated
    by `(MS_t + MS_e - MS_r) / (S * E)` (Searle, Casella and McCulloch, "Variance Components", 1992, ch. 4), never below
    the larger of its parts alone, and Student's t has Satterthwaite's degrees of freedom (Biometrics Bulletin 1946).
    A bootstrap of two to five trainings would be far too sure of itself.

    Args:
        returns: (S, E), one row per training seed, one column per episode seed.

    Returns:
        The interval; `n` is E. With one training, or equal ones, it is that of `gate.interval` over the episodes.

    Raises:
        BadInput: for another shape, fewer than two episodes, or a return that is not finite.
    """
    table = np.asarray(returns, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise BadInput(f"Returns have shape {table.shape}; (trainings, episodes) is expected.")
    if np.ptp(table, axis=0).max() <= ROUNDING * max(1.0, float(np.abs(table).max())):
        return interval(table[0])
    if not np.isfinite(table).all():
        raise BadInput(f"{int((~np.isfinite(table)).sum())} of {table.size} returns are not finite numbers.")
    mean = float(table.mean())
    variance, freedom = _variance_of_mean(table)
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variance))
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
    means = checked_returns([float(values[part].mean()) for part in deal(len(values), draws)])
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))
    mean = float(means.mean())
    return Interval(mean, mean - half, mean + half, len(values))


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
