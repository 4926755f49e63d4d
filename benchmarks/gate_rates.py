"""Error rates of the gate from the rows of `gate.py`, each with its interval; it plays and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from refine.evaluation.gate import (
    Interval,
    Verdict,
    deal,
    interval_of_means,
    judge_labels,
    paired_difference,
    rank_labels,
)

Row = Mapping[str, Any]
RESAMPLES = 2_000
DRAWN = ("shuffled", "random")


class Rate(NamedTuple):
    """How often something happened, with a 95% interval for independent cases and one for whole comparisons."""

    name: str
    happened: int
    cases: int
    clusters: tuple[float, float]  # 95%, comparisons drawn with replacement

    @property
    def exact(self) -> tuple[float, float]:
        """Clopper and Pearson (1934)."""
        if not self.cases:
            return 0.0, 1.0
        found = stats.binomtest(self.happened, self.cases).proportion_ci(0.95, "exact")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        share = 100 * self.happened / self.cases if self.cases else float("nan")
        low, high = (100 * end for end in self.exact)
        first, last = (100 * end for end in self.clusters)
        return (
            f"{self.name:58} {self.happened:4d} of {self.cases:4d}  {share:5.1f}%  [{low:.1f}, {high:.1f}]"
            f"  by comparison [{first:.1f}, {last:.1f}]"
        )


class Case(NamedTuple):
    """One yes or no of one comparison."""

    comparison: tuple[str, int]
    happened: bool


def rate(name: str, cases: Iterable[Case]) -> Rate:
    """The share of yes, with both intervals."""
    listed = sorted(cases)
    groups = [[case.happened for case in group] for _, group in groupby(listed, key=lambda case: case.comparison)]
    sums = np.array([(sum(group), len(group)) for group in groups], dtype=float).reshape(-1, 2)
    if not len(sums):
        return Rate(name, 0, 0, (0.0, 1.0))
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    totals = sums[drawn].sum(axis=1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return Rate(name, int(sums[:, 0].sum()), int(sums[:, 1].sum()), (float(low), float(high)))


def acceptance_rates(rows: Sequence[Row], margins: Mapping[str, float]) -> Iterator[Rate]:
    """False and true accepts. A winner that returns exactly what the baseline does is no case of either."""
    found = [(row, each) for row in rows if row["gated"] for each in row["modes"].values() if not each["identical"]]

    def cases(selects: Callable[[float, float], bool]) -> Iterator[Case]:
        for row, each in found:
            if selects(each["truth_gain"], margins[row["env"]]):
                yield Case((row["env"], row["plan"]), bool(each["accepted"]))

    yield rate("false accept: true gain 0 or less", cases(lambda gain, _: gain <= 0))
    yield rate("accepted, true gain between 0 and the margin", cases(lambda gain, margin: 0 < gain <= margin))
    yield rate("true accept: true gain above the margin", cases(lambda gain, margin: gain > margin))


class Comparison:
    """One plan in one way of acting: its arms, and the verdict on any of them as the labels."""

    def __init__(self, rows: Sequence[Row], mode: str, draws: int) -> None:
        self.mode, self.draws = mode, draws
        self.gated = {(row["kind"], row["draw"]): row for row in rows if row["gated"]}
        self.drawn = {(row["kind"], row["draw"]): row for row in rows if not row["gated"]}

    def others(self, kind: str, stands: tuple[str, int] | None) -> list[Row]:
        """The draws of a placebo that the labels, or a draw that stands as the labels, are compared with."""
        found = [row for (own, number), row in sorted(self.drawn.items()) if own == kind and (own, number) != stands]
        return found[: self.draws]

    def verdict(self, labels: Row, stands: tuple[str, int] | None = None) -> Verdict:
        """Did the labels do it? As the program decides it."""
        own, plain = labels["modes"][self.mode], self.gated["no_labels", 0]["modes"][self.mode]
        others = {kind: self.others(kind, stands) for kind in DRAWN}
        leads = {"no_labels": paired_difference(own["report"], plain["report"])}
        leads |= {kind: self._lead(own["alike"], rows) for kind, rows in others.items()}
        ranks = [
            rank_labels(kind, labels["common"], [row["common"] for row in rows], asked=self.draws)
            for kind, rows in others.items()
        ]
        return judge_labels(ranks, leads, accepted=own["accepted"])

    def _lead(self, own: Sequence[float], rows: Sequence[Row]) -> Interval:
        parts = deal(len(own), self.draws)
        shares = [(parts[row["draw"] % self.draws], row["modes"][self.mode]["report"]) for row in rows]
        return interval_of_means([np.mean(own[part]) - np.mean(report) for part, report in shares], len(own))

    def steps(self) -> tuple[float, float]:
        """Environment steps now, and with three draws of each placebo through the gate; 0 where that was not played."""
        pair = [self.gated["clean", 0], self.gated["no_labels", 0]]
        own = [row["modes"][self.mode] for row in pair]
        now = sum(each["steps"] for each in own) + own[0]["alike_steps"]
        shares = [row["modes"][self.mode] for kind in DRAWN for row in self.others(kind, None)]
        now += sum(each["steps"] for each in shares)  # the baseline's are those of its own report
        gated = [*own, *(row["modes"][self.mode] for key, row in self.gated.items() if key[0] in DRAWN and key[1] < 3)]
        before = sum(each["steps"] for each in gated)
        shared = [max(each["baseline_steps"] for each in arms) for arms in (own, gated)]
        return now + shared[0], before + shared[1] if len(gated) >= 8 else 0.0


def standing_draws(rows: Sequence[Row], draws: int) -> list[tuple[str, int]]:
    """Draws of chance that are ahead of all they are compared with, so that the gate's decision on them counts."""
    comparison = Comparison(rows, next(iter(rows[0]["modes"])), draws)
    return [
        key
        for key, row in comparison.drawn.items()
        if all(row["common"] > other["common"] for kind in DRAWN for other in comparison.others(kind, key))
    ]


def credit_rates(rows: Sequence[Row], margins: Mapping[str, float], draws: int) -> Iterator[Rate]:
    """How often the labels get credit: an expert's, by what they are truly worth, and a placebo's, which is false.

    Each of the K + 1 draws of a placebo stands once as the labels, against the K others and K of the other placebo.
    Under the placebo the K + 1 draws are exchangeable, so each standing is distributed as a real comparison whose
    labels are a placebo; the standings of one comparison depend on each other, hence the interval by comparison.
    """
    expert: list[Case] = []
    better: list[Case] = []
    placebo: list[Case] = []
    for (env_id, plan), members in _by_plan(rows).items():
        for number, mode in enumerate(members[0]["modes"]):
            name, comparison = (env_id, 2 * plan + number), Comparison(members, mode, draws)
            for key in (("clean", 0), ("clean", 1)):
                labels = comparison.gated[key]
                case = Case(name, comparison.verdict(labels).holds)
                expert.append(case)
                better += [case] if _is_worth_having(comparison, labels, margins[env_id]) else []
            ahead = set(standing_draws(members, draws))
            placebo += [
                Case(name, key in ahead and comparison.verdict(comparison.gated[key], key).holds)
                for key in comparison.drawn
            ]
    yield rate("true credit: the expert's labels, truly better", better)
    yield rate("credit of all of the expert's labels", expert)
    yield rate("false credit: placebo draws credited", placebo)


def _is_worth_having(comparison: Comparison, labels: Row, margin: float) -> bool:
    """Whether labels are truly better than the baseline, and on the report seeds than the mean placebo, by the margin.

    The mean placebo is measured from its draws' parts of the report; nobody played the truth of all draws.
    """
    own = labels["modes"][comparison.mode]
    leads = comparison.verdict(labels).differences
    return own["truth_gain"] > margin and all(leads[kind].mean > margin for kind in ("no_labels", *DRAWN))


def describe(rows: Sequence[Row], margins: Mapping[str, float], draws: int) -> Iterator[str]:
    """All rates, and the environment steps of a comparison beside those before."""
    yield from map(str, (*acceptance_rates(rows, margins), *credit_rates(rows, margins, draws)))
    for mode in ("greedy", "sampled"):
        plans = [members for members in _by_plan(rows).values() if mode in members[0]["modes"]]
        spent = [steps for members in plans if all(steps := Comparison(members, mode, draws).steps())]
        if not spent:
            continue
        now, before = np.mean(spent, axis=0)
        yield f"environment steps of a comparison, {mode}: {now:,.0f}; before {before:,.0f}; ratio {now / before:.2f}"


def _by_plan(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["env"], row["plan"]), []).append(row)
    return found
