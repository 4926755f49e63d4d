"""Results of comparisons, estimates, ablations and rounds as table rows, sentences and JSON."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple

from refine.evaluation import Interval

if TYPE_CHECKING:
    from .ablation import Ablation, PooledArm, PooledVerdict
    from .comparison import ArmResult, Comparison
    from .estimation import ArmEstimate, EstimatedRefinement
    from .feedback import Version
    from .refinement import Outcome
    from .relabelling import Relabelled, RelabelRound
    from .rounds import Round, Series

_WHOLE_FROM = 1000  # such returns are shown without decimals, so that the table fits into 80 columns


class Overview(NamedTuple):
    """A result as a table, sentences and JSON."""

    rows: list[dict[str, object]]  # of one table
    sentences: list[str]
    values: dict[str, Any]  # for JSON


def show_comparison(outcome: Outcome) -> Overview:
    """Every arm's labels, accepted draws and returns on the report seeds; the gate's decision and the two verdicts.

    In the values `refined` is the arm with the annotator's labels. Warnings come last.
    """
    comparison = outcome.comparison
    arms = {arm_title(arm.arm): arm for arm in comparison.arms}
    sentences = [
        f"gate: {comparison.decision.reason}",
        *_competitors(comparison),
        f"better than the baseline? {comparison.improvement.answer}: {comparison.improvement.reason}",
        f"did the labels do it? {comparison.credit.answer}: {comparison.credit.reason}",
        f"in force: {comparison.policy_id}{_whose(comparison)}",
        *(f"warning: {warning}" for warning in outcome.warnings),
    ]
    values = {
        **{name: plain(arm.greedy) for name, arm in arms.items()},
        "sampled": {name: plain(arm.sampled) for name, arm in arms.items() if arm.sampled is not None},
        "accepted": comparison.accepted,
        "reason": comparison.promoted.decision.reason,
        "in_force": arm_title(comparison.arm or "baseline"),
        "better_than_baseline": comparison.improvement.holds,
        "labels_did_it": comparison.credit.holds,
        "credit": comparison.credit.answer,
        "leads": {name: plain(lead) for name, lead in comparison.credit.differences.items()},
        "verdicts": [comparison.improvement.reason, comparison.credit.reason],
        "warnings": list(outcome.warnings),
        "n_labels": outcome.n_labels,
        "policy_id": comparison.policy_id,
        "comparison_id": outcome.comparison_id,
        "dataset_id": outcome.dataset_id,
        "baseline_origin": outcome.baseline.origin,
    }
    return Overview([arm_row(arm) for arm in comparison.arms], sentences, values)


def _competitors(comparison: Comparison) -> list[str]:
    """The gate's decisions about the other arms that could have been put in force."""
    others = [trial for trial in comparison.trials[1:] if trial.draw.arm in comparison.competing]
    return [f"gate, {trial.draw.arm}: {trial.decision.reason}" for trial in others]


def _whose(comparison: Comparison) -> str:
    """Which arm's policy is in force, where several compete."""
    if len(comparison.competing) == 1:
        return ""
    others = ", ".join(arm_title(arm) for arm in comparison.competing)
    return f" ({arm_title(comparison.arm or 'baseline')}; {others} compete)"


def show_estimate(estimated: EstimatedRefinement) -> Overview:
    """The estimate of each arm and its basis; every form says that it is an estimate."""
    from refine.evaluation import CAVEAT

    trial = estimated.trials[0]
    consistency, winner = trial.consistency, trial.winner
    sentences = [
        f"ESTIMATE: {CAVEAT}",
        f"return: discounted by {estimated.config.ope.gamma:g} per step, {estimated.config.mode};"
        " same action: share of logged steps at which the policy would do what was logged",
        f"chosen: {winner.name}, which predicts held-out labels best: log-likelihood"
        f" {consistency.likelihoods[consistency.best]:.2f} (the baseline: {consistency.baseline:.2f})",
        f"estimated better than the baseline? {estimated.improvement.answer}: {estimated.improvement.reason}",
        f"did the labels do it, as far as estimates go? {estimated.credit.answer}: {estimated.credit.reason}",
        estimated.reason,
        f"in force: {estimated.policy_id}; kept for a trial: {estimated.candidate.policy_id}",
        *(f"warning: {warning}" for warning in estimated.warnings),
    ]
    values = {
        "basis": "estimated",
        "method": estimated.method,
        "caveat": CAVEAT,
        "gamma": estimated.config.ope.gamma,
        "mode": estimated.config.mode,
        "estimates": {arm_title(arm.arm): _plain_estimate(arm) for arm in estimated.arms},
        "estimated_better_than_baseline": estimated.improvement.holds,
        "labels_estimated_to_have_done_it": estimated.credit.holds,
        "verdicts": [estimated.improvement.reason, estimated.credit.reason],
        "chosen": {
            "step": winner.step,
            "beta": winner.beta,
            "consistency": float(consistency.likelihoods[consistency.best]),
            "agreement": float(consistency.agreements[consistency.best]),
            "baseline_consistency": consistency.baseline,
        },
        "accepted": estimated.accepted,
        "reason": estimated.reason,
        "warnings": list(estimated.warnings),
        "n_labels": len(estimated.material.labels),
        "policy_id": estimated.policy_id,
        "candidate_id": estimated.candidate.policy_id,
        "comparison_id": estimated.comparison_id,
        "dataset_id": estimated.dataset_id,
        "baseline_origin": estimated.origin.origin,
    }
    return Overview([_estimate_row(arm) for arm in estimated.arms], sentences, values)


def show_ablation(ablation: Ablation) -> Overview:
    """Every mode and arm: accepted trainings and returns; how often the verdicts hold, and the labels' lead."""
    first = next(iter(ablation.outcomes.values()))
    values = {
        "ablation_id": ablation.ablation_id,
        "dataset_id": first.dataset_id,
        "n_labels": first.n_labels,
        "baseline_origin": first.baseline.origin,
        "arms": [_plain_pooled(arm) for arm in ablation.arms],
        "verdicts": [_plain_verdict(verdict) for verdict in ablation.verdicts],
        "comparisons": [
            {"mode": mode, "seed": seed, "comparison_id": made.comparison_id, "policy_id": made.comparison.policy_id}
            for (mode, seed), made in ablation.outcomes.items()
        ],
    }
    rows = [{"mode": arm.recipe, **arm_row(arm)} for arm in ablation.arms]
    for row in rows:
        del row["labels"]  # the same for all modes, and in the title
    sentences = [line for verdict in ablation.verdicts for line in _verdict_sentences(verdict)]
    return Overview(rows, [*sentences, f"ablation: {ablation.ablation_id}"], values)


def show_rounds(series: Series) -> Overview:
    """Every round's returns before and after on the report seeds, and why the rounds ended."""
    in_force = series.best.outcome.comparison.policy_id if series.best else None
    values = {
        "rounds": [
            {
                "round": made.number,
                "baseline_id": made.outcome.baseline_id,
                "gain": plain(made.gain),
                "run_ids": list(made.run_ids),
                **({} if made.version is None else {"list": _plain_version(made.version)}),
                **show_comparison(made.outcome).values,
            }
            for made in series.rounds
        ],
        "ended": series.ended,
        "waits": series.waits,
        "policy_id": in_force,
    }
    sentences = [series.ended, *_sentences_of_lists(series), *([f"in force: {in_force}"] if in_force else [])]
    return Overview([_round_row(made) for made in series.rounds], sentences, values)


def show_relabelling(made: Relabelled) -> Overview:
    """Every round's datasets, labels and returns on the report seeds, and the round that counts.

    Environment steps are those so far, of the datasets and of the gate of what learned from the rules.
    """
    best = made.best
    why = "the highest return on the selection seeds" if best.accepted else "none was accepted"
    values = {
        "relabelling": [
            {
                "round": each.number,
                "dataset_ids": list(each.dataset_ids),
                "environment_steps": each.environment_steps,
                "selection": each.selection,
                **show_comparison(each.outcome).values,
            }
            for each in made.rounds
        ],
        "round": best.number,
    }
    sentence = f"round {best.number} counts: {why}" + (" of those accepted" if best.accepted else "")
    return Overview([_relabelled_row(each) for each in made.rounds], [sentence], values)


def arm_row(arm: ArmResult) -> dict[str, object]:
    """One arm of a comparison, as a row of its table."""
    return {
        "arm": arm_title(arm.arm),
        "labels": arm.labels,
        "accepted": f"{arm.accepted} of {arm.draws}" if arm.is_tested else f"{arm.draws} draws" if arm.draws else "",
        "greedy [95%]": short(arm.greedy),
        "sampled [95%]": short(arm.sampled) if arm.sampled else "",
    }


def arm_title(arm: str) -> str:
    """An arm's name in tables."""
    return "refined" if arm == "labels" else arm


def short(interval: Interval) -> str:
    """As the gate writes it, without decimals if the numbers are large."""
    if max(abs(interval.low), abs(interval.high)) < _WHOLE_FROM:
        return str(interval)
    return f"{interval.mean:.0f} [{interval.low:.0f}, {interval.high:.0f}]"


def plain(interval: Interval) -> dict[str, float]:
    """An interval for JSON."""
    return {"return": interval.mean, "low": interval.low, "high": interval.high}


def _estimate_row(arm: ArmEstimate) -> dict[str, object]:
    return {
        "arm": arm_title(arm.arm),
        "labels": arm.labels,
        "estimated better": f"{arm.better} of {arm.draws}" if arm.draws else "",
        "estimated return [95%]": str(arm.return_),
        "same action": "" if isnan(arm.support) else f"{arm.support:.0%}",
    }


def _plain_estimate(arm: ArmEstimate) -> dict[str, float | None]:
    return {**plain(arm.return_), "support": None if isnan(arm.support) else arm.support}


def _verdict_sentences(verdict: PooledVerdict) -> list[str]:
    leads = "; ".join(f"{arm} {short(lead)}" for arm, lead in verdict.leads.items())
    return [
        f"{verdict.recipe}: of {verdict.seeds} trainings accepted {verdict.accepted}, better than the baseline"
        f" {verdict.better}, credited to the labels {verdict.credit}, not shown {verdict.not_shown}",
        f"{verdict.recipe}: the labels lead {leads}",
    ]


def _plain_pooled(arm: PooledArm) -> dict[str, Any]:
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
        "not_shown": verdict.not_shown,
        "leads": {arm: plain(lead) for arm, lead in verdict.leads.items()},
    }


def _round_row(made: Round) -> dict[str, object]:
    arms = {arm.arm: arm for arm in made.outcome.comparison.arms}
    return {
        "round": made.number,
        "labels": made.outcome.n_labels,
        "accepted": "yes" if made.accepted else "no",
        "before": short(arms["baseline"].greedy),
        "after": short(arms["labels"].greedy),
        "gain [95%]": short(made.gain),
        **({} if made.version is None else {"played": str(made.version.played), "imitated": str(made.version.refined)}),
    }


def _relabelled_row(made: RelabelRound) -> dict[str, object]:
    (refined,) = (arm for arm in made.outcome.comparison.arms if arm.arm == "labels")
    steps = made.environment_steps
    return {
        "round": made.number,
        "datasets": len(made.dataset_ids),
        "labels": made.outcome.n_labels,
        "greedy [95%]": short(refined.greedy),
        "sampled [95%]": short(refined.sampled) if refined.sampled else "",
        "accepted": "yes" if made.accepted else "no",
        "steps": "" if steps is None else f"{steps:,}",
    }


def _plain_version(version: Version) -> dict[str, Any]:
    own = {"list_id": version.list_id, "parent_id": version.parent_id, "environment_steps": version.environment_steps}
    return own | {name: vars(getattr(version, name)) for name in ("played", "refined", "baseline")}


def _sentences_of_lists(series: Series) -> list[str]:
    """Which version of the list counts, and what the feedback has cost."""
    versions = [made.version for made in series.rounds if made.version is not None]
    if series.best is None or series.best.version is None:
        return []
    steps = sum(version.environment_steps for version in versions)
    best = series.best.version
    return [
        f"best list: {best.list_id}, of round {series.best.number}: {best.played} played, {best.refined} imitated",
        f"environment steps of the feedback: {steps:,}",
    ]
