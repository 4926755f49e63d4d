"""`refine` without a simulator: candidates chosen by held-out labels and judged by an estimate.

Nothing is played, so nothing is accepted: unless the user asks otherwise, the baseline stays in force. The statistics
are in `refine/evaluation/ope.py`, tables and sentences in `present.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import Field

from refine.config import RefineConfig, Snapshot
from refine.evaluation import (
    Estimate,
    Interval,
    OpeConfig,
    Verdict,
    check_episodes,
    collect_refits,
    estimated_interval,
    judge_estimated_improvement,
    judge_estimated_labels,
    refit,
)
from refine.policies import MlpPolicy, Mode
from storage.datasets import read_manifest
from storage.errors import BadInput
from storage.schema import Array, Frozen, content_id
from storage.store import Store

from ..policies import Baseline, record_baseline
from ..runtime import Report, parallel_map, silent
from ..simulation import Named
from .arms import PLACEBOS, ArmDraw, Material, labels_of, list_draws, read_once, tell_trained, train_draws
from .evaluator import Candidate
from .lineage import arm_row, insert_all, refinement_id, save_refined, training_columns, verdict_columns
from .refinement import gather_material

if TYPE_CHECKING:
    from refine.evaluation import Consistency


def estimate_refinement(
    store: Store,
    dataset_id: str,
    config: EstimateConfig,
    *,
    run_ids: Sequence[str] | None = None,
    rules: bool = False,
    baseline: Named | None = None,
    also: Sequence[str] = (),
    report: Report = silent,
) -> EstimatedRefinement:
    """Refine with a dataset's annotations and the controls, and estimate every arm from the logged steps.

    Args:
        store: the store.
        dataset_id: any dataset; no environment is needed.
        config: refinement, estimate and processes.
        run_ids: annotation runs whose labels count; all when None.
        rules: imitate their corrective rules instead, at all steps that they match.
        baseline: another baseline than the dataset's policy, see `policies.load_policy`.
        also: further datasets whose steps and labels count, of the same environment.
        report: shown the progress.

    Raises:
        Prerequisite: if the dataset has no annotations.
        BadInput: if it has too few episodes or labels, or actions are to be drawn from a policy without a distribution.
    """
    if config.refine.robust:
        raise BadInput("Readings of the labels can only be compared by playing.", "Leave --robust out.")
    found = gather_material(
        store, read_manifest(store, dataset_id), config.refine, run_ids, rules=rules, also=also, baseline=baseline
    )
    material, steps = found.material, read_once(store, found.material.dataset_ids)
    check_episodes(steps)
    if config.mode == "sampled" and not material.baseline.is_stochastic:
        raise BadInput(
            f"The baseline has {material.baseline.output_kind} without a distribution to draw actions from.",
            "Use --gate-mode greedy.",
        )
    draws = list_draws(config.placebo_draws, labels=material.labels)
    chosen = train_arms(material, draws, config, report)
    policies = [material.baseline, *(kept.snapshots[kept.consistency.best].policy for kept in chosen)]
    estimates = collect_refits(steps, policies, _refit_all(material, policies, config, report))
    trials = [
        TrialEstimate(draw, *kept, estimate, judge_estimated_improvement(estimate, estimates[0]))
        for draw, kept, estimate in zip(draws, chosen, estimates[1:], strict=True)
    ]
    found_arms = {trial.draw.arm for trial in trials}
    placebos = {
        arm: [trial.estimate for trial in trials if trial.draw.arm == arm] for arm in PLACEBOS if arm in found_arms
    }
    estimated = EstimatedRefinement(
        comparison_id=content_id("c_", [material.content_id, config.model_copy(update={"workers": None})]),
        dataset_id=dataset_id,
        config=config,
        material=material,
        origin=found.baseline,
        run_ids=found.source.run_ids,
        baseline=estimates[0],
        arms=_pool(trials, estimates[0], len(material.labels)),
        improvement=trials[0].improvement,
        credit=judge_estimated_labels(trials[0].estimate, placebos),
        warnings=found.warnings,
        trials=trials,
    )
    _record(store, estimated)
    return estimated


class _Kept(NamedTuple):
    """A draw's candidates with their scores on held-out labels."""

    snapshots: list[Snapshot]
    consistency: Consistency


def train_arms(material: Material, draws: Sequence[ArmDraw], config: EstimateConfig, report: Report) -> list[_Kept]:
    """Train every draw on all labels, and once per fold to choose among its candidates."""
    work, store = partial(train_and_score, material, config.folds), Store.locate(material.store_root)
    kept: list[_Kept] = []
    with closing(parallel_map(work, draws, config.workers)) as arriving:
        tell_trained(store, report, 0, len(draws))
        for snapshots, consistency in arriving:
            kept.append(_Kept(snapshots, consistency))
            tell_trained(store, report, len(kept), len(draws))
    return kept


def train_and_score(material: Material, folds: int, draw: ArmDraw) -> tuple[list[Snapshot], Consistency]:
    """Candidates of one draw, and how well each predicts labels that its training has not seen."""
    from refine.evaluation import out_of_fold  # d3rlpy and torch take seconds, and only training needs them

    steps = read_once(Store.locate(material.store_root), material.dataset_ids)
    labels = labels_of(material, draw, steps)
    consistency = out_of_fold(steps, labels, material.baseline, material.config, folds=folds)
    return train_draws(material, [draw])[0], consistency


def _refit_all(
    material: Material, policies: Sequence[MlpPolicy], config: EstimateConfig, report: Report
) -> list[Array]:
    work = partial(refit_number, material, policies, config.ope, config.mode)
    refits: list[Array] = []
    with closing(parallel_map(work, range(config.ope.resamples), config.workers)) as arriving:
        for values in arriving:
            refits.append(values)
            report("estimate", len(refits), config.ope.resamples)
    return refits


def refit_number(
    material: Material, policies: Sequence[MlpPolicy], config: OpeConfig, mode: Mode, number: int
) -> Array:
    """One refit of all policies, in any process."""
    steps = read_once(Store.locate(material.store_root), material.dataset_ids)
    return refit(steps, policies, config, mode, number)


def _pool(trials: Sequence[TrialEstimate], baseline: Estimate, labels: int) -> list[ArmEstimate]:
    """The baseline and every arm; the interval of an arm is over refits of the mean over its draws."""
    arms = [ArmEstimate("baseline", 0, 0, 0, baseline.interval, baseline.support)]
    for arm in dict.fromkeys(trial.draw.arm for trial in trials):
        own = [trial for trial in trials if trial.draw.arm == arm]
        value = float(np.mean([trial.estimate.value for trial in own]))
        refits = np.mean([trial.estimate.refits for trial in own], axis=0)
        arms.append(
            ArmEstimate(
                arm=arm,
                labels=0 if arm == "no_labels" else labels,
                draws=len(own),
                better=sum(trial.improvement.holds for trial in own),
                return_=estimated_interval(value, refits, baseline.episodes),
                support=float(np.mean([trial.estimate.support for trial in own])),
            )
        )
    return arms


class EstimateConfig(Frozen):
    """One refinement with its controls, judged by an estimate."""

    refine: RefineConfig = Field(default_factory=RefineConfig)
    ope: OpeConfig = Field(default_factory=OpeConfig)
    folds: int = Field(default=5, ge=2, description="parts of the labelled episodes; each is held out once")
    mode: Mode = Field(default="greedy", description="how policies act in the estimate")
    placebo_draws: int = Field(default=3, ge=2, description="draws of each arm of chance")
    accept: bool = Field(default=False, description="put the policy in force on the estimate alone")
    workers: int | None = Field(
        default=None, ge=1, description="processes; null: one per core; does not change the result"
    )


@dataclass(frozen=True)
class TrialEstimate:
    """One draw of one arm: its candidates, how they predict held-out labels, and what the chosen one is worth."""

    draw: ArmDraw
    snapshots: Sequence[Snapshot]
    consistency: Consistency
    estimate: Estimate
    improvement: Verdict

    @property
    def winner(self) -> Snapshot:
        """The chosen candidate."""
        return self.snapshots[self.consistency.best]

    @property
    def candidate(self) -> Candidate:
        """The chosen candidate, as it would be played."""
        return Candidate.of(self.winner.policy, "refined")


@dataclass(frozen=True)
class ArmEstimate:
    """One row of the table: an arm, its draws pooled."""

    arm: str
    labels: int
    draws: int
    better: int  # draws estimated better than the baseline
    return_: Interval  # discounted
    support: float  # share of logged steps at which it would take the logged action; nan when continuous


@dataclass(frozen=True)
class EstimatedRefinement:
    """The result; `improvement` and `credit` are claims about estimates, not about played episodes."""

    comparison_id: str
    dataset_id: str
    config: EstimateConfig
    material: Material
    origin: Baseline
    run_ids: Sequence[str]
    baseline: Estimate
    arms: Sequence[ArmEstimate]
    improvement: Verdict
    credit: Verdict
    warnings: tuple[str, ...]
    trials: Sequence[TrialEstimate] = field(repr=False)  # the annotator's labels come first

    @property
    def method(self) -> str:
        """How returns are estimated: fitted Q evaluation."""
        return "fqe"

    @property
    def candidate(self) -> Candidate:
        """The refined policy, which the store keeps whatever its estimate."""
        return self.trials[0].candidate

    @property
    def accepted(self) -> bool:
        """Whether it replaces the baseline: only if the user asked for that on an estimate alone."""
        return self.config.accept and self.improvement.holds

    @property
    def reason(self) -> str:
        """The decision and its basis, as one sentence."""
        if self.accepted:
            return "put in force on an estimate alone, as was asked for; nothing was played"
        if self.improvement.holds:
            return "not put in force: an estimate alone accepts no policy; nothing was played"
        return "not put in force, and not estimated better; nothing was played"

    @property
    def policy_id(self) -> str:
        """The id of the policy in force."""
        return self.candidate.policy_id if self.accepted else self.baseline_id

    @property
    def baseline_id(self) -> str:
        """The id of the policy that every arm started from."""
        return self.material.baseline_id or Candidate.of(self.material.baseline, "baseline").policy_id


def _record(store: Store, estimated: EstimatedRefinement) -> None:
    """Write the baseline, the refined policy and every arm's estimate into the store.

    Such a comparison has `basis = 'estimated'` and rows in `estimates`, never in `evaluations`.
    """
    material, comparison_id = estimated.material, estimated.comparison_id
    home: dict[str, Any] = {
        "env_id": read_manifest(store, material.dataset_id).env_id,
        "dataset_id": material.dataset_id,
    }
    baseline_id = record_baseline(store, material.baseline, **home, origin=estimated.origin.origin)
    about = {"comparison_id": comparison_id, "baseline_id": baseline_id}
    _save_candidate(store, estimated, {**home, "baseline_id": baseline_id})
    row = {
        **home,
        **about,
        **verdict_columns(estimated.improvement, estimated.credit),
        "policy_id": estimated.policy_id,
        "recipe": material.config.mode,
        "accepted": estimated.accepted,
        "reason": estimated.reason,
        "basis": "estimated",
    }
    insert_all(
        store,
        comparisons=[row],
        arms=[_arm_row(estimated, arm) | {"comparison_id": comparison_id} for arm in estimated.arms],
        estimates=_estimate_rows(estimated, baseline_id),
        refinements=[_refinement_row(estimated, trial, about) for trial in estimated.trials],
        candidates=[row for trial in estimated.trials for row in _candidate_rows(comparison_id, trial)],
    )


def _save_candidate(store: Store, estimated: EstimatedRefinement, home: dict[str, Any]) -> None:
    winner = estimated.trials[0].winner
    chosen = {"arm": "labels", "basis": "estimated", "step": winner.step, "beta": winner.beta}
    about = {**home, "run_ids": list(estimated.run_ids)}
    save_refined(store, estimated.candidate, about, {**chosen, **_settings(estimated)})


def _settings(estimated: EstimatedRefinement) -> dict[str, Any]:
    config = estimated.config
    gate = {"mode": config.mode, "placebo_draws": config.placebo_draws}
    estimate = {"folds": config.folds, "accept": config.accept, **config.ope.model_dump(mode="json")}
    return {"refine": estimated.material.config.model_dump(mode="json"), "gate": gate, "estimate": estimate}


def _arm_row(estimated: EstimatedRefinement, arm: ArmEstimate) -> dict[str, Any]:
    accepted = int(estimated.accepted and arm.arm == "labels")
    return arm_row(arm.arm, estimated.config.mode, arm.labels, arm.draws, accepted, arm.return_)


def _estimate_rows(estimated: EstimatedRefinement, baseline_id: str) -> list[dict[str, Any]]:
    chosen = [(trial.draw.name, trial.candidate.policy_id) for trial in estimated.trials]
    named = [("baseline", baseline_id), *chosen]
    found = [estimated.baseline, *(trial.estimate for trial in estimated.trials)]
    return [
        {
            "estimate_id": content_id("s_", [estimated.comparison_id, name]),
            "comparison_id": estimated.comparison_id,
            "policy_id": policy_id,
            "dataset_id": estimated.dataset_id,
            "method": estimated.method,
            "mode": estimated.config.mode,
            "gamma": estimated.config.ope.gamma,
            "episodes": estimate.episodes,
            "refits": estimate.refits.tolist(),
            "return_": estimate.value,
            "low": estimate.interval.low,
            "high": estimate.interval.high,
            "support": None if isnan(estimate.support) else estimate.support,
        }
        for (name, policy_id), estimate in zip(named, found, strict=True)
    ]


def _refinement_row(estimated: EstimatedRefinement, trial: TrialEstimate, about: Mapping[str, str]) -> dict[str, Any]:
    own = trial.draw.arm == "labels"
    accepted = own and estimated.accepted
    config = {**_settings(estimated), "basis": "estimated", "draw": trial.draw.number}
    return {
        **training_columns(estimated.material, trial.draw, about, estimated.run_ids),
        "config": config | ({"warnings": list(estimated.warnings)} if own and estimated.warnings else {}),
        "accepted": accepted,
        "policy_id": trial.candidate.policy_id if accepted else estimated.baseline_id,
        "reason": estimated.reason if own else trial.improvement.reason,
    }


def _candidate_rows(comparison_id: str, trial: TrialEstimate) -> list[dict[str, Any]]:
    return [
        {
            "refinement_id": refinement_id(comparison_id, trial.draw),
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
