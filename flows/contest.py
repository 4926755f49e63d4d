"""A refinement with its controls: every arm is trained alike, passes the same gate, and is reported on fresh seeds.

The gate chooses among an arm's candidates on one range of seeds, accepts the winner on a second and reports on a
third; a rejected arm leaves the baseline in place. Statistics are in `refine/gate.py`, episodes in `judge.py`, what
the catalog keeps of it in `lineage.py`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from refine.config import Snapshot
from refine.gate import (
    Decision,
    Interval,
    SeedPlan,
    Verdict,
    decide_acceptance,
    interval,
    judge_improvement,
    judge_labels,
    rank,
)
from refine.policy import Mode
from storage.errors import BadInput
from storage.schema import Frozen

from .arms import Draw, Material, list_draws, train_draw
from .judge import Contestant, Judge, Purpose, Returns
from .progress import Report, silent
from .workers import core_count


class GateConfig(Frozen):
    """How much evidence the gate asks for; its three ranges of seeds follow each other from `first_seed`."""

    first_seed: int = Field(default=1_000_000, ge=0, description="first seed of the evaluation, far from datasets'")
    select: int = Field(default=24, ge=2, description="episodes per candidate that choose among them")
    accept: int = Field(default=60, ge=10, description="episodes that accept the winner, paired with the baseline's")
    report: int = Field(default=100, ge=10, description="episodes that are reported and that judge the verdicts")
    mode: Mode = Field(default="greedy", description="how policies act while they are chosen and accepted")
    placebo_draws: int = Field(default=3, ge=1, description="draws of the shuffled and of the random arm")

    @property
    def seeds(self) -> SeedPlan:
        """The three ranges."""
        return SeedPlan.starting_at(self.first_seed, select=self.select, accept=self.accept, report=self.report)


@dataclass(frozen=True)
class Trial:
    """One draw of one arm after the gate."""

    draw: Draw
    candidates: Sequence[Contestant]
    snapshots: Sequence[Snapshot]  # of the same order
    selection: Sequence[float]  # mean return of each candidate on the selection seeds
    winner: int  # index of the candidate that was tested
    decision: Decision
    kept: Contestant  # the winner if it was accepted, else the baseline


@dataclass(frozen=True)
class ArmResult:
    """One row of the table: an arm, its draws pooled."""

    arm: str
    labels: int
    draws: int
    accepted: int  # draws that the gate accepted
    greedy: Interval
    sampled: Interval | None  # None when the policy has no distribution


@dataclass(frozen=True)
class Comparison:
    """What came of it: the table, the gate's decision about the annotator's labels, and the two verdicts."""

    arms: Sequence[ArmResult]
    decision: Decision
    improvement: Verdict
    credit: Verdict
    trials: Sequence[Trial] = field(repr=False)  # the annotator's labels come first

    @property
    def policy_id(self) -> str:
        """What is in force now: the refined policy, or the baseline."""
        return self.trials[0].kept.policy_id


@dataclass(frozen=True)
class Contest:
    """The arms of one comparison on their way through the gate.

    Args:
        material: dataset, labels, baseline and the refinement's configuration.
        judge: plays episodes and remembers them.
        gate: how much evidence is asked for.
        report: shown the progress.
    """

    material: Material
    judge: Judge
    gate: GateConfig
    report: Report = silent

    @property
    def baseline(self) -> Contestant:
        """The policy that every arm started from."""
        return Contestant.of(self.material.baseline, "baseline")

    def run(self) -> Comparison:
        """Train, select, accept and report every arm.

        Equal questions were remembered, so running it again plays nothing twice and ends the same.

        Raises:
            BadInput: without labels.
        """
        if not len(self.material.labels):
            raise BadInput("There are no labels to refine with.", "Annotate the dataset first: trajnote annotate.")
        draws = list_draws(self.gate.placebo_draws)
        trained = self._train(draws)
        trials = self._accept(draws, trained, self._select(trained))
        greedy = self._report(trials, "greedy")
        sampled = self._report(trials, "sampled") if self.material.baseline.is_stochastic else None
        judged = sampled if self.gate.mode == "sampled" and sampled else greedy
        return self._conclude(trials, greedy, sampled, judged)

    def _train(self, draws: Sequence[Draw]) -> list[list[Snapshot]]:
        workers = min(self.judge.workers or core_count(), len(draws))
        if workers == 1:
            return [self._tick(n, len(draws), train_draw(self.material, draw)) for n, draw in enumerate(draws)]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [pool.submit(train_draw, self.material, draw) for draw in draws]
            return [self._tick(n, len(draws), future.result()) for n, future in enumerate(futures)]

    def _tick(self, number: int, total: int, snapshots: list[Snapshot]) -> list[Snapshot]:
        self.report("train the arms", number + 1, total)
        return snapshots

    def _select(self, trained: Sequence[Sequence[Snapshot]]) -> list[list[Returns]]:
        """Selection returns of every candidate of every draw."""
        candidates = [Contestant.of(s.policy, "refined") for snapshots in trained for s in snapshots]
        returns = iter(self._returns(candidates, "select", self.gate.mode))
        return [[next(returns) for _ in snapshots] for snapshots in trained]

    def _accept(
        self, draws: Sequence[Draw], trained: Sequence[Sequence[Snapshot]], selection: Sequence[Sequence[Returns]]
    ) -> list[Trial]:
        """Test the winner of each draw, and nobody else, against the baseline on the acceptance seeds."""
        winners = [int(rank({str(n): found for n, found in enumerate(returns)})[0]) for returns in selection]
        tested = [Contestant.of(s[winner].policy, "refined") for s, winner in zip(trained, winners, strict=True)]
        before, *after = self._returns([self.baseline, *tested], "accept", self.gate.mode)
        trials: list[Trial] = []
        for n, draw in enumerate(draws):
            decision = decide_acceptance(after[n], before)
            trials.append(
                Trial(
                    draw=draw,
                    candidates=[Contestant.of(s.policy, "refined") for s in trained[n]],
                    snapshots=trained[n],
                    selection=[float(found.mean()) for found in selection[n]],
                    winner=winners[n],
                    decision=decision,
                    kept=tested[n] if decision.accepted else self.baseline,
                )
            )
        return trials

    def _report(self, trials: Sequence[Trial], mode: Mode) -> dict[str, Returns]:
        """Returns on the report seeds of the baseline and of what each draw left in force, by name."""
        names = ["baseline", *(trial.draw.name for trial in trials)]
        contestants = [self.baseline, *(trial.kept for trial in trials)]
        return dict(zip(names, self._returns(contestants, "report", mode), strict=True))

    def _returns(self, contestants: Sequence[Contestant], purpose: Purpose, mode: Mode) -> list[Returns]:
        seeds = self.gate.seeds.purposes()[purpose]
        words = {"select": "choose a candidate", "accept": "accept or reject", "report": f"report, {mode}"}
        advance: Callable[[int, int], None] = lambda done, total: self.report(words[purpose], done, total)  # noqa: E731
        return self.judge.returns(contestants, seeds, mode=mode, purpose=purpose, advance=advance)

    def _conclude(
        self,
        trials: Sequence[Trial],
        greedy: Mapping[str, Returns],
        sampled: Mapping[str, Returns] | None,
        judged: Mapping[str, Returns],
    ) -> Comparison:
        labels = trials[0]
        placebos = {trial.draw.name: judged[trial.draw.name] for trial in trials[1:]}
        return Comparison(
            arms=[self._arm_result(arm, trials, greedy, sampled) for arm in ("baseline", *_arms_of(trials))],
            decision=labels.decision,
            improvement=judge_improvement(judged["labels"], judged["baseline"]),
            credit=judge_labels(judged["labels"], placebos, accepted=labels.decision.accepted),
            trials=trials,
        )

    def _arm_result(
        self, arm: str, trials: Sequence[Trial], greedy: Mapping[str, Returns], sampled: Mapping[str, Returns] | None
    ) -> ArmResult:
        own = [trial for trial in trials if trial.draw.arm == arm]
        names = [trial.draw.name for trial in own] or [arm]
        return ArmResult(
            arm=arm,
            labels=len(self.material.labels) if arm in ("labels", "shuffled", "random") else 0,
            draws=len(own),
            accepted=sum(trial.decision.accepted for trial in own),
            greedy=_pooled(greedy, names),
            sampled=None if sampled is None else _pooled(sampled, names),
        )


def _arms_of(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(trial.draw.arm for trial in trials))


def _pooled(returns: Mapping[str, Returns], names: Sequence[str]) -> Interval:
    """Interval over the seeds of the mean over the draws: draws on one seed are not independent episodes."""
    return interval(np.mean([returns[name] for name in names], axis=0))
