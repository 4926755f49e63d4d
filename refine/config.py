"""What a refinement is asked to do and what comes of it. Importing this loads no learner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, model_validator

from storage.errors import BadInput
from storage.schema import Frozen, Space

from .policies import MlpPolicy

Engine = Literal["fast", "reference"]
TrainingMode = Literal["A", "R", "RA"]
AlgorithmName = Literal["recipe", "bc", "dqn", "discrete_cql", "td3_plus_bc", "iql", "awac", "rebrac"]
DISCRETE_ALGORITHMS: tuple[AlgorithmName, ...] = ("recipe", "bc", "dqn", "discrete_cql")
CONTINUOUS_ALGORITHMS: tuple[AlgorithmName, ...] = ("recipe", "bc", "td3_plus_bc", "iql", "awac", "rebrac")
FAST_ALGORITHMS: tuple[AlgorithmName, ...] = ("recipe", "discrete_cql", "td3_plus_bc")
MAXIMUM_STEPS = 10_000
"""d3rlpy averages an epoch's losses anew every ten steps, which grows with the square of the steps."""
DISCRETE_DEFAULTS = {"betas": (0.1, 0.3), "snapshots": (30, 60, 100, 160, 300)}
CONTINUOUS_DEFAULTS = {"betas": (0.03, 0.1), "snapshots": (100, 200, 400, 700, 1000)}

LATE_SNAPSHOTS = (1_000, 4_000, 10_000)
"""Of the recipe in mode A where most steps have a suggestion, after those of few labels: so many suggestions are not
memorised, they are learnt; a law that is worse than a vague likeness of it still has that. There is one beta, the
smaller: few steps or none are left to stay close to the baseline at."""


class RefineConfig(Frozen):
    """One refinement: for each beta one short training from the baseline, with snapshots on the way.

    Few steps and a pull towards the baseline are the whole regularisation of sparse labels: longer training memorises
    wrong ones, beta 1 freezes the policy, and beta 0 is a lottery.
    """

    mode: TrainingMode = Field(default="A", description="A: suggested actions; R: relabelled rewards; RA: both")
    algorithm: AlgorithmName = Field(
        default="recipe",
        description="learner beside the imitation of suggestions and of the baseline. recipe: none in mode A, a critic"
        " of the policy in R and RA; the others: an algorithm of d3rlpy with its own loss on logged transitions",
    )
    engine: Engine = Field(
        default="fast",
        description="fast: train without d3rlpy where `is_fast` allows it; reference: train everything with d3rlpy",
    )
    betas: tuple[float, ...] | None = Field(
        default=None,
        min_length=1,
        description="weights of the distance to the baseline, one training each; null: 0.1 and 0.3, and 0.03 and 0.1"
        " for continuous actions; the smaller alone in mode A where most steps have a suggestion",
    )
    snapshots: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="training steps after which a candidate is kept; null: 30 to 300, and 100 to 1000 for continuous"
        " actions, whose squared error learns more slowly; also 1000, 4000 and 10000 in mode A where most steps"
        " have a suggestion",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam, for the policy and for the critic")
    batch_size: int = Field(default=320, ge=2, description="states per step, annotated ones included")
    annotated_per_batch: int = Field(default=64, ge=1, description="annotated states per step, drawn with replacement")
    seed: int = Field(default=0, ge=0, description="of sampling and initialisation; equal seeds, equal snapshots")
    reward_weight: float = Field(
        default=1.0,
        ge=0,
        description="R: an implicit reward of 1 in units of the environment's reward; for rules the standard deviation"
        " of their potential in units of the returns",
    )
    shaping: Literal["additive", "potential"] = Field(
        default="additive",
        description="R: add implicit rewards, or their potential-based form, which keeps the optimum",
    )
    outlier_scale: float | None = Field(
        default=None,
        gt=0,
        description="A, continuous: suggestions much farther from the policy than this share of half the action's range"
        " pull less, since they may be wrong (Welsch's loss); null: squared error, which pulls harder with distance",
    )
    robust: bool = Field(
        default=False,
        description="A, RA: add candidates from other readings of the labels, in case the annotator is wrong: without"
        " labels that other episodes contradict, without one action, with two exchanged, from half of the states",
    )
    gamma: float = Field(default=0.99, gt=0, le=1, description="R: discount per step")
    reward_cap: float | None = Field(
        default=None,
        gt=0,
        description="R: largest change of a step's reward, in units of the root mean square of the environment's"
        " rewards; null: no limit",
    )
    critic_steps: int = Field(default=1000, ge=0, description="R: steps of the critic before the policy moves")
    improvement: float = Field(
        default=0.1, ge=0, description="R: weight of the algorithm's own policy loss, which follows its critic"
    )
    agreement: bool = Field(
        default=False, description="A: whether a label counts less where annotators of the same state disagree"
    )
    support: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="A: a suggestion that the baseline finds less likely than this share of its likeliest action counts"
        " proportionally less; 0: all count",
    )
    ramp_steps: int = Field(
        default=0, ge=0, description="A: steps over which the suggestions' weight rises to 1; 0: 1 from the start"
    )

    @property
    def name(self) -> str:
        """How tables call it: the mode, and the algorithm if it is not the recipe."""
        return self.mode if self.algorithm == "recipe" else f"{self.mode} {self.algorithm}"

    @property
    def has_critic(self) -> bool:
        """Whether anything learns from rewards."""
        return self.mode != "A" or self.algorithm not in ("recipe", "bc")

    @property
    def waiting(self) -> int:
        """Steps that a critic learns before the policy moves."""
        return self.critic_steps if self.has_critic else 0

    @property
    def is_fast(self) -> bool:
        """Whether the fast engine can do it: some algorithms, with the suggestions' full pull throughout."""
        plain_loss = self.outlier_scale is None and self.ramp_steps == 0
        return self.algorithm in FAST_ALGORITHMS and plain_loss

    @property
    def shares_batches(self) -> bool:
        """Whether trainings with labels of the same rows differ in these labels only, and can be made at once."""
        is_plain = not (self.has_critic or self.robust or self.agreement or self.support)
        return self.engine == "fast" and self.is_fast and is_plain

    def completed(self, action_space: Space, *, dense: bool = False) -> RefineConfig:
        """The same configuration with defaults for the lists that were left open.

        Args:
            action_space: its kind of actions decides.
            dense: whether most steps have a suggestion.

        Raises:
            BadInput: when the algorithm is not for them.
        """
        self.check_actions(action_space)
        defaults = DISCRETE_DEFAULTS if action_space.is_discrete else CONTINUOUS_DEFAULTS
        if dense and self.algorithm == "recipe" and self.mode == "A":
            snapshots = tuple(sorted({*defaults["snapshots"], *LATE_SNAPSHOTS}))
            defaults = {"betas": defaults["betas"][:1], "snapshots": snapshots}
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return self.model_copy(update=missing)

    def check_actions(self, action_space: Space) -> None:
        """Refuse an algorithm that is not for a kind of actions or for the mode, naming what is allowed.

        Raises:
            BadInput: when it is not.
        """
        self._refuse_rewards_without_use()  # a copy with another mode was not validated
        allowed = DISCRETE_ALGORITHMS if action_space.is_discrete else CONTINUOUS_ALGORITHMS
        if self.algorithm not in allowed:
            kind = "discrete" if action_space.is_discrete else "continuous"
            raise BadInput(
                f"The algorithm {self.algorithm} is not for {kind} actions; allowed are {', '.join(allowed)}."
            )

    def _refuse_rewards_without_use(self) -> None:
        if self.algorithm == "bc" and self.mode != "A":
            raise BadInput(
                f"The algorithm bc learns nothing from rewards, so mode {self.mode} is not for it; allowed is mode A.",
                "Use another algorithm for relabelled rewards.",
            )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_rewards_without_use()
        if self.robust and self.mode == "R":
            raise BadInput("A robust refinement reads suggestions in several ways; mode R uses none.", "Use A or RA.")
        betas, snapshots = self.betas or (), self.snapshots or ()
        if not all(0 <= beta < math.inf for beta in betas):
            raise BadInput(f"betas are {betas}; finite numbers are expected, none may be negative.")
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
    reading: str = "as given"  # which labels it comes from, see `labels/weighting.py`

    @property
    def name(self) -> str:
        """How tables call it."""
        words = f"beta {self.beta:g}, step {self.step}"
        return words if self.reading == "as given" else f"{words}, {self.reading}"
