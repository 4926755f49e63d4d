"""What a refinement is asked to do and what comes of it. Importing this loads no learner; `train.py` does the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from storage.errors import BadInput
from storage.schema import Frozen, Space

from .policy import MlpPolicy

TrainingMode = Literal["A", "R", "RA"]
MAXIMUM_STEPS = 10_000
"""d3rlpy averages an epoch's losses anew every ten steps, which grows with the square of the steps."""
DISCRETE_DEFAULTS = {"betas": (0.1, 0.3), "snapshots": (30, 60, 100, 160, 300)}
CONTINUOUS_DEFAULTS = {"betas": (0.03, 0.1), "snapshots": (100, 200, 400, 700, 1000)}


class RefineConfig(Frozen):
    """One refinement: for each beta one short training from the baseline, with snapshots on the way.

    Few steps and a pull towards the baseline are the whole regularisation: longer training memorises wrong labels,
    beta 1 freezes the policy, and beta 0 is a lottery.
    """

    mode: TrainingMode = Field(default="A", description="A: suggested actions; R: relabelled rewards; RA: both")
    betas: tuple[float, ...] | None = Field(
        default=None,
        min_length=1,
        description="weights of the distance to the baseline, one training each; null: 0.1 and 0.3, and 0.03 and 0.1"
        " for continuous actions",
    )
    snapshots: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="training steps after which a candidate is kept; null: 30 to 300, and 100 to 1000 for continuous"
        " actions, whose squared error learns more slowly",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam, for the policy and for the critic")
    batch_size: int = Field(default=320, ge=2, description="states per step, annotated ones included")
    annotated_per_batch: int = Field(default=64, ge=1, description="annotated states per step, drawn with replacement")
    seed: int = Field(default=0, ge=0, description="of sampling and initialisation; equal seeds, equal snapshots")
    reward_weight: float = Field(
        default=1.0, ge=0, description="R: an implicit reward of 1 in units of the environment's reward"
    )
    shaping: Literal["additive", "potential"] = Field(
        default="additive",
        description="R: add implicit rewards, or their potential-based form, which keeps the optimum",
    )
    gamma: float = Field(default=0.99, gt=0, le=1, description="R: discount per step")
    critic_steps: int = Field(default=1000, ge=0, description="R: steps of the critic before the policy moves")
    improvement: float = Field(default=0.1, ge=0, description="R: weight of what the critic says about an action")

    def completed(self, action_space: Space) -> RefineConfig:
        """The same with the lists that were left open filled in for a kind of actions."""
        defaults = DISCRETE_DEFAULTS if action_space.is_discrete else CONTINUOUS_DEFAULTS
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return self.model_copy(update=missing)

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        betas, snapshots = self.betas or (), self.snapshots or ()
        if any(beta < 0 for beta in betas):
            raise BadInput(f"betas are {betas}; none may be negative.")
        if list(snapshots) != sorted(set(snapshots)) or min(snapshots, default=1) < 1:
            raise BadInput(f"snapshots are {snapshots}; ascending step counts from 1 are expected.")
        if max(snapshots, default=1) > MAXIMUM_STEPS:
            raise BadInput(f"The last snapshot is at step {max(snapshots)}; at most {MAXIMUM_STEPS} are allowed.")
        if self.annotated_per_batch >= self.batch_size:
            raise BadInput(
                f"{self.annotated_per_batch} of {self.batch_size} states per step are annotated ones;"
                " some must be left for the others."
            )
        return self


@dataclass(frozen=True)
class Snapshot:
    """A candidate: the policy after some steps with some beta."""

    policy: MlpPolicy
    step: int
    beta: float

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"beta {self.beta:g}, step {self.step}"
