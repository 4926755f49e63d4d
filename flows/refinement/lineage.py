"""Writes a comparison to the catalog: policies with parents, refinements, candidates.

Ids are made from content, so writing again changes nothing.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from refine.evaluation import ERROR_RATE, Interval, Verdict
from refine.policies import MlpPolicy, RulePolicy
from storage.catalog import insert_rows
from storage.policies import save_policy
from storage.schema import content_id
from storage.store import Store

from ..policies import record_baseline

if TYPE_CHECKING:
    from .arms import ArmDraw, Material
    from .comparison import ArmResult, Comparison, ComparisonPlan, Trial
    from .evaluator import Candidate

Row = dict[str, Any]


def record_comparison(
    plan: ComparisonPlan,
    comparison: Comparison,
    run_ids: Sequence[str],
    origin: str,
    *,
    warnings: Sequence[str] = (),
) -> str:
    """Write the accepted policies, every arm's refinement and what was played last into the store.

    Args:
        plan: what was asked.
        comparison: what came of it.
        run_ids: the annotation runs whose labels were used.
        origin: where the baseline's weights came from, as text.
        warnings: about the annotator's labels, as shown to the user; stored with their arm.

    Returns:
        The comparison's id, made from its content.
    """
    store, material = plan.evaluator.store, plan.material
    comparison_id = name_comparison(plan)
    home = {"env_id": plan.evaluator.env_id, "dataset_id": material.dataset_id}
    about = {"comparison_id": comparison_id, "baseline_id": plan.baseline.policy_id}
    row = {
        **home,
        **about,
        **verdict_columns(comparison.improvement, comparison.credit),
        "policy_id": comparison.policy_id,
        "recipe": material.config.name,
        "accepted": comparison.accepted,
        "promoted_arm": comparison.arm,
        "gate_mode": plan.gate.mode,
        "reason": comparison.promoted.decision.reason,
        "environment_sha256": plan.evaluator.fingerprint.sha256,
    }

    def write() -> None:
        record_baseline(store, material.baseline, **home, origin=origin)
        for trial in comparison.trials:
            if trial.decision.accepted:
                _save_accepted(plan, trial, run_ids)
        insert_all(
            store,
            comparisons=[row],
            arms=[arm | {"comparison_id": comparison_id} for arm in _judged_arms(plan, comparison)],
            refinements=[_refinement(plan, trial, about, run_ids, warnings) for trial in comparison.trials],
            candidates=[row for trial in comparison.trials for row in _candidates(comparison_id, trial)],
        )

    plan.evaluator.commit(write)
    return comparison_id


def insert_all(store: Store, **tables: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, by table, all or none."""
    with store.catalog.write() as con:
        for name, rows in tables.items():
            insert_rows(con, name, rows)


def verdict_columns(improvement: Verdict, credit: Verdict) -> Row:
    """The two verdicts with their reasons."""
    return {
        "better": improvement.holds,
        "better_reason": improvement.reason,
        "credit": credit.holds,
        "credit_answer": credit.answer,
        "credit_reason": credit.reason,
    }


def refinement_id(comparison_id: str, draw: ArmDraw) -> str:
    """The id of one draw's refinement in a comparison."""
    return content_id("f_", [comparison_id, draw.name])


def training_columns(material: Material, draw: ArmDraw, about: Mapping[str, str], run_ids: Sequence[str]) -> Row:
    """The columns of a refinement that do not depend on its basis, played or estimated."""
    return {
        **about,
        "refinement_id": refinement_id(about["comparison_id"], draw),
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


def name_comparison(plan: ComparisonPlan) -> str:
    """The id of a comparison, from its settings and environment, and from reference arms and their expert, if any."""
    oracle = plan.material.oracle
    references = [*plan.references, oracle.sha256 if oracle else None] if plan.references else []
    references += ["rules_promoted"] if plan.promote_rules else []
    references += ["best"] if plan.promote == "best" else []
    usual = {"error_rate"} if plan.gate.error_rate == ERROR_RATE else None  # such ids are older than the field
    gate = plan.gate.model_dump(exclude=usual)
    return content_id("c_", [plan.material.content_id, gate, *references, plan.evaluator.fingerprint.sha256])


def name_plan(plan: ComparisonPlan) -> str:
    """The id of what decides which policy a comparison accepts, but the seeds; more placebos are no other plan."""
    evaluator, gate = plan.evaluator, plan.gate.model_dump(exclude={"first_seed", "placebo_draws"})
    place = [evaluator.env_id, dict(evaluator.env_kwargs), evaluator.max_steps]
    return content_id("g_", [plan.material.content_id, gate, plan.promote_rules, place])


def _save_accepted(plan: ComparisonPlan, trial: Trial, run_ids: Sequence[str]) -> None:
    material = plan.material
    about = {
        "env_id": plan.evaluator.env_id,
        "dataset_id": material.dataset_id,
        "baseline_id": plan.baseline.policy_id,
        "run_ids": list(run_ids),
    }
    config = {
        "arm": trial.draw.arm,
        "draw": trial.draw.number,
        **training_of(trial),
        "refine": material.config.model_dump(mode="json"),
        "gate": plan.gate.model_dump(mode="json"),
        **_further_datasets(plan),
    }
    save_refined(plan.evaluator.store, trial.kept, about, config)


def save_refined(store: Store, refined: Candidate, about: Row, config: Row) -> None:
    """Keep a refined policy.

    Args:
        store: where it is kept.
        refined: the policy.
        about: its environment, dataset and baseline, and the annotation runs if known.
        config: how it was trained; versions and its hash are added.
    """
    if not isinstance(refined.actor, MlpPolicy | RulePolicy):
        raise TypeError(f"The store does not keep the policy {refined.policy_id}.")
    versions = {name: importlib.metadata.version(name) for name in ("d3rlpy", "torch", "numpy")}
    made = {**config, "versions": versions, "policy_sha256": refined.sha256}
    save_policy(store, refined.policy_id, refined.actor.to_files(), {**about, "kind": "refined", "config": made})


def training_of(trial: Trial) -> Row:
    """How the winner of a trial was trained; rules were not."""
    if trial.winner >= len(trial.snapshots):
        return {"rules": True}
    winner = trial.snapshots[trial.winner]
    return {"step": winner.step, "beta": winner.beta, "reading": winner.reading}


def _further_datasets(plan: ComparisonPlan) -> dict[str, list[str]]:
    """The datasets after the first one, if any."""
    return {"also": list(plan.material.also)} if plan.material.also else {}


def _refinement(
    plan: ComparisonPlan, trial: Trial, about: Mapping[str, str], run_ids: Sequence[str], warnings: Sequence[str]
) -> Row:
    material, own = plan.material, trial.draw.arm == "labels"
    expert = material.oracle.spec if material.oracle and trial.draw.arm == "oracle" else None
    return {
        **training_columns(material, trial.draw, about, run_ids),
        "config": {
            "refine": material.config,
            "gate": plan.gate,
            "draw": trial.draw.number,
            **({"expert": expert} if expert else {}),
            **_further_datasets(plan),
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
            "refinement_id": refinement_id(comparison_id, trial.draw),
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


def _judged_arms(plan: ComparisonPlan, comparison: Comparison) -> list[Row]:
    """The arms, with how far the labels lead each of them in the gate's mode."""
    leads = {**comparison.improvement.differences, **comparison.credit.differences}
    found = arm_rows(comparison.arms)
    for row in found:
        if row["mode"] == plan.gate.mode and (lead := leads.get(row["arm"])):
            row |= {"lead": lead.mean, "lead_low": lead.low, "lead_high": lead.high}
    return found


def arm_rows(arms: Sequence[ArmResult]) -> list[Row]:
    """One row per arm and way of acting: how many draws, how many accepted, and the return with its interval."""
    return [
        arm_row(arm.arm, mode, arm.labels, arm.draws, arm.accepted, returns)
        for arm in arms
        for mode, returns in (("greedy", arm.greedy), ("sampled", arm.sampled))
        if returns is not None
    ]


def arm_row(arm: str, mode: str, labels: int, draws: int, accepted: int, returns: Interval) -> Row:
    """One arm in one way of acting, its returns played or estimated."""
    return {
        "arm": arm,
        "mode": mode,
        "labels": labels,
        "draws": draws,
        "accepted": accepted,
        "episodes": returns.n,
        "return_": returns.mean,
        "low": returns.low,
        "high": returns.high,
    }
