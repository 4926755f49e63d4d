"""What rows come to: one result per environment and method, over its training seeds; words are elsewhere.

Results become rows of a store's catalog, too, where the view `leaderboard` shows them beside all other comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from flows.refinement.evaluator import Candidate, Returns
from refine.evaluation.gate import CONFIDENCE, Interval, interval
from storage.catalog import insert_rows
from storage.schema import content_id
from storage.store import Store

from .jobs import ARMS
from .rows import Row, judged
from .scenes import Scene

_PLACEBOS = ("no_labels", "shuffled", "random")


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


def record_results(store: Store, scene: Scene, results: Sequence[Result]) -> str | None:
    """Write one environment's results; equal results are written once.

    Returns:
        The comparison's id; None when nothing succeeded.
    """
    done = {result.arm: result for result in results if result.seeds}
    if "baseline" not in done:
        return None
    comparison_id = content_id("c_", sorted(row.key for result in done.values() for row in result.rows))
    with store.catalog.write() as con:
        insert_rows(con, "comparisons", [_comparison(scene, done) | {"comparison_id": comparison_id}])
        insert_rows(con, "arms", [row | {"comparison_id": comparison_id} for row in _arms(done.values())])
    return comparison_id


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


def _comparison(scene: Scene, done: dict[str, Result]) -> dict[str, Any]:
    baseline_id = Candidate.of(scene.baseline, "baseline").policy_id
    labels = done.get("labels")
    better = gain(done, "labels", "baseline")
    against = {arm: gain(done, "labels", arm) for arm in _PLACEBOS}
    credit = all(found is not None and found.is_above_zero for found in against.values())
    accepted = labels.accepted if labels else 0
    return {
        "dataset_id": scene.manifest.dataset_id,
        "env_id": scene.entry.env_id,
        "baseline_id": baseline_id,
        "policy_id": baseline_id,
        "recipe": "A",
        "accepted": bool(accepted),
        "reason": f"board: {accepted} of {labels.seeds} training seeds accepted" if labels else scene.unlabelled,
        "better": better is not None and better.is_above_zero,
        "better_reason": f"labelled minus baseline: {better}",
        "credit": credit,
        "credit_reason": "; ".join(f"labelled minus {arm}: {found}" for arm, found in against.items()),
    }


def _arms(done: Any) -> list[dict[str, Any]]:
    return [
        {
            "arm": result.arm,
            "mode": mode,
            "labels": result.rows[0].labels,
            "draws": result.seeds,
            "accepted": result.accepted or 0,
            "episodes": found.n,
            "return_": found.mean,
            "low": found.low,
            "high": found.high,
        }
        for result in done
        for mode, found in (("greedy", result.greedy), ("sampled", result.sampled))
        if found is not None
    ]
