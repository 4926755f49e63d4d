"""An appraisal in the forms in which it is told: table rows, sentences, JSON; each says that it is an estimate."""

from __future__ import annotations

from math import isnan
from typing import Any

from refine.evaluation import CAVEAT, Interval

from .appraisal import Appraisal, ArmEstimate
from .records import METHOD, decision_of


def estimate_rows(appraisal: Appraisal) -> list[dict[str, object]]:
    """One row per arm: labels, draws estimated better than the baseline, the estimate, and what it rests on."""
    return [_row(arm) for arm in appraisal.arms]


def estimate_sentences(appraisal: Appraisal) -> list[str]:
    """What the numbers are, the decision, and the two verdicts."""
    trial = appraisal.trials[0]
    consistency, winner = trial.consistency, trial.winner
    return [
        f"ESTIMATE: {CAVEAT}",
        f"return: discounted by {appraisal.config.ope.gamma:g} per step, {appraisal.config.mode};"
        " same action: share of logged steps at which the policy would do what was logged",
        f"chosen: {winner.name}, which foretold held-out labels best: log-likelihood"
        f" {consistency.likelihoods[consistency.best]:.2f} (the baseline: {consistency.baseline:.2f})",
        f"estimated better than the baseline? {_yes(appraisal.improvement.holds)}: {appraisal.improvement.reason}",
        f"did the labels do it, as far as estimates go? {_yes(appraisal.credit.holds)}: {appraisal.credit.reason}",
        f"{decision_of(appraisal)}",
        f"in force: {appraisal.policy_id}; kept to be tried: {appraisal.candidate.policy_id}",
        *(f"warning: {warning}" for warning in appraisal.warnings),
    ]


def estimate_json(appraisal: Appraisal) -> dict[str, Any]:
    """Everything above as plain values; there is no `accepted` policy and no return that was played."""
    trial = appraisal.trials[0]
    return {
        "basis": "estimated",
        "method": METHOD,
        "caveat": CAVEAT,
        "gamma": appraisal.config.ope.gamma,
        "mode": appraisal.config.mode,
        "estimates": {_name(arm): _interval(arm.return_) | {"support": _known(arm.support)} for arm in appraisal.arms},
        "estimated_better_than_baseline": appraisal.improvement.holds,
        "labels_estimated_to_have_done_it": appraisal.credit.holds,
        "verdicts": [appraisal.improvement.reason, appraisal.credit.reason],
        "chosen": {
            "step": trial.winner.step,
            "beta": trial.winner.beta,
            "consistency": float(trial.consistency.likelihoods[trial.consistency.best]),
            "agreement": float(trial.consistency.agreements[trial.consistency.best]),
            "baseline_consistency": trial.consistency.baseline,
        },
        "accepted": appraisal.accepted,
        "reason": decision_of(appraisal),
        "warnings": list(appraisal.warnings),
        "n_labels": len(appraisal.material.labels),
        "policy_id": appraisal.policy_id,
        "candidate_id": appraisal.candidate.policy_id,
        "comparison_id": appraisal.comparison_id,
        "dataset_id": appraisal.dataset_id,
        "baseline_origin": appraisal.origin.origin,
    }


def _row(arm: ArmEstimate) -> dict[str, object]:
    return {
        "arm": _name(arm),
        "labels": arm.labels,
        "estimated better": f"{arm.better} of {arm.draws}" if arm.draws else "",
        "estimated return [95%]": str(arm.return_),
        "same action": "" if isnan(arm.support) else f"{arm.support:.0%}",
    }


def _name(arm: ArmEstimate) -> str:
    return "refined" if arm.arm == "labels" else arm.arm


def _interval(interval: Interval) -> dict[str, float | None]:
    return {"return": interval.mean, "low": interval.low, "high": interval.high}


def _known(value: float) -> float | None:
    return None if isnan(value) else value


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
