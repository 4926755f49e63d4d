"""What rows come to: one result per environment and method, over its training seeds. Words and files are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flows.judge import Returns
from refine.gate import CONFIDENCE, Interval

from .jobs import ARMS
from .rows import Row

RESAMPLES = 2_000


@dataclass(frozen=True)
class Result:
    """One method in one environment."""

    env: str
    arm: str
    seeds: int  # training seeds with a row
    accepted: int | None  # of those; None where the method has no gate
    greedy: Interval | None
    sampled: Interval | None
    rows: Sequence[Row]  # that succeeded
    failures: Sequence[str]  # reasons, one per failed seed

    @property
    def judged(self) -> Interval | None:
        """In the mode in which the gate looked."""
        return self.sampled if self.rows and self.rows[0].mode == "sampled" else self.greedy


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


def interval_over_seeds(returns: Returns) -> Interval:
    """Mean and 95% interval over training seeds and test episodes, (K, S) returns.

    A bootstrap in two stages: training seeds are drawn with replacement, then episodes of each drawn one, because
    training seeds are a sample, too. With few training seeds such an interval is rather too narrow.
    """
    seeds, episodes = returns.shape
    rng = np.random.default_rng(0)
    drawn = rng.integers(seeds, size=(RESAMPLES, seeds))
    means = [np.mean(returns[row[:, None], rng.integers(episodes, size=(seeds, episodes))]) for row in drawn]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(returns.mean()), float(low), float(high), returns.size)


def gain(results: Mapping[str, Result], arm: str, other: str) -> Interval | None:
    """By how much one method is above another, paired by training seed and test episode; None where one is missing."""
    if arm not in results or other not in results:
        return None
    left, right = ({row.seed: _judged(row) for row in results[name].rows} for name in (arm, other))
    shared = [seed for seed in left if seed in right and len(left[seed]) == len(right[seed]) > 0]
    if not shared:
        return None
    return interval_over_seeds(np.array([np.subtract(left[seed], right[seed]) for seed in shared]))


def _summarise(env: str, arm: str, own: Sequence[Row]) -> Result:
    done = [row for row in own if row.status == "done"]
    judged = [row.accepted for row in done if row.accepted is not None]
    return Result(
        env=env,
        arm=arm,
        seeds=len(done),
        accepted=sum(judged) if judged else None,
        greedy=_pool([row.greedy for row in done]),
        sampled=_pool([row.sampled for row in done]),
        rows=done,
        failures=[row.reason for row in own if row.status == "failed"],
    )


def _pool(returns: Sequence[Sequence[float]]) -> Interval | None:
    found = [values for values in returns if values]
    return interval_over_seeds(np.array(found)) if found and len(found) == len(returns) else None


def _judged(row: Row) -> Sequence[float]:
    return row.sampled if row.mode == "sampled" else row.greedy
