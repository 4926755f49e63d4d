"""`ablate`: every mode and every arm, with several training seeds, in one table.

Each mode and seed is one refinement as `refinement.py` makes it; here they are pooled. What was trained or played
before is reused, so an interrupted ablation goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from refine.config import TrainingMode
from refine.evaluation import Interval, interval_over_seeds
from refine.policies import Mode
from storage.catalog import insert_rows
from storage.datasets import read_manifest
from storage.schema import Array, Frozen, content_id
from storage.store import Store

from ..runtime import Report, silent
from ..simulation import Named
from .comparison import ArmResult, Comparison
from .lineage import arm_rows
from .refinement import ImproveConfig, Outcome, improve


class AblateConfig(Frozen):
    """One ablation: modes, training seeds, and the refinement that they vary."""

    improve: ImproveConfig = Field(
        default_factory=lambda: ImproveConfig(random_states=True),
        description="configuration of each refinement; its mode is replaced",
    )
    modes: tuple[TrainingMode, ...] = Field(default=("A", "R", "RA"), min_length=1, description="the rows of the table")
    seeds: int = Field(default=3, ge=1, description="training seeds, from the refinement's own on")

    @property
    def training_seeds(self) -> range:
        """The seeds of trainings and placebos."""
        first = self.improve.refine.seed
        return range(first, first + self.seeds)


@dataclass(frozen=True)
class PooledArm(ArmResult):
    """One row of the table: an arm under one mode, its draws those of all training seeds."""

    recipe: TrainingMode


@dataclass(frozen=True)
class PooledVerdict:
    """What the refinements of one mode came to, and how far the labels lead the other arms."""

    recipe: TrainingMode
    seeds: int
    accepted: int  # the number of training seeds
    better: int
    credit: int
    not_shown: int  # neither credited nor matched by a placebo
    leads: Mapping[str, Interval]  # arm -> the labels' return minus the arm's, in the gate's mode


@dataclass(frozen=True)
class Ablation:
    """A finished ablation: its rows, refinements and verdicts."""

    ablation_id: str
    outcomes: Mapping[tuple[TrainingMode, int], Outcome]  # by mode and training seed
    arms: Sequence[PooledArm]
    verdicts: Sequence[PooledVerdict]


def ablate(
    store: Store,
    dataset_id: str,
    config: AblateConfig,
    *,
    run_ids: Sequence[str] | None = None,
    baseline: Named | None = None,
    env_id: Named | None = None,
    report: Report = silent,
) -> Ablation:
    """Refine a dataset's policy under every mode and with every training seed, beside all arms.

    All are judged on the same seeds of the environment, so rows can be compared. Choosing the best row is a search
    like any other: confirm it with another first seed of the gate.

    Args:
        store: the store.
        dataset_id: as for `improve`.
        config: modes, seeds, and the refinement.
        run_ids: annotation runs whose labels count; all when None.
        baseline: another baseline than the dataset's policy.
        env_id: the dataset's environment, if the user has to name it.
        report: shown the progress.

    Raises:
        Prerequisite, BadInput: as `improve` does.
    """
    outcomes: dict[tuple[TrainingMode, int], Outcome] = {}
    reserved: int | None = None  # the first refinement's seeds serve all
    for seed in config.training_seeds:
        for mode in config.modes:
            named = _named(report, f"{mode}, seed {seed}")
            refine = config.improve.refine.model_copy(update={"mode": mode, "seed": seed})
            one = config.improve.model_copy(update={"refine": refine})
            found = improve(
                store,
                dataset_id,
                one,
                run_ids=run_ids,
                baseline=baseline,
                env_id=env_id,
                reserved=reserved,
                report=named,
            )
            outcomes[mode, seed], reserved = found, found.first_seed
    arms = [arm for mode in config.modes for arm in _pool(mode, _of(outcomes, mode))]
    verdicts = [_judge(mode, _of(outcomes, mode), config.improve.gate.mode) for mode in config.modes]
    ablation = Ablation(_name(dataset_id, outcomes), outcomes, arms, verdicts)
    _record(store, dataset_id, ablation)
    return ablation


def _of(outcomes: Mapping[tuple[TrainingMode, int], Outcome], mode: TrainingMode) -> list[Outcome]:
    return [outcome for (own, _), outcome in outcomes.items() if own == mode]


def _pool(mode: TrainingMode, outcomes: Sequence[Outcome]) -> list[PooledArm]:
    comparisons = [outcome.comparison for outcome in outcomes]
    pooled: list[PooledArm] = []
    for place, arm in enumerate(comparisons[0].arms):
        rows = [comparison.arms[place] for comparison in comparisons]
        sampled = None if arm.sampled is None else interval_over_seeds(_returns(comparisons, arm.arm, "sampled"))
        pooled.append(
            PooledArm(
                recipe=mode,
                arm=arm.arm,
                labels=arm.labels,
                draws=sum(row.draws for row in rows),
                accepted=sum(row.accepted for row in rows),
                greedy=interval_over_seeds(_returns(comparisons, arm.arm, "greedy")),
                sampled=sampled,
            )
        )
    return pooled


def _returns(comparisons: Sequence[Comparison], arm: str, acting: Mode) -> Array:
    """Returns on the report seeds, which an arm's draws share, (training seeds, episodes)."""
    return np.array([comparison.returns[acting][arm] for comparison in comparisons])


def _judge(mode: TrainingMode, outcomes: Sequence[Outcome], acting: Mode) -> PooledVerdict:
    comparisons = [outcome.comparison for outcome in outcomes]
    own = _returns(comparisons, "labels", acting)
    others = [arm.arm for arm in comparisons[0].arms if arm.arm != "labels"]
    return PooledVerdict(
        recipe=mode,
        seeds=len(comparisons),
        accepted=sum(comparison.decision.accepted for comparison in comparisons),
        better=sum(comparison.improvement.holds for comparison in comparisons),
        credit=sum(comparison.credit.holds for comparison in comparisons),
        not_shown=sum(comparison.credit.answer == "not shown" for comparison in comparisons),
        leads={arm: interval_over_seeds(own - _returns(comparisons, arm, acting)) for arm in others},
    )


def _name(dataset_id: str, outcomes: Mapping[tuple[TrainingMode, int], Outcome]) -> str:
    made_of = [[mode, seed, outcome.comparison_id] for (mode, seed), outcome in sorted(outcomes.items())]
    return content_id("x_", [dataset_id, made_of])


def _record(store: Store, dataset_id: str, ablation: Ablation) -> None:
    """Write the table; the comparisons behind it are in the catalog already."""
    env_id = read_manifest(store, dataset_id).env_id
    with store.catalog.write() as con:
        shared = {"ablation_id": ablation.ablation_id, "dataset_id": dataset_id, "env_id": env_id}
        seeds = len({seed for _, seed in ablation.outcomes})
        rows = [
            shared | {"seeds": seeds, "recipe": arm.recipe} | row for arm in ablation.arms for row in arm_rows([arm])
        ]
        insert_rows(con, "ablations", rows)
        members = [
            {"ablation_id": ablation.ablation_id, "recipe": mode, "seed": seed, "comparison_id": outcome.comparison_id}
            for (mode, seed), outcome in ablation.outcomes.items()
        ]
        insert_rows(con, "ablation_comparisons", members)


def _named(report: Report, name: str) -> Report:
    def prefixed(description: str, done: int, total: int | None, /) -> None:
        report(f"{name}: {description}", done, total)

    return prefixed
