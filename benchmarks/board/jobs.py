"""One row of the board from start to end, in one process and one thread; which rows there are, and in which order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.policies.mlp import MlpPolicy
from storage.content_hash import content_id
from storage.errors import Prerequisite, TrajnoteError

from .playing import Offer, pass_gate, play
from .rows import Row, append_row
from .scenes import Scene

STAGES: tuple[tuple[str, ...], ...] = (
    ("baseline",),
    ("labels", "no_labels", "shuffled", "random", "oracle", "best_10", "offline"),
    ("continued", "rice"),
)
"""Rows of a stage need those of the ones before: the baseline's returns, and the budget of the labelled refinement."""
BUDGET_ARMS = ("labels", "oracle", "no_labels")
"""Whose environment steps are the budget of the third stage: the first of these that has a row."""
ARMS = tuple(arm for stage in STAGES for arm in stage)


@dataclass(frozen=True)
class Job:
    """One row to be made."""

    scene: Scene
    arm: str
    seed: int
    out: Path  # the file to which the row is appended
    before: Row | None = None  # the baseline's row of the same seed
    budget: int = 0  # environment steps for the arms of the third stage

    @property
    def key(self) -> str:
        """Named by everything that decides the row."""
        before = self.before.key if self.before else None
        return content_id("b_", [self.scene.content_id, self.arm, self.seed, before, self.budget])


def run_job(job: Job) -> Row:
    """Make a row and append it to the file; a failure is a row with its reason."""
    began = time.process_time()
    try:
        made: dict[str, Any] = _MAKERS[job.arm](job)
    except Exception as error:  # of anybody's library: the other rows go on
        problem = error.problem if isinstance(error, TrajnoteError) else f"{type(error).__name__}: {error}"
        made = {"status": "failed", "reason": " ".join(problem.split())[:300]}
    scene = job.scene
    row = Row(
        key=job.key,
        env=scene.entry.name,
        arm=job.arm,
        seed=job.seed,
        collected_steps=scene.manifest.steps,
        mode=scene.entry.mode,
        seconds=round(time.process_time() - began, 2),
        **made,
    )
    append_row(job.out, row)
    return row


def budget_of(rows: Mapping[str, Row]) -> int:
    """Environment steps that the labelled refinement used: those of its dataset and those of its gate.

    Args:
        rows: arm -> row, of one environment and one training seed.

    Returns:
        The steps; those of the oracle's refinement, or of plain cloning, where there are no labels; 0 without any.
    """
    used = [rows[arm] for arm in BUDGET_ARMS if arm in rows and rows[arm].status == "done"]
    return used[0].collected_steps + used[0].gate_steps if used else 0


def _make_baseline(job: Job) -> dict[str, Any]:
    return {"reason": "as it was", **_report(job, job.scene.baseline)}


def _make_refined(job: Job) -> dict[str, Any]:
    from .refined import train_refinement

    made = train_refinement(job.scene, job.arm, job.seed)
    given = job.arm in ("labels", "shuffled", "random", "oracle")
    costs = {"labels": made.labels if given else 0, "dollars": job.scene.dollars if job.arm == "labels" else None}
    return _through_gate(job, made.candidates) | costs


def _make_offline(job: Job) -> dict[str, Any]:
    from .offline import train_offline

    return _through_gate(job, train_offline(job.scene, job.seed))


def _make_online(job: Job) -> dict[str, Any]:
    from .online import continue_training, train_from_critical_states

    if not job.budget:
        raise Prerequisite("no refinement whose budget it could have")
    train = continue_training if job.arm == "continued" else train_from_critical_states
    trained = train(job.scene, job.seed, job.budget)
    steps = {"train_steps": trained.steps, "replayed_steps": trained.replayed}
    return {"reason": trained.words, **steps, **_report(job, trained.policy)}


def _through_gate(job: Job, candidates: list[Offer]) -> dict[str, Any]:
    """Pass the gate; where it rejects, the baseline is in force, whose test episodes were played already."""
    if job.before is None:
        raise Prerequisite("the baseline's row of this seed is missing")
    gated = pass_gate(job.scene, candidates, job.seed)
    known = {"greedy": job.before.greedy, "sampled": job.before.sampled}
    tested = _report(job, gated.policy) if gated.accepted else known
    return {"accepted": gated.accepted, "reason": gated.reason, "gate_steps": gated.steps, **tested}


def _report(job: Job, policy: MlpPolicy) -> dict[str, tuple[float, ...]]:
    """Returns of the test episodes, greedy, and sampled where the policy has a distribution."""
    seeds = job.scene.entry.gate(job.seed).seeds.report
    greedy = play(job.scene, policy, seeds, "greedy").returns
    sampled = play(job.scene, policy, seeds, "sampled").returns if policy.is_stochastic else ()
    return {"greedy": tuple(greedy), "sampled": tuple(sampled)}


_MAKERS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "baseline": _make_baseline,
    **dict.fromkeys(("labels", "no_labels", "shuffled", "random", "oracle", "best_10"), _make_refined),
    "offline": _make_offline,
    **dict.fromkeys(("continued", "rice"), _make_online),
}
