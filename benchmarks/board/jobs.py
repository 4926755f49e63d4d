"""One row of the board from start to end, in one process and one thread; which rows there are, and in which order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refine.policies import MlpPolicy, Mode, RulePolicy
from storage.errors import Prerequisite, TrajnoteError
from storage.schema import content_id

from .playing import Gated, Offer, pass_gate, play
from .rows import Row, append_row
from .scenes import Scene

RULED = ("rules", "relabelled", "rules_played")
STAGES: tuple[tuple[str, ...], ...] = (
    ("baseline",),
    ("labels", "no_labels", "shuffled", "random", "oracle", "best_10", "offline", *RULED),
    ("placebos", "placebos_relabelled", "continued", "rice", "continued_rules", "continued_relabelled"),
)
"""Rows of a stage need those of the ones before: the baseline's returns, and the budget of a labelled refinement."""
BUDGET_ARMS: Mapping[str, tuple[str, ...]] = {
    "continued": ("labels", "oracle", "no_labels"),
    "rice": ("labels", "oracle", "no_labels"),
    "continued_rules": ("rules",),
    "continued_relabelled": ("relabelled",),
}
"""Whose environment steps are the budget of an arm of the third stage: the first of these that has a row."""
JUDGED: Mapping[str, str] = {"placebos": "rules", "placebos_relabelled": "relabelled"}
"""Whose placebos an arm plays."""
ARMS = tuple(arm for stage in STAGES for arm in stage)


@dataclass(frozen=True)
class Job:
    """One row to be made."""

    scene: Scene
    arm: str
    seed: int
    out: Path  # the file to which the row is appended
    before: Row | None = None  # the baseline's row of the same seed
    rules: Row | None = None  # the row of the same seed whose placebos these are
    budget: int = 0  # environment steps for the arms of the third stage

    @property
    def key(self) -> str:
        """Named by everything that decides the row."""
        before = self.before.key if self.before else None
        made_of: list[object] = [self.scene.content_id, self.arm, self.seed, before, self.budget]
        made_of += [self.scene.rules_run, *self.scene.further] if self.arm in RULED else []
        made_of += [self.scene.rounds] if self.arm == "relabelled" else []
        return content_id("b_", [*made_of, self.rules.key] if self.rules else made_of)


def run_job(job: Job) -> Row:
    """Make a row and append it to the file; a failure is a row with its reason."""
    began = time.process_time()
    try:
        made: dict[str, Any] = _MAKERS[job.arm](job)
    except Exception as error:  # of anybody's library: the other rows go on
        problem = error.problem if isinstance(error, TrajnoteError) else f"{type(error).__name__}: {error}"
        made = {"status": "failed", "reason": " ".join(problem.split())[:300]}
    scene = job.scene
    made = {"collected_steps": scene.manifest.steps, **made}
    row = Row(
        key=job.key,
        env=scene.title_of(job.arm),
        arm=job.arm,
        seed=job.seed,
        mode=scene.entry.mode,
        seconds=round(time.process_time() - began, 2),
        **made,
    )
    append_row(job.out, row)
    return row


def budget_of(rows: Mapping[str, Row], arm: str = "continued") -> int:
    """Environment steps that a labelled refinement used: those of its datasets and those of its gates.

    Args:
        rows: arm -> row, of one environment and one training seed.
        arm: of the third stage, whose budget it is.

    Returns:
        The steps; for single labels those of the oracle's refinement, or of plain cloning, where there are none; 0
        without any, and for an arm that has no budget.
    """
    used = [rows[one] for one in BUDGET_ARMS.get(arm, ()) if one in rows and rows[one].status == "done"]
    return used[0].collected_steps + used[0].gate_steps if used else 0


def _make_baseline(job: Job) -> dict[str, Any]:
    return {"reason": "as it was", **_report(job, job.scene.baseline)}


def _make_refined(job: Job) -> dict[str, Any]:
    from .refined import train_refinement

    made = train_refinement(job.scene, job.arm, job.seed)
    given = job.arm in ("labels", "shuffled", "random", "oracle")
    costs = {"labels": made.labels if given else 0, "dollars": job.scene.dollars if job.arm == "labels" else None}
    return _through_gate(job, made.candidates) | costs


def _make_ruled(job: Job) -> dict[str, Any]:
    from .ruled import refine_by_rules

    rounds = job.scene.rounds if job.arm == "relabelled" else 0
    made = refine_by_rules(job.scene, job.seed, rounds=rounds)
    costs = {"collected_steps": made.collected, "gate_steps": made.gate_steps, "labels": made.labels}
    return _left_in_force(job, made.gated) | costs | {"datasets": made.datasets, "rounds": rounds}


def _make_played(job: Job) -> dict[str, Any]:
    """The list's own returns, also where the gate rejects it: this row says what the advice is worth."""
    from .ruled import play_rules

    rules, gated = play_rules(job.scene, job.seed)
    collected = job.scene.manifest.steps + job.scene.feedback_steps
    gate = {"accepted": gated.accepted, "reason": gated.reason, "gate_steps": gated.steps, "collected_steps": collected}
    return gate | {"greedy": _play_tests(job, rules, "greedy")}


def _make_placebos(job: Job) -> dict[str, Any]:
    from .ruled import judge_placebos

    if job.before is None or job.rules is None:
        raise Prerequisite(f"the baseline's row or that of `{JUDGED[job.arm]}` of this seed is missing")
    credited, reason, returns = judge_placebos(job.scene, job.seed, job.before, job.rules)
    return {"credited": credited, "reason": reason, job.scene.entry.mode: tuple(returns)}


def _make_offline(job: Job) -> dict[str, Any]:
    from .offline import train_offline

    return _through_gate(job, train_offline(job.scene, job.seed))


def _make_online(job: Job) -> dict[str, Any]:
    from .online import continue_training, train_from_critical_states

    if not job.budget:
        raise Prerequisite("no refinement whose budget it could have")
    train = train_from_critical_states if job.arm == "rice" else continue_training
    trained = train(job.scene, job.seed, job.budget)
    steps = {"train_steps": trained.steps, "replayed_steps": trained.replayed}
    return {"reason": trained.words, **steps, **_report(job, trained.policy)}


def _through_gate(job: Job, candidates: list[Offer]) -> dict[str, Any]:
    """Pass the gate; where it rejects, the baseline is in force, whose test episodes were played already."""
    return _left_in_force(job, pass_gate(job.scene, candidates, job.seed))


def _left_in_force(job: Job, gated: Gated) -> dict[str, Any]:
    if job.before is None:
        raise Prerequisite("the baseline's row of this seed is missing")
    known = {"greedy": job.before.greedy, "sampled": job.before.sampled}
    tested = _report(job, gated.policy) if gated.accepted else known
    return {"accepted": gated.accepted, "reason": gated.reason, "gate_steps": gated.steps, **tested}


def _report(job: Job, policy: MlpPolicy | RulePolicy) -> dict[str, tuple[float, ...]]:
    """Returns of the test episodes, greedy, and sampled where the policy has a distribution."""
    is_stochastic = isinstance(policy, MlpPolicy) and policy.is_stochastic
    sampled = _play_tests(job, policy, "sampled") if is_stochastic else ()
    return {"greedy": _play_tests(job, policy, "greedy"), "sampled": sampled}


def _play_tests(job: Job, policy: MlpPolicy | RulePolicy, mode: Mode) -> tuple[float, ...]:
    return tuple(play(job.scene, policy, job.scene.entry.gate(job.seed).seeds.report, mode).returns)


_MAKERS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "baseline": _make_baseline,
    **dict.fromkeys(("labels", "no_labels", "shuffled", "random", "oracle", "best_10"), _make_refined),
    "offline": _make_offline,
    **dict.fromkeys(("rules", "relabelled"), _make_ruled),
    "rules_played": _make_played,
    **dict.fromkeys(JUDGED, _make_placebos),
    **dict.fromkeys(BUDGET_ARMS, _make_online),
}
