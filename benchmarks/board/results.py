"""What rows come to: one result per environment and method, over its training seeds. Words and files are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from flows.refinement.evaluator import Returns
from refine.evaluation.gate import CONFIDENCE, Interval, interval

from .jobs import ARMS
from .rows import Row, judged


@dataclass(frozen=True)
class Result:
    """One method in one environment."""

    env: str
    arm: str
    seeds: int  # training seeds with a row
    accepted: int | None  # of those; None where the method has no gate
    credited: int | None  # of those; None where no placebos were played
    greedy: Interval | None
    sampled: Interval | None
    rows: Sequence[Row]  # that succeeded
    failures: Sequence[str]  # reasons, one per failed seed


def summarise(rows: Sequence[Row]) -> list[Result]:
    """One result for every environment and method that has a row; environments as they came, methods in their order."""
    environments = list(dict.fromkeys(row.env for row in rows))
    results: list[Result] = []
    for env in environments:
        for arm in ARMS:
            own = sorted((row for row in rows if (row.env, row.arm) == (env, arm)), key=lambda row: row.seed)
            if own:
                results.append(_summarise(env, arm, own))
    return results


def interval_over_trainings(returns: Returns) -> Interval:
    """Estimate the mean return over all trainings and all episodes, from (K, S) returns.

    Every training seed has test episodes of its own, so episodes are nested in trainings. With `MS_t` and `MS_e` the
    mean squares between trainings and within them, the variance of the grand mean is estimated by `MS_t / (K * S)` with
    `K - 1` degrees of freedom (Searle, Casella and McCulloch, "Variance Components", 1992, ch. 3), or by `MS_e` with
    its own where trainings differ less than chance lets them. A bootstrap of few trainings would be too sure of itself.

    Returns:
        The interval by Student's t; by the bootstrap of `gate.interval` for a single training or equal returns.
    """
    trainings, episodes = returns.shape
    if trainings == 1 or np.ptp(returns) == 0:
        return interval(returns.reshape(-1))
    means = returns.mean(axis=1)
    between, within = episodes * means.var(ddof=1), np.mean(returns.var(axis=1, ddof=1))
    freedom = trainings - 1 if between >= within else trainings * (episodes - 1)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(max(between, within) / returns.size))
    mean = float(returns.mean())
    return Interval(mean, mean - half, mean + half, returns.size)


def gain(results: Mapping[str, Result], arm: str, other: str) -> Interval | None:
    """By how much one method is above another, paired by training seed and test episode; None where one is missing."""
    if arm not in results or other not in results:
        return None
    left, right = ({row.seed: judged(row) for row in results[name].rows} for name in (arm, other))
    shared = [seed for seed in left if seed in right and len(left[seed]) == len(right[seed]) > 0]
    if not shared:
        return None
    return interval_over_trainings(np.array([np.subtract(left[seed], right[seed]) for seed in shared]))


def _summarise(env: str, arm: str, own: Sequence[Row]) -> Result:
    done = [row for row in own if row.status == "done"]
    credited = [row.credited for row in done if row.credited is not None]
    decided = [row.accepted for row in done if row.accepted is not None]
    return Result(
        env=env,
        arm=arm,
        seeds=len(done),
        accepted=sum(decided) if decided else None,
        credited=sum(credited) if credited else None,
        greedy=_pool([row.greedy for row in done]),
        sampled=_pool([row.sampled for row in done]),
        rows=done,
        failures=[row.reason for row in own if row.status == "failed"],
    )


def _pool(returns: Sequence[Sequence[float]]) -> Interval | None:
    found = [values for values in returns if values]
    return interval_over_trainings(np.array(found)) if found and len(found) == len(returns) else None
