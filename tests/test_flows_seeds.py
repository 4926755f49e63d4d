"""Seeds of gates: fresh for each other refinement, the same for an equal one, honoured where a person names them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from soak import full_or
from store_state import ask, lend
from toy_environment import TOY, gather_toys, small_config

from annotate.importing.labels import import_annotations
from flows.refinement import evaluator as judging
from flows.refinement.ablation import AblateConfig, ablate
from flows.refinement.evaluator import EvaluateConfig, evaluate
from flows.refinement.refinement import ImproveConfig, Outcome, improve
from flows.simulation.trust import Named
from storage.datasets.reader import read_steps
from storage.errors import UsedSeedsWarning
from storage.policies.seeds import Plan, end_of_used_seeds, reserve_seeds
from storage.store import Store

OTHERS = full_or(30, 8)
GATE = {"select": 2, "accept": 10, "report": 10, "placebo_draws": 2}
SIZE = 2 + 10 + 10


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one dataset and several runs, each with other labels."""
    folder = tmp_path_factory.mktemp("seeds")
    made = Store.create(folder / "store")
    dataset_id = gather_toys(made, folder).dataset_id
    steps = read_steps(made, dataset_id)
    rows = np.flatnonzero(~steps.is_final)[::4]
    for number in range(OTHERS + 1):
        lines = [
            {
                "dataset_id": dataset_id,
                "episode_id": int(steps.episode_id[row]),
                "step": int(steps.step[row]),
                "suggested_action": int(action),
                "confidence": 0.9,
                "rationale": "so",
            }
            for row, action in zip(rows, np.random.default_rng(number).integers(0, 4, len(rows)), strict=True)
        ]
        path = folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        import_annotations(made, path)
    return made.root


@pytest.fixture
def toys(template: Path) -> Store:
    """A copy of that store."""
    return Store.open(lend(template))


def runs(store: Store) -> list[str]:
    return [run for (run,) in ask(store, "SELECT run_id FROM annotation_runs ORDER BY run_id")]


def config(**gate: Any) -> ImproveConfig:
    return small_config(gate=GATE | gate, snapshots=(1,))


def refine(store: Store, number: int, **gate: Any) -> Outcome:
    ((dataset_id,),) = ask(store, "SELECT dataset_id FROM datasets")
    return improve(store, dataset_id, config(**gate), run_ids=[runs(store)[number]])


@pytest.mark.slow
def test_refinements_with_other_labels_share_no_seed_at_all(toys: Store) -> None:
    firsts = [refine(toys, number).first_seed for number in range(OTHERS)]
    assert firsts == [1_000_000 + number * SIZE for number in range(OTHERS)]
    used = ask(toys, "SELECT DISTINCT purpose, first_seed, episodes FROM evaluations")
    seeds: dict[str, list[int]] = {purpose: [] for purpose in ("select", "accept", "report")}
    for purpose, first, episodes in used:
        seeds[purpose] += range(first, first + episodes)
    assert all(seeds.values())
    assert len(seeds["accept"]) == len(set(seeds["accept"])) == OTHERS * 10
    assert not set(seeds["accept"]) & (set(seeds["report"]) | set(seeds["select"]))
    assert not set(seeds["report"]) & set(seeds["select"])


@pytest.mark.slow
def test_an_equal_refinement_has_its_seeds_again_and_more_placebos_play_on_them(
    toys: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = refine(toys, 0), refine(toys, 1)
    assert other.first_seed == first.first_seed + SIZE
    more = refine(toys, 0, placebo_draws=3)
    assert more.first_seed == first.first_seed
    assert refine(toys, 0, report=11).first_seed == other.first_seed + SIZE
    monkeypatch.setattr(judging, "play_policies", None)  # playing anything would fail
    assert refine(toys, 0).comparison_id == first.comparison_id
    assert refine(toys, 1).comparison_id == other.comparison_id


@pytest.mark.slow
def test_a_gate_that_was_killed_goes_on_with_its_seeds_though_another_came_between(
    toys: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    returns = judging.Evaluator.returns

    def killed(judge: judging.Evaluator, *played: Any, purpose: str, **how: Any) -> Any:
        if purpose == "report":
            raise KeyboardInterrupt
        return returns(judge, *played, purpose=purpose, **how)

    with monkeypatch.context() as patched:
        patched.setattr(judging.Evaluator, "returns", killed)
        with pytest.raises(KeyboardInterrupt):
            refine(toys, 0)
    between = refine(toys, 1)
    before = ask(toys, "SELECT count(*) FROM evaluations WHERE purpose = 'accept'")
    again = refine(toys, 0)
    assert (again.first_seed, between.first_seed) == (1_000_000, 1_000_000 + SIZE)
    assert ask(toys, "SELECT count(*) FROM evaluations WHERE purpose = 'accept'") == before


@pytest.mark.slow
def test_seeds_that_a_person_names_are_honoured_and_their_use_before_is_said_in_one_line(toys: Store) -> None:
    named = refine(toys, 0, first_seed=2_000_000)
    assert (named.first_seed, named.warnings) == (2_000_000, ())
    assert refine(toys, 0).first_seed == 2_000_000  # its own
    (said,) = refine(toys, 1, first_seed=2_000_005).warnings
    assert said.startswith("another gate has already used some of the seeds 2000005 to 2000026")
    assert refine(toys, 1, first_seed=2_000_005).warnings == (said,)
    fresh = refine(toys, 1)
    assert (fresh.first_seed, fresh.warnings) == (1_000_000, ())


@pytest.mark.slow
def test_a_comparison_of_a_catalog_without_reservations_keeps_its_seeds(toys: Store) -> None:
    first = refine(toys, 0)
    with toys.catalog.write() as con:
        con.execute("DELETE FROM reserved_seeds")
    assert refine(toys, 1).first_seed == 1_000_000 + SIZE
    assert refine(toys, 0).comparison_id == first.comparison_id


@pytest.mark.slow
def test_an_ablation_is_one_table_on_common_seeds_and_another_one_has_others(toys: Store) -> None:
    ((dataset_id,),) = ask(toys, "SELECT dataset_id FROM datasets")
    asked = AblateConfig(improve=config(), modes=("A",), seeds=2)
    found = ablate(toys, dataset_id, asked, run_ids=[runs(toys)[0]])
    assert {outcome.first_seed for outcome in found.outcomes.values()} == {1_000_000}
    assert all(outcome.warnings == () for outcome in found.outcomes.values())
    other = ablate(toys, dataset_id, asked, run_ids=[runs(toys)[1]])
    assert {outcome.first_seed for outcome in other.outcomes.values()} == {1_000_000 + SIZE}


@pytest.mark.slow
def test_a_gate_avoids_the_seeds_of_datasets_and_of_evaluate(toys: Store, tmp_path: Path) -> None:
    gather_toys(toys, tmp_path, seed=1_000_000, dataset="far")
    policy = Named(f"policy:{tmp_path / 'baseline'}")
    evaluate(toys, EvaluateConfig(policy=policy, env_id=TOY, seed=1_000_020, episodes=5))
    ((dataset_id,),) = ask(toys, "SELECT dataset_id FROM datasets WHERE dataset_id != 'far'")
    found = improve(toys, dataset_id, config(), run_ids=[runs(toys)[0]])
    assert found.first_seed == 1_000_025


def plan(name: str, episodes: int = 10, env_id: str = TOY) -> Plan:
    return Plan(name, env_id, episodes, (), "c_none")


def test_plans_of_one_environment_follow_each_other_whichever_module_registers_it(store: Store) -> None:
    assert reserve_seeds(store, plan("g_1")).first_seed == 1_000_000
    assert reserve_seeds(store, plan("g_2", env_id="Toy-v0")).first_seed == 1_000_010
    assert reserve_seeds(store, plan("g_3", env_id="Other-v0")).first_seed == 1_000_000
    assert reserve_seeds(store, plan("g_1")).first_seed == 1_000_000
    assert reserve_seeds(store, plan("g_4", 100)).first_seed == 1_000_020
    assert reserve_seeds(store, plan("g_5"), start=3_000_000).first_seed == 3_000_000


def test_a_gap_is_used_only_if_the_whole_plan_fits_into_it(store: Store) -> None:
    reserve_seeds(store, plan("g_1"), named=1_000_005)
    reserve_seeds(store, plan("g_2"), named=1_000_020)
    assert reserve_seeds(store, plan("g_3", 6)).first_seed == 1_000_030
    assert reserve_seeds(store, plan("g_4", 5)).first_seed == 1_000_000
    assert reserve_seeds(store, plan("g_5", 5)).first_seed == 1_000_015


def test_seeds_of_evaluate_and_feedback_are_never_reserved(store: Store) -> None:
    assert reserve_seeds(store, plan("g_1"), start=4_999_995).first_seed == 8_000_000
    with store.catalog.read() as con:
        assert end_of_used_seeds(con, range(8_000_005, 8_000_020), except_by="") == 8_000_010
        assert end_of_used_seeds(con, range(8_000_010, 8_000_020), except_by="") is None


@pytest.mark.slow
def test_evaluating_on_the_seeds_of_a_gate_says_so(toys: Store) -> None:
    made = refine(toys, 0)
    config = EvaluateConfig(policy=Named(made.baseline_id), episodes=10, workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UsedSeedsWarning)
        evaluate(toys, config)
    with pytest.warns(UsedSeedsWarning, match=f"some of the seeds {made.first_seed} to {made.first_seed + 9}"):
        evaluate(toys, config.model_copy(update={"seed": made.first_seed}))
