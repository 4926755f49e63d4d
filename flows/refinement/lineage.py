"""Writes a comparison, played or estimated, to the catalog: policies with parents, refinements, candidates.

Ids are made from content, so writing again changes nothing. An estimate has `basis = 'estimated'` and rows in
`estimates`, never in `evaluations`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isnan
from typing import TYPE_CHECKING, Any

from refine.evaluation import ERROR_RATE
from refine.policies import MlpPolicy, RulePolicy
from storage.catalog import insert_rows
from storage.datasets import read_manifest
from storage.policies import save_policy
from storage.schema import content_id
from storage.store import Store

from ..policies import record_baseline
from .evaluator import Candidate

if TYPE_CHECKING:
    from .arms import ArmDraw, Material
    from .comparison import ArmResult, Comparison, ComparisonPlan, Trial
    from .estimation import Appraisal, AppraiseConfig, TrialEstimate

Row = dict[str, Any]


def record_comparison(
    contest: ComparisonPlan,
    comparison: Comparison,
    run_ids: Sequence[str],
    origin: str,
    *,
    warnings: Sequence[str] = (),
) -> str:
    """Write the accepted policies, every arm's refinement and what was played last into the store.

    Args:
        contest: what was asked.
        comparison: what came of it.
        run_ids: the annotation runs whose labels were used.
        origin: where the baseline's weights came from, as text.
        warnings: about the annotator's labels, as shown to the user; stored with their arm.

    Returns:
        The comparison's id, made from its content.
    """
    store, material = contest.judge.store, contest.material
    comparison_id = name_comparison(contest)
    home = {"env_id": contest.judge.env_id, "dataset_id": material.dataset_id}
    about = {"comparison_id": comparison_id, "baseline_id": contest.baseline.policy_id}
    row = {
        **home,
        **about,
        **_verdicts(comparison),
        "recipe": material.config.name,
        "accepted": comparison.accepted,
        "promoted_arm": comparison.arm,
        "gate_mode": contest.gate.mode,
        "reason": comparison.promoted.decision.reason,
        "environment_sha256": contest.judge.fingerprint.sha256,
    }

    def write() -> None:
        record_baseline(store, material.baseline, **home, origin=origin)
        for trial in comparison.trials:
            if trial.decision.accepted:
                _save_refined(contest, trial, run_ids)
        _insert(
            store,
            comparisons=[row],
            arms=[arm | {"comparison_id": comparison_id} for arm in _judged_arms(contest, comparison)],
            refinements=[_refinement(contest, trial, about, run_ids, warnings) for trial in comparison.trials],
            candidates=[row for trial in comparison.trials for row in _candidates(comparison_id, trial)],
        )

    contest.judge.commit(write)
    return comparison_id


def record_appraisal(store: Store, appraisal: Appraisal) -> None:
    """Write the baseline, the refined policy and every arm's estimate into the store."""
    material, comparison_id = appraisal.material, appraisal.comparison_id
    home: Row = {"env_id": read_manifest(store, material.dataset_id).env_id, "dataset_id": material.dataset_id}
    baseline_id = record_baseline(store, material.baseline, **home, origin=appraisal.origin.origin)
    about = {"comparison_id": comparison_id, "baseline_id": baseline_id}
    _save_candidate(store, appraisal, {**home, "baseline_id": baseline_id})
    row = {
        **home,
        **about,
        **_verdicts(appraisal),
        "recipe": material.config.mode,
        "accepted": appraisal.accepted,
        "reason": appraisal.reason,
        "basis": "estimated",
    }
    _insert(
        store,
        comparisons=[row],
        arms=_estimated_arms(appraisal),
        estimates=_estimates(appraisal, baseline_id),
        refinements=[_estimated_refinement(appraisal, trial, about) for trial in appraisal.trials],
        candidates=[row for trial in appraisal.trials for row in _estimated_candidates(comparison_id, trial)],
    )


def _insert(store: Store, **tables: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, by table, all or none."""
    with store.catalog.write() as con:
        for name, rows in tables.items():
            insert_rows(con, name, rows)


def _verdicts(judged: Comparison | Appraisal) -> Row:
    """The policy in force, and the two verdicts with their reasons."""
    return {
        "policy_id": judged.policy_id,
        "better": judged.improvement.holds,
        "better_reason": judged.improvement.reason,
        "credit": judged.credit.holds,
        "credit_answer": judged.credit.answer,
        "credit_reason": judged.credit.reason,
    }


def _refinement_id(comparison_id: str, draw: ArmDraw) -> str:
    return content_id("f_", [comparison_id, draw.name])


def _training(material: Material, draw: ArmDraw, about: Mapping[str, str], run_ids: Sequence[str]) -> Row:
    """The columns of a refinement that do not depend on its basis, played or estimated."""
    return {
        **about,
        "refinement_id": _refinement_id(about["comparison_id"], draw),
        "dataset_id": material.dataset_id,
        "arm": draw.arm,
        "draw": draw.number,
        "also": list(material.also) or None,
        "mode": material.config.mode,
        "run_ids": list(run_ids),
        "labels": len(material.labels),
        "seed": material.config.seed,
        "state": "done",
        "finished_at": datetime.now(UTC),
    }


def name_comparison(contest: ComparisonPlan) -> str:
    """The id of a comparison, from its settings and environment, and from reference arms and their expert, if any."""
    oracle = contest.material.oracle
    references = [*contest.references, oracle.sha256 if oracle else None] if contest.references else []
    references += ["rules_promoted"] if contest.promote_rules else []
    references += ["best"] if contest.promote == "best" else []
    usual = {"error_rate"} if contest.gate.error_rate == ERROR_RATE else None  # such ids are older than the field
    gate = contest.gate.model_dump(exclude=usual)
    return content_id("c_", [contest.material.content_id, gate, *references, contest.judge.fingerprint.sha256])


def name_plan(contest: ComparisonPlan) -> str:
    """The id of what decides which policy a comparison accepts, but the seeds; more placebos are no other plan."""
    judge, gate = contest.judge, contest.gate.model_dump(exclude={"first_seed", "placebo_draws"})
    place = [judge.env_id, dict(judge.env_kwargs), judge.max_steps]
    return content_id("g_", [contest.material.content_id, gate, contest.promote_rules, place])


def _save_refined(contest: ComparisonPlan, trial: Trial, run_ids: Sequence[str]) -> None:
    material, kept = contest.material, trial.kept.actor
    if not isinstance(kept, MlpPolicy | RulePolicy):
        raise TypeError(f"The store does not keep the policy {trial.kept.policy_id}.")
    record: dict[str, Any] = {
        "kind": "refined",
        "env_id": contest.judge.env_id,
        "dataset_id": material.dataset_id,
        "baseline_id": contest.baseline.policy_id,
        "run_ids": list(run_ids),
        "config": {
            "arm": trial.draw.arm,
            "draw": trial.draw.number,
            **training_of(trial),
            "refine": material.config.model_dump(mode="json"),
            "gate": contest.gate.model_dump(mode="json"),
            "versions": learner_versions(),
            "policy_sha256": trial.kept.sha256,
            **_further_datasets(contest),
        },
    }
    save_policy(contest.judge.store, trial.kept.policy_id, kept.to_files(), record)


def training_of(trial: Trial) -> Row:
    """How the winner of a trial was trained; rules were not."""
    if trial.winner >= len(trial.snapshots):
        return {"rules": True}
    winner = trial.snapshots[trial.winner]
    return {"step": winner.step, "beta": winner.beta, "reading": winner.reading}


def _further_datasets(contest: ComparisonPlan) -> dict[str, list[str]]:
    """The datasets after the first one, if any."""
    return {"also": list(contest.material.also)} if contest.material.also else {}


def learner_versions() -> dict[str, str]:
    """Versions of the libraries that trained a policy."""
    return {name: importlib.metadata.version(name) for name in ("d3rlpy", "torch", "numpy")}


def _refinement(
    contest: ComparisonPlan, trial: Trial, about: Mapping[str, str], run_ids: Sequence[str], warnings: Sequence[str]
) -> Row:
    material, own = contest.material, trial.draw.arm == "labels"
    expert = material.oracle.spec if material.oracle and trial.draw.arm == "oracle" else None
    return {
        **_training(material, trial.draw, about, run_ids),
        "config": {
            "refine": material.config,
            "gate": contest.gate,
            "draw": trial.draw.number,
            **({"expert": expert} if expert else {}),
            **_further_datasets(contest),
            **({"warnings": list(warnings)} if own and warnings else {}),
            **({} if trial.common is None else {"common": trial.common}),
        },
        "accepted": trial.decision.accepted,
        "policy_id": trial.kept.policy_id,
        "reason": trial.decision.reason,
    }


def _candidates(comparison_id: str, trial: Trial) -> list[Row]:
    """One row for each candidate; rules that are played have step 0 and beta 0."""
    trained = [(snapshot.step, snapshot.beta) for snapshot in trial.snapshots]
    trained += [(0, 0.0)] * (len(trial.candidates) - len(trained))
    return [
        {
            "refinement_id": _refinement_id(comparison_id, trial.draw),
            "number": number,
            "policy_id": candidate.policy_id,
            "step": step,
            "beta": beta,
            "return_": mean,
            "episodes": episodes,
            "chosen": number == trial.winner,
        }
        for number, (candidate, (step, beta), mean, episodes) in enumerate(
            zip(trial.candidates, trained, trial.selection, trial.episodes, strict=True)
        )
    ]


def _judged_arms(contest: ComparisonPlan, comparison: Comparison) -> list[Row]:
    """The arms, with how far the labels lead each of them in the gate's mode."""
    leads = {**comparison.improvement.differences, **comparison.credit.differences}
    found = arm_rows(comparison.arms)
    for row in found:
        if row["mode"] == contest.gate.mode and (lead := leads.get(row["arm"])):
            row |= {"lead": lead.mean, "lead_low": lead.low, "lead_high": lead.high}
    return found


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


def appraisal_id(material: Material, config: AppraiseConfig) -> str:
    """The id of an appraisal, made from everything that decides it."""
    return content_id("c_", [material.content_id, config.model_copy(update={"workers": None})])


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


def _estimated_arms(appraisal: Appraisal) -> list[Row]:
    return [
        {
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
        for arm in appraisal.arms
    ]


def _estimates(appraisal: Appraisal, baseline_id: str) -> list[Row]:
    chosen = [(trial.draw.name, _refined_id(trial)) for trial in appraisal.trials]
    named = [("baseline", baseline_id), *chosen]
    found = [appraisal.baseline, *(trial.estimate for trial in appraisal.trials)]
    return [
        {
            "estimate_id": content_id("s_", [appraisal.comparison_id, name]),
            "comparison_id": appraisal.comparison_id,
            "policy_id": policy_id,
            "dataset_id": appraisal.dataset_id,
            "method": appraisal.method,
            "mode": appraisal.config.mode,
            "gamma": appraisal.config.ope.gamma,
            "episodes": estimate.episodes,
            "refits": estimate.refits.tolist(),
            "return_": estimate.value,
            "low": estimate.interval.low,
            "high": estimate.interval.high,
            "support": None if isnan(estimate.support) else estimate.support,
        }
        for (name, policy_id), estimate in zip(named, found, strict=True)
    ]


def _refined_id(trial: TrialEstimate) -> str:
    return Candidate.of(trial.winner.policy, "refined").policy_id


def _estimated_refinement(appraisal: Appraisal, trial: TrialEstimate, about: Mapping[str, str]) -> Row:
    own = trial.draw.arm == "labels"
    accepted = own and appraisal.accepted
    config = {**_settings(appraisal), "basis": "estimated", "draw": trial.draw.number}
    return {
        **_training(appraisal.material, trial.draw, about, appraisal.run_ids),
        "config": config | ({"warnings": list(appraisal.warnings)} if own and appraisal.warnings else {}),
        "accepted": accepted,
        "policy_id": _refined_id(trial) if accepted else appraisal.baseline_id,
        "reason": appraisal.reason if own else trial.improvement.reason,
    }


def _estimated_candidates(comparison_id: str, trial: TrialEstimate) -> list[Row]:
    return [
        {
            "refinement_id": _refinement_id(comparison_id, trial.draw),
            "number": number,
            "policy_id": Candidate.of(snapshot.policy, "refined").policy_id,
            "step": snapshot.step,
            "beta": snapshot.beta,
            "return_": None,
            "consistency": float(trial.consistency.likelihoods[number]),
            "agreement": float(trial.consistency.agreements[number]),
            "chosen": number == trial.consistency.best,
        }
        for number, snapshot in enumerate(trial.snapshots)
    ]
