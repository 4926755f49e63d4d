"""Error rates of the gate from the rows of `gate.py`, each with its interval; it plays and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from refine.evaluation.gate import judge_labels

Row = Mapping[str, Any]
RESAMPLES = 2_000


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


def acceptance_rates(rows: Sequence[Row], method: str, margins: Mapping[str, float]) -> Iterator[Rate]:
    """False and true accepts. A winner that returns exactly what the baseline does is no case of either."""
    played = [row for row in rows if not row["methods"][method]["identical"]]

    def cases(selects: Callable[[Row, Row], bool]) -> Iterator[Case]:
        for row in played:
            found = row["methods"][method]
            if selects(row, found):
                yield Case((row["env"], row["comparison"]), bool(found["accepted"]))

    yield rate("false accept: true gain estimated at 0 or less", cases(lambda _, f: f["truth_gain"] <= 0))
    yield rate("false accept: surely worse (upper end below 0)", cases(lambda _, f: f["truth_high"] < 0))
    yield rate(
        "accepted, true gain between 0 and the margin", cases(lambda r, f: 0 < f["truth_gain"] <= margins[r["env"]])
    )
    yield rate("true accept: true gain above the margin", cases(lambda r, f: f["truth_gain"] > margins[r["env"]]))
    yield rate(
        "true accept: surely (lower end above the margin)", cases(lambda r, f: f["truth_low"] > margins[r["env"]])
    )
    wrong = (
        Case((row["env"], row["comparison"]), row["methods"][method]["truth_gain"] <= 0)
        for row in played
        if row["methods"][method]["accepted"]
    )
    yield rate("of all that was accepted: true gain 0 or less", wrong)


def credit_rates(rows: Sequence[Row], method: str, placebo_draws: int) -> Iterator[Rate]:
    """False and true credit: the verdict "the labels did it" on placebo draws and on the expert's labels.

    Each of the K + 1 draws of a placebo stands once as the labels, against the K others, K of the other placebo and
    the unlabelled arm, all of one comparison. Under the placebo the K + 1 draws are exchangeable, so each standing is
    distributed as a real comparison whose labels are a placebo, and the share of credited ones is unbiased; the
    standings of one comparison depend on each other, hence the interval by comparison.
    """
    comparisons: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        comparisons.setdefault((row["env"], row["comparison"]), []).append(row)
    placebo: list[Case] = []
    expert: list[Case] = []
    for name, members in comparisons.items():
        placebo += [Case(name, credited) for credited in _credit_placebos(members, method, placebo_draws)]
        expert += [Case(name, credited) for credited in _credit_expert(members, method, placebo_draws)]
    yield rate("false credit: placebo draws credited", placebo)
    yield rate("true credit: the expert's labels credited", expert)


def _credit_placebos(members: Sequence[Row], method: str, draws: int) -> Iterator[bool]:
    found = _by_kind(members, method)
    if any(len(found.get(kind, [])) < count for kind, count in _needed(draws).items()):
        return
    for kind, other in (("shuffled", "random"), ("random", "shuffled")):
        for number in range(draws + 1):
            rest = {arm: _reports(_without(found[arm], number)) for arm in (kind, other)}
            rest["no_labels"] = _reports(found["no_labels"])
            labels = found[kind][number]
            yield judge_labels(labels["report"], rest, accepted=labels["accepted"]).holds


def _credit_expert(members: Sequence[Row], method: str, draws: int) -> Iterator[bool]:
    found = _by_kind(members, method)
    if any(len(found.get(kind, [])) < count for kind, count in _needed(draws).items()):
        return
    rest = {arm: _reports(found[arm][:draws]) for arm in ("shuffled", "random")}
    rest["no_labels"] = _reports(found["no_labels"])
    for labels in found.get("clean", []):
        yield judge_labels(labels["report"], rest, accepted=labels["accepted"]).holds


def _needed(draws: int) -> dict[str, int]:
    return {"shuffled": draws + 1, "random": draws + 1, "no_labels": 1}


def _by_kind(members: Sequence[Row], method: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(members, key=lambda row: row["draw"]):
        found.setdefault(row["kind"], []).append(row["methods"][method])
    return found


def _without(found: Sequence[Row], number: int) -> list[Row]:
    return [row for index, row in enumerate(found) if index != number]


def _reports(found: Sequence[Row]) -> list[list[float]]:
    return [row["report"] for row in found]


def spending(rows: Sequence[Row], method: str, placebo_draws: int) -> dict[str, float]:
    """Mean episodes and steps of selection and acceptance in one comparison as the program makes it.

    That is the expert's labels, no labels, and K draws of each placebo; the baseline's episodes are shared by them, so
    they count as many as the longest test asked for.
    """
    totals: list[tuple[float, float]] = []
    for _, group in groupby(sorted(rows, key=_comparison_of), key=_comparison_of):
        found = _by_kind(list(group), method)
        counts = {"clean": 1, "no_labels": 1, "shuffled": placebo_draws, "random": placebo_draws}
        arms = [row for kind, count in counts.items() for row in found.get(kind, [])[:count]]
        if len(arms) == sum(counts.values()):
            own = [sum(arm[unit] for arm in arms) for unit in ("episodes", "steps")]
            shared = [max(arm[f"baseline_{unit}"] for arm in arms) for unit in ("episodes", "steps")]
            totals.append((own[0] + shared[0], own[1] + shared[1]))
    episodes, steps = np.mean(totals, axis=0) if totals else (float("nan"), float("nan"))
    return {"episodes": float(episodes), "steps": float(steps)}


def _comparison_of(row: Row) -> tuple[str, int]:
    return row["env"], row["comparison"]


def outcome(rows: Sequence[Row], method: str) -> tuple[float, float]:
    """What the gate is for: mean true gain of what is in force, and of the tested winners whether accepted or not."""
    found = [row["methods"][method] for row in rows]
    in_force = [f["truth_gain"] if f["accepted"] else 0.0 for f in found]
    return float(np.mean(in_force)), float(np.mean([f["truth_gain"] for f in found]))
