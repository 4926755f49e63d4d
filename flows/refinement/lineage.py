"""What the catalog keeps of a comparison: policies with their parents, refinements with their reasons, candidates.

Rows are named by content, so writing them again changes nothing.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from storage.catalog import insert_rows
from storage.content_hash import content_id
from storage.policies import save_policy

from ..policies import record_baseline
from .comparison import ArmResult, Comparison, ComparisonPlan, Trial


def record_comparison(
    contest: ComparisonPlan,
    comparison: Comparison,
    run_ids: Sequence[str],
    origin: str,
    *,
    warnings: Sequence[str] = (),
) -> str:
    """Write the accepted policies and every arm's refinement into the store.

    Args:
        contest: what was asked.
        comparison: what came of it.
        run_ids: the annotation runs whose labels were used.
        origin: where the baseline's weights came from, in words.
        warnings: what a user was told about the annotator's labels; kept with the arm that has them.

    Returns:
        The comparison's id, which is that of its content.
    """
    store, material = contest.judge.store, contest.material
    comparison_id = _comparison_id(contest)
    home = {"env_id": contest.judge.env_id, "dataset_id": material.dataset_id}
    ids = {trial.draw.name: content_id("f_", [comparison_id, trial.draw.name]) for trial in comparison.trials}
    with store.catalog.write() as con:
        record_baseline(store, material.baseline, **home, origin=origin)
        for trial in comparison.trials:
            if trial.decision.accepted:
                _save_refined(contest, trial, run_ids)
        insert_rows(con, "comparisons", [_comparison_row(contest, comparison) | {"comparison_id": comparison_id}])
        insert_rows(con, "arms", [row | {"comparison_id": comparison_id} for row in arm_rows(comparison.arms)])
        rows = [_refinement_row(contest, trial, run_ids) for trial in comparison.trials]
        for row, trial in zip(rows, comparison.trials, strict=True):
            row |= {"refinement_id": ids[trial.draw.name], "comparison_id": comparison_id}
            if warnings and trial.draw.arm == "labels":
                row["config"]["warnings"] = list(warnings)
        insert_rows(con, "refinements", rows)
        insert_rows(con, "candidates", [c for trial in comparison.trials for c in _candidate_rows(trial, ids)])
    return comparison_id


def _comparison_id(contest: ComparisonPlan) -> str:
    """Named by what was asked and where; arms that only inform, and their expert, count where there are any."""
    oracle = contest.material.oracle
    references = [*contest.references, oracle.sha256 if oracle else None] if contest.references else []
    return content_id("c_", [contest.material.content_id, contest.gate, *references, contest.judge.fingerprint.sha256])


def _save_refined(contest: ComparisonPlan, trial: Trial, run_ids: Sequence[str]) -> None:
    material, winner = contest.material, trial.snapshots[trial.winner]
    record: dict[str, Any] = {
        "kind": "refined",
        "env_id": contest.judge.env_id,
        "dataset_id": material.dataset_id,
        "baseline_id": contest.baseline.policy_id,
        "run_ids": list(run_ids),
        "config": {
            "arm": trial.draw.arm,
            "draw": trial.draw.number,
            "step": winner.step,
            "beta": winner.beta,
            "reading": winner.reading,
            "refine": material.config.model_dump(mode="json"),
            "gate": contest.gate.model_dump(mode="json"),
            "versions": learner_versions(),
            "policy_sha256": trial.kept.sha256,
            **_further_datasets(contest),
        },
    }
    save_policy(contest.judge.store, trial.kept.policy_id, winner.policy.to_files(), record)


def _further_datasets(contest: ComparisonPlan) -> dict[str, list[str]]:
    """The datasets beside the first one, where there are any."""
    return {"also": list(contest.material.also)} if contest.material.also else {}


def learner_versions() -> dict[str, str]:
    """Versions of what trained a policy."""
    return {name: importlib.metadata.version(name) for name in ("d3rlpy", "torch", "numpy")}


def _comparison_row(contest: ComparisonPlan, comparison: Comparison) -> dict[str, Any]:
    return {
        "dataset_id": contest.material.dataset_id,
        "env_id": contest.judge.env_id,
        "baseline_id": contest.baseline.policy_id,
        "policy_id": comparison.policy_id,
        "recipe": contest.material.config.name,
        "accepted": comparison.decision.accepted,
        "reason": comparison.decision.reason,
        "better": comparison.improvement.holds,
        "better_reason": comparison.improvement.reason,
        "credit": comparison.credit.holds,
        "credit_reason": comparison.credit.reason,
        "environment_sha256": contest.judge.fingerprint.sha256,
    }


def arm_rows(arms: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """One row per arm and way of acting: how many draws, how many accepted, and the return with its interval."""
    return [
        {
            "arm": arm.arm,
            "mode": mode,
            "labels": arm.labels,
            "draws": arm.draws,
            "accepted": arm.accepted,
            "episodes": returns.n,
            "return_": returns.mean,
            "low": returns.low,
            "high": returns.high,
        }
        for arm in arms
        for mode, returns in (("greedy", arm.greedy), ("sampled", arm.sampled))
        if returns is not None
    ]


def _refinement_row(contest: ComparisonPlan, trial: Trial, run_ids: Sequence[str]) -> dict[str, Any]:
    material = contest.material
    expert = material.oracle.spec if material.oracle and trial.draw.arm == "oracle" else None
    more = {"expert": expert} if expert else {}
    return {
        "dataset_id": material.dataset_id,
        "baseline_id": contest.baseline.policy_id,
        "arm": trial.draw.arm,
        "mode": material.config.mode,
        "config": {
            "refine": material.config,
            "gate": contest.gate,
            "draw": trial.draw.number,
            **more,
            **_further_datasets(contest),
        },
        "run_ids": list(run_ids),
        "labels": len(material.labels),
        "seed": material.config.seed,
        "state": "done",
        "accepted": trial.decision.accepted,
        "policy_id": trial.kept.policy_id,
        "reason": trial.decision.reason,
        "finished_at": datetime.now(UTC),
    }


def _candidate_rows(trial: Trial, refinement_ids: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "refinement_id": refinement_ids[trial.draw.name],
            "number": number,
            "policy_id": candidate.policy_id,
            "step": snapshot.step,
            "beta": snapshot.beta,
            "return_": mean,
            "chosen": number == trial.winner,
        }
        for number, (candidate, snapshot, mean) in enumerate(
            zip(trial.candidates, trial.snapshots, trial.selection, strict=True)
        )
    ]
