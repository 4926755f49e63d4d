"""The comparison on worlds whose best policies are known: right labels are credited, labels of chance are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from soak import every
from store_state import ask
from toy_environment import REACH, TOY, gather_toys, small_config, write_labels

from annotate.importing.labels import import_annotations
from flows.policies.loading import find_baseline
from flows.refinement.arms import ArmDraw, Material, list_draws
from flows.refinement.comparison import Comparison, ComparisonPlan, GateConfig
from flows.refinement.evaluator import Evaluator
from refine.evaluation.gate import deal, interval_over_draws
from refine.labels.labels import labels_from_annotations
from refine.policies.mlp import Head
from storage.annotations.annotations import load_annotations
from storage.datasets.reader import read_steps
from storage.errors import BadInput
from storage.store import Store

LABELS = 96
NAMES = ["labels", "no_labels", *(f"{arm} {n}" for arm in ("shuffled", "random") for n in (1, 2, 3))]


def make_plan(
    folder: Path, env_id: str = TOY, answer: Any = "right", *, head: Head | None = None, **changes: Any
) -> ComparisonPlan:
    store = Store.create(folder / "store")
    mode = "greedy" if head == "q_values" else "sampled"
    manifest = gather_toys(store, folder, env_id, head, mode=mode)
    import_annotations(store, write_labels(store, manifest.dataset_id, folder / "labels.jsonl", answer, env_id))
    config = small_config(**changes)
    steps = read_steps(store, manifest.dataset_id)
    labels = labels_from_annotations(load_annotations(store, manifest.dataset_id), steps, manifest.action_space)
    baseline = find_baseline(store, manifest, steps).policy
    recipe = config.refine.completed(manifest.action_space)
    material = Material(store.root, manifest.dataset_id, labels, baseline, recipe)
    return ComparisonPlan(material, Evaluator(store, env_id, {}, workers=1), config.gate)


Judged = Callable[[str], tuple[ComparisonPlan, Comparison]]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """A comparison with right labels, and what came of it; run once per environment."""

    @cache
    def run(env_id: str) -> tuple[ComparisonPlan, Comparison]:
        plan = make_plan(tmp_path_factory.mktemp("plan"), env_id, gate={"placebo_draws": 19})
        return plan, plan.run()

    return run


def by_arm(comparison: Comparison) -> dict[str, Any]:
    return {arm.arm: arm for arm in comparison.arms}


def test_the_arms_are_the_labels_plain_cloning_and_several_draws_of_chance() -> None:
    assert [draw.name for draw in list_draws(3)] == NAMES
    assert list_draws(2)[-1] == ArmDraw("random", 1)


def test_the_gates_seeds_follow_each_other_and_are_never_shared() -> None:
    plan = GateConfig(first_seed=50, select=5, accept=10, report=20).seeds
    assert plan.purposes() == {"select": range(50, 55), "accept": range(55, 65), "report": range(65, 85)}
    with pytest.raises(BadInput, match="Seed 64 is among the dataset seeds and the accept seeds"):
        plan.check_unused([7, 64])


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "before", "after"), [(TOY, 1.9, 7.6), (REACH, -5.8, 0.0)])
def test_right_labels_lead_to_a_better_policy_and_earn_both_verdicts(
    judged: Judged, env_id: str, before: float, after: float
) -> None:
    _, comparison = judged(env_id)
    arms = by_arm(comparison)
    assert comparison.decision.accepted
    assert comparison.improvement.holds
    assert comparison.credit.holds
    assert arms["baseline"].greedy.mean == pytest.approx(before, abs=0.1)
    assert arms["labels"].greedy.mean == pytest.approx(after, abs=0.1)
    assert (arms["labels"].labels, arms["labels"].draws, arms["labels"].accepted) == (LABELS, 1, 1)
    assert (arms["no_labels"].labels, arms["no_labels"].draws) == (0, 1)
    assert (arms["shuffled"].draws, arms["random"].draws) == (19, 19)
    assert list(comparison.credit.differences) == ["no_labels", "shuffled", "random"]
    assert comparison.credit.reason.startswith("the labels did it: better than 19 of 19 shuffled draws (p = 0.05) and")
    assert comparison.policy_id == comparison.trials[0].kept.policy_id
    assert comparison.policy_id.startswith("refined-")


@pytest.mark.slow
@pytest.mark.parametrize("env_id", every([REACH, TOY], 2))
def test_labels_of_chance_are_rejected_and_leave_the_baseline_in_force_with_a_reason(
    tmp_path: Path, env_id: str
) -> None:
    plan = make_plan(tmp_path, env_id, "chance")
    comparison = plan.run()
    arms = by_arm(comparison)
    assert not comparison.decision.accepted
    assert comparison.decision.reason.startswith("rejected: the best candidate's gain on the acceptance seeds is ")
    assert not comparison.improvement.holds
    assert not comparison.credit.holds
    assert comparison.policy_id == plan.baseline.policy_id
    assert arms["labels"].greedy == arms["baseline"].greedy
    assert comparison.improvement.reason == "the refinement was rejected, so the baseline is in force"


@pytest.mark.slow
def test_in_full_every_candidate_plays_every_selection_seed_and_only_the_best_is_tested(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, gate={"method": "full"})
    comparison = plan.run()
    tested, drawn = comparison.trials[:2], comparison.trials[2:]
    for trial in tested:
        assert [(s.beta, s.step) for s in trial.snapshots] == [(0.1, 40), (0.1, 120)]
        assert trial.selection[trial.winner] == max(trial.selection)
        assert trial.episodes == [10, 10]
    for trial in drawn:
        assert not trial.decision.accepted
        assert trial.kept == plan.baseline
        assert trial.episodes == [2, 2]
    with plan.evaluator.store.catalog.read() as con:
        uses = con.execute(
            """SELECT purpose, mode, first_seed, episodes, count(*) FROM evaluations
               WHERE purpose != 'report' GROUP BY ALL ORDER BY first_seed, mode, episodes"""
        ).fetchall()
        report = con.execute(
            """SELECT mode, min(first_seed), max(first_seed + episodes), max(episodes) FROM evaluations
               WHERE purpose = 'report' GROUP BY mode ORDER BY mode"""
        ).fetchall()
    first = plan.gate.seeds.select.start
    each, every = (
        {c.policy_id for trial in trials for c in trial.candidates} for trials in (tested, comparison.trials)
    )
    winners = {trial.candidates[trial.winner].policy_id for trial in tested}
    ranked = every - {c.policy_id for c in tested[1].candidates} | {plan.baseline.policy_id}
    assert uses == [
        ("select", "greedy", first, 2, len(ranked - each)),  # the others have played these seeds
        ("select", "greedy", first, 10, len(each)),
        ("select", "sampled", first, 4, len(ranked) - 1),  # the baseline has no rank
        ("accept", "greedy", first + 10, 20, len(winners) + 1),
    ]
    assert report == [("greedy", first + 30, first + 60, 30), ("sampled", first + 30, first + 45, 15)]


def count_repeats(store: Store) -> int:
    """Episodes that a policy has played more than once in one mode."""
    ((repeats,),) = ask(
        store,
        """SELECT count(*) - count(DISTINCT (policy_id, mode, seed))
           FROM (SELECT policy_id, mode, unnest(range(first_seed, first_seed + episodes)) AS seed FROM evaluations)""",
    )
    return repeats


@pytest.mark.slow
def test_a_race_keeps_each_purpose_on_its_own_seeds_and_remembers_every_stage(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, gate={"method": "racing"})
    comparison = plan.run()
    with plan.evaluator.store.catalog.read() as con:
        uses = con.execute(
            """SELECT DISTINCT purpose, first_seed, episodes FROM evaluations
               WHERE purpose != 'report' ORDER BY first_seed, episodes"""
        ).fetchall()
        played = con.execute("SELECT count(*) FROM evaluations").fetchone()
    first = plan.gate.seeds.select.start
    assert uses[:4] == [("select", first, 2), ("select", first, 4), ("select", first, 10), ("accept", first + 10, 12)]
    assert {trial.decision.gain.n for trial in comparison.trials[:2]} <= {12, 20}
    assert count_repeats(plan.evaluator.store) == 0
    again = plan.run()
    with plan.evaluator.store.catalog.read() as con:
        assert con.execute("SELECT count(*) FROM evaluations").fetchone() == played
    assert [trial.decision for trial in again.trials] == [trial.decision for trial in comparison.trials]


@pytest.mark.slow
def test_draws_share_the_report_seeds_and_the_interval_is_over_draws(judged: Judged) -> None:
    plan, comparison = judged(REACH)
    with plan.evaluator.store.catalog.read() as con:
        played = con.execute(
            "SELECT policy_id, first_seed, returns FROM evaluations WHERE purpose = 'report' AND mode = 'greedy'"
        ).fetchall()
    returns = {(policy_id, seed): values for policy_id, seed, values in played}
    drawn = [trial.reported.policy_id for trial in comparison.trials if trial.draw.arm == "shuffled"]
    parts, report = deal(30, 19), plan.gate.seeds.report
    before = returns[plan.baseline.policy_id, report.start]
    shared = [
        before[part] if policy_id == plan.baseline.policy_id else returns[policy_id, report[part].start]
        for policy_id, part in zip(drawn, parts, strict=False)
    ]
    assert len(shared) == 15  # of two episodes each
    assert by_arm(comparison)["shuffled"].greedy == interval_over_draws(np.concatenate(shared), 19)


@pytest.mark.slow
def test_relabelled_rewards_go_through_the_same_gate_and_claim_nothing_that_plain_learning_does_too(
    tmp_path: Path,
) -> None:
    comparison = make_plan(tmp_path, REACH, mode="R").run()
    arms = by_arm(comparison)
    assert [trial.draw.name for trial in comparison.trials[:2]] == NAMES[:2]
    assert {trial.draw.name for trial in comparison.trials} == set(NAMES)
    assert comparison.decision.accepted
    assert comparison.improvement.holds
    assert arms["no_labels"].greedy.mean == pytest.approx(-0.4, abs=0.2)  # the logged rewards alone
    assert not comparison.credit.holds


@pytest.mark.slow
def test_suggestions_and_relabelled_rewards_together_go_through_the_same_gate(tmp_path: Path) -> None:
    comparison = make_plan(tmp_path, mode="RA").run()
    assert [trial.draw.name for trial in comparison.trials[:2]] == NAMES[:2]
    assert {trial.draw.name for trial in comparison.trials} == set(NAMES)
    assert comparison.improvement.holds
    assert by_arm(comparison)["labels"].greedy.mean == pytest.approx(7.6, abs=0.2)


@pytest.mark.slow
def test_a_gate_that_draws_actions_judges_what_it_drew(tmp_path: Path) -> None:
    comparison = make_plan(tmp_path, gate={"mode": "sampled"}).run()
    arms = by_arm(comparison)
    gain = comparison.improvement.differences["baseline"]
    assert comparison.decision.accepted
    assert gain.mean == pytest.approx(arms["labels"].sampled.mean - arms["baseline"].sampled.mean)
    assert gain.mean != pytest.approx(arms["labels"].greedy.mean - arms["baseline"].greedy.mean)


@pytest.mark.slow
def test_a_baseline_of_q_values_is_refined_greedily_and_never_drawn_from(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, head="q_values")
    comparison = plan.run()
    assert comparison.improvement.holds
    assert {arm.sampled for arm in comparison.arms} == {None}
    drawing = ComparisonPlan(plan.material, plan.evaluator, plan.gate.model_copy(update={"mode": "sampled"}))
    with pytest.raises(BadInput, match=r"q_values without a distribution.*--gate-mode greedy"):
        drawing.run()
