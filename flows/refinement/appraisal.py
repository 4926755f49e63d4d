"""An appraisal's configuration and its result: arms, estimates, and two claims about estimates.

Making one is in `estimation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import Field

from refine.config import RefineConfig, Snapshot
from refine.evaluation import Estimate, Interval, OpeConfig, Verdict
from refine.policies import Mode
from storage.schema import Frozen

from ..policies import Baseline
from .arms import ArmDraw, Material
from .evaluator import Candidate

if TYPE_CHECKING:
    from refine.evaluation import Consistency


class AppraiseConfig(Frozen):
    """One refinement with its controls, judged by an estimate."""

    refine: RefineConfig = Field(default_factory=RefineConfig)
    ope: OpeConfig = Field(default_factory=OpeConfig)
    folds: int = Field(default=5, ge=2, description="parts of the labelled episodes; each is held out once")
    mode: Mode = Field(default="greedy", description="how policies act in the estimate")
    placebo_draws: int = Field(default=3, ge=2, description="draws of the shuffled and of the random arm")
    accept: bool = Field(default=False, description="put the policy in force on the estimate alone")
    workers: int | None = Field(default=None, ge=1, description="processes; one per core when null; never the result")


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
class Appraisal:
    """The result; `improvement` and `credit` are claims about estimates, not about played episodes."""

    comparison_id: str
    dataset_id: str
    config: AppraiseConfig
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
        return Candidate.of(self.trials[0].winner.policy, "refined")

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
