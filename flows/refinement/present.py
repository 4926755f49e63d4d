"""A judged refinement in the forms in which it is told: table rows, sentences, JSON."""

from __future__ import annotations

from typing import Any

from refine.evaluation import Interval

from .comparison import ArmResult
from .refinement import Outcome

_WHOLE_FROM = 1000  # returns of this size are told without decimals, so that the table keeps to 80 columns


def comparison_rows(outcome: Outcome) -> list[dict[str, object]]:
    """One row per arm: how many labels, how many of its draws the gate accepted, and returns on the report seeds."""
    return [_row(arm) for arm in outcome.comparison.arms]


def comparison_sentences(outcome: Outcome) -> list[str]:
    """The gate's decision and the two verdicts, which are different claims; warnings come last."""
    comparison = outcome.comparison
    return [
        f"gate: {comparison.decision.reason}",
        f"better than the baseline? {_yes(comparison.improvement.holds)}: {comparison.improvement.reason}",
        f"did the labels do it? {_yes(comparison.credit.holds)}: {comparison.credit.reason}",
        f"in force: {comparison.policy_id}",
        *(f"warning: {warning}" for warning in outcome.warnings),
    ]


def comparison_json(outcome: Outcome) -> dict[str, Any]:
    """Everything above as plain values; `refined` is the arm with the annotator's labels."""
    comparison = outcome.comparison
    arms = {arm_title(arm.arm): arm for arm in comparison.arms}
    return {
        **{name: plain(arm.greedy) for name, arm in arms.items()},
        "sampled": {name: plain(arm.sampled) for name, arm in arms.items() if arm.sampled is not None},
        "accepted": comparison.decision.accepted,
        "reason": comparison.decision.reason,
        "better_than_baseline": comparison.improvement.holds,
        "labels_did_it": comparison.credit.holds,
        "verdicts": [comparison.improvement.reason, comparison.credit.reason],
        "warnings": list(outcome.warnings),
        "n_labels": outcome.n_labels,
        "policy_id": comparison.policy_id,
        "comparison_id": outcome.comparison_id,
        "dataset_id": outcome.dataset_id,
        "baseline_origin": outcome.baseline.origin,
    }


def _row(arm: ArmResult) -> dict[str, object]:
    return {
        "arm": arm_title(arm.arm),
        "labels": arm.labels,
        "accepted": f"{arm.accepted} of {arm.draws}" if arm.draws else "",
        "greedy [95%]": short(arm.greedy),
        "sampled [95%]": short(arm.sampled) if arm.sampled else "",
    }


def arm_title(arm: str) -> str:
    """How tables call an arm."""
    return "refined" if arm == "labels" else arm


def short(interval: Interval) -> str:
    """As the gate writes it, without decimals where the numbers are large."""
    if max(abs(interval.low), abs(interval.high)) < _WHOLE_FROM:
        return str(interval)
    return f"{interval.mean:.0f} [{interval.low:.0f}, {interval.high:.0f}]"


def plain(interval: Interval) -> dict[str, float]:
    """As JSON has it."""
    return {"return": interval.mean, "low": interval.low, "high": interval.high}


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
