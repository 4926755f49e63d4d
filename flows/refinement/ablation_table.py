"""An ablation in the forms in which it is told: table rows, sentences, JSON."""

from __future__ import annotations

from typing import Any

from .ablation import Ablation, PooledArm, PooledVerdict
from .present import arm_title, plain, short


def ablation_rows(ablation: Ablation) -> list[dict[str, object]]:
    """One row per mode and arm: trainings that the gate accepted, and returns on the report seeds."""
    return [_row(arm) for arm in ablation.arms]


def ablation_sentences(ablation: Ablation) -> list[str]:
    """For each mode how often the verdicts hold, and how far the labels lead each arm."""
    return [line for verdict in ablation.verdicts for line in _tell(verdict)]


def ablation_json(ablation: Ablation) -> dict[str, Any]:
    """Everything above as plain values; `refined` is the arm with the annotator's labels."""
    first = next(iter(ablation.outcomes.values()))
    return {
        "ablation_id": ablation.ablation_id,
        "dataset_id": first.dataset_id,
        "n_labels": first.n_labels,
        "baseline_origin": first.baseline.origin,
        "arms": [_plain_arm(arm) for arm in ablation.arms],
        "verdicts": [_plain_verdict(verdict) for verdict in ablation.verdicts],
        "comparisons": [
            {"mode": mode, "seed": seed, "comparison_id": made.comparison_id, "policy_id": made.comparison.policy_id}
            for (mode, seed), made in ablation.outcomes.items()
        ],
    }


def _row(arm: PooledArm) -> dict[str, object]:
    return {
        "mode": arm.recipe,
        "arm": arm_title(arm.arm),
        "accepted": f"{arm.accepted} of {arm.draws}" if arm.draws else "",
        "greedy [95%]": short(arm.greedy),
        "sampled [95%]": short(arm.sampled) if arm.sampled else "",
    }


def _tell(verdict: PooledVerdict) -> list[str]:
    leads = "; ".join(f"{arm} {short(lead)}" for arm, lead in verdict.leads.items())
    return [
        f"{verdict.recipe}: of {verdict.seeds} trainings accepted {verdict.accepted}, better than the baseline"
        f" {verdict.better}, credited to the labels {verdict.credit}",
        f"{verdict.recipe}: the labels lead {leads}",
    ]


def _plain_arm(arm: PooledArm) -> dict[str, Any]:
    return {
        "mode": arm.recipe,
        "arm": arm_title(arm.arm),
        "labels": arm.labels,
        "trainings": arm.draws,
        "accepted": arm.accepted,
        "greedy": plain(arm.greedy),
        "sampled": plain(arm.sampled) if arm.sampled else None,
    }


def _plain_verdict(verdict: PooledVerdict) -> dict[str, Any]:
    return {
        "mode": verdict.recipe,
        "seeds": verdict.seeds,
        "accepted": verdict.accepted,
        "better_than_baseline": verdict.better,
        "labels_did_it": verdict.credit,
        "leads": {arm: plain(lead) for arm, lead in verdict.leads.items()},
    }
