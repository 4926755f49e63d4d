"""What the catalog keeps of an appraisal: the tables of a comparison with `basis = 'estimated'`, and `estimates`.

Rows are named by content, so writing them again changes nothing. Nothing here becomes a row of `evaluations`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from math import isnan
from typing import TYPE_CHECKING, Any

from storage.catalog import insert_rows
from storage.content_hash import content_id
from storage.datasets import read_manifest
from storage.policies import save_policy
from storage.store import Store

from ..policies import record_baseline
from ..refinement import Candidate, learner_versions

if TYPE_CHECKING:
    from ..refinement import Material
    from .appraisal import Appraisal, AppraiseConfig, Trial

METHOD = "fqe"


def comparison_id_of(material: Material, config: AppraiseConfig) -> str:
    """The name of an appraisal, made from everything that decides it."""
    return content_id("c_", [material.content_id, config.model_copy(update={"workers": None})])


def record_appraisal(store: Store, appraisal: Appraisal) -> None:
    """Write the baseline, the refined policy and every arm's estimate into the store."""
    material = appraisal.material
    env_id = read_manifest(store, material.dataset_id).env_id
    home: dict[str, Any] = {"env_id": env_id, "dataset_id": material.dataset_id}
    baseline_id = record_baseline(store, material.baseline, **home, origin=appraisal.origin.origin)
    _save_candidate(store, appraisal, {**home, "baseline_id": baseline_id})
    with store.catalog.write() as con:
        insert_rows(con, "comparisons", [{**home, "baseline_id": baseline_id, **_comparison(appraisal)}])
        insert_rows(con, "arms", list(_arms(appraisal)))
        insert_rows(con, "estimates", list(_estimates(appraisal, baseline_id)))
        for trial in appraisal.trials:
            refinement_id = content_id("f_", [appraisal.comparison_id, trial.draw.name])
            row = {"dataset_id": material.dataset_id, "baseline_id": baseline_id, "refinement_id": refinement_id}
            insert_rows(con, "refinements", [{**row, **_refinement(appraisal, trial)}])
            insert_rows(con, "candidates", list(_candidates(trial, refinement_id)))


def _save_candidate(store: Store, appraisal: Appraisal, home: dict[str, Any]) -> None:
    winner, candidate = appraisal.trials[0].winner, appraisal.candidate
    config = {
        "arm": "labels",
        "basis": "estimated",
        "step": winner.step,
        "beta": winner.beta,
        **_settings(appraisal),
        "versions": learner_versions(),
        "policy_sha256": candidate.sha256,
    }
    record = {**home, "kind": "refined", "run_ids": list(appraisal.run_ids), "config": config}
    save_policy(store, candidate.policy_id, winner.policy.to_files(), record)


def _settings(appraisal: Appraisal) -> dict[str, Any]:
    config = appraisal.config
    gate = {"mode": config.mode, "placebo_draws": config.placebo_draws}
    estimate = {"folds": config.folds, "accept": config.accept, **config.ope.model_dump(mode="json")}
    return {"refine": appraisal.material.config.model_dump(mode="json"), "gate": gate, "estimate": estimate}


def _comparison(appraisal: Appraisal) -> dict[str, Any]:
    return {
        "comparison_id": appraisal.comparison_id,
        "policy_id": appraisal.policy_id,
        "recipe": appraisal.material.config.mode,
        "accepted": appraisal.accepted,
        "reason": decision_of(appraisal),
        "better": appraisal.improvement.holds,
        "better_reason": appraisal.improvement.reason,
        "credit": appraisal.credit.holds,
        "credit_reason": appraisal.credit.reason,
        "basis": "estimated",
    }


def decision_of(appraisal: Appraisal) -> str:
    """What was decided, and on what."""
    if appraisal.accepted:
        return "put in force on an estimate alone, as was asked for; nothing was played"
    if appraisal.improvement.holds:
        return "not put in force: an estimate alone accepts no policy; nothing was played"
    return "not put in force, and not estimated better; nothing was played"


def _arms(appraisal: Appraisal) -> Iterator[dict[str, Any]]:
    for arm in appraisal.arms:
        yield {
            "comparison_id": appraisal.comparison_id,
            "arm": arm.arm,
            "mode": appraisal.config.mode,
            "labels": arm.labels,
            "draws": arm.draws,
            "accepted": int(appraisal.accepted and arm.arm == "labels"),
            "episodes": arm.return_.n,
            "return_": arm.return_.mean,
            "low": arm.return_.low,
            "high": arm.return_.high,
        }


def _estimates(appraisal: Appraisal, baseline_id: str) -> Iterator[dict[str, Any]]:
    chosen = [(trial.draw.name, Candidate.of(trial.winner.policy, "refined").policy_id) for trial in appraisal.trials]
    named = [("baseline", baseline_id), *chosen]
    found = [appraisal.baseline, *(trial.estimate for trial in appraisal.trials)]
    for (name, policy_id), estimate in zip(named, found, strict=True):
        yield {
            "estimate_id": content_id("s_", [appraisal.comparison_id, name]),
            "comparison_id": appraisal.comparison_id,
            "policy_id": policy_id,
            "dataset_id": appraisal.dataset_id,
            "method": METHOD,
            "mode": appraisal.config.mode,
            "gamma": appraisal.config.ope.gamma,
            "episodes": estimate.episodes,
            "refits": estimate.refits.tolist(),
            "return_": estimate.value,
            "low": estimate.interval.low,
            "high": estimate.interval.high,
            "support": None if isnan(estimate.support) else estimate.support,
        }


def _refinement(appraisal: Appraisal, trial: Trial) -> dict[str, Any]:
    own = trial.draw.arm == "labels"
    accepted = own and appraisal.accepted
    kept = Candidate.of(trial.winner.policy, "refined") if accepted else None
    return {
        "comparison_id": appraisal.comparison_id,
        "arm": trial.draw.arm,
        "mode": appraisal.material.config.mode,
        "config": {**_settings(appraisal), "basis": "estimated", "draw": trial.draw.number}
        | ({"warnings": list(appraisal.warnings)} if own and appraisal.warnings else {}),
        "run_ids": list(appraisal.run_ids),
        "labels": len(appraisal.material.labels),
        "seed": appraisal.material.config.seed,
        "state": "done",
        "accepted": accepted,
        "policy_id": kept.policy_id if kept else appraisal.baseline_id,
        "reason": decision_of(appraisal) if own else trial.improvement.reason,
        "finished_at": datetime.now(UTC),
    }


def _candidates(trial: Trial, refinement_id: str) -> Iterator[dict[str, Any]]:
    for number, snapshot in enumerate(trial.snapshots):
        yield {
            "refinement_id": refinement_id,
            "number": number,
            "policy_id": Candidate.of(snapshot.policy, "refined").policy_id,
            "step": snapshot.step,
            "beta": snapshot.beta,
            "return_": None,
            "consistency": float(trial.consistency.likelihoods[number]),
            "agreement": float(trial.consistency.agreements[number]),
            "chosen": number == trial.consistency.best,
        }
