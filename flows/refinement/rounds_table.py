"""Rounds in the forms in which they are told: table rows, sentences, JSON."""

from __future__ import annotations

from typing import Any

from .present import comparison_json as outcome_json
from .present import short
from .rounds import Round, Series


def rounds_rows(series: Series) -> list[dict[str, object]]:
    """One row per round: the policy in force before and after it, as the report seeds have them."""
    return [_row(made) for made in series.rounds]


def rounds_sentences(series: Series) -> list[str]:
    """Why the rounds ended, and what is in force."""
    in_force = [f"in force: {series.rounds[-1].outcome.comparison.policy_id}"] if series.rounds else []
    return [series.ended, *in_force]


def rounds_json(series: Series) -> dict[str, Any]:
    """Everything above as plain values, with each round's comparison whole."""
    return {
        "rounds": [
            {
                "round": made.number,
                "baseline_id": made.outcome.baseline_id,
                "gain": {"return": made.gain.mean, "low": made.gain.low, "high": made.gain.high},
                "run_ids": list(made.run_ids),
                **outcome_json(made.outcome),
            }
            for made in series.rounds
        ],
        "ended": series.ended,
        "waits": series.waits,
        "policy_id": series.rounds[-1].outcome.comparison.policy_id if series.rounds else None,
    }


def _row(made: Round) -> dict[str, object]:
    arms = {arm.arm: arm for arm in made.outcome.comparison.arms}
    return {
        "round": made.number,
        "labels": made.outcome.n_labels,
        "accepted": "yes" if made.accepted else "no",
        "before": short(arms["baseline"].greedy),
        "after": short(arms["labels"].greedy),
        "gain [95%]": short(made.gain),
    }
