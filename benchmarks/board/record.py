"""Results as rows of a store's catalog, where the view `leaderboard` shows them beside all other comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.refinement.evaluator import Candidate
from storage.catalog.connection import insert_rows
from storage.content_hash import content_id
from storage.store import Store

from .results import Result, gain
from .scenes import Scene

_PLACEBOS = ("no_labels", "shuffled", "random")


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
