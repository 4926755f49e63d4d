"""One table of modes and arms over training seeds: an interrupted one goes on, and nothing is trained twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_state import ask, state_of
from toy_environment import TOY, gather_toys, right_actions, small_config, write_labels

from annotate.importing.labels import import_annotations
from flows.refinement import ablation as ablating
from flows.refinement import comparison as comparing
from flows.refinement import evaluator as judging
from flows.refinement.ablation import AblateConfig, Ablation, ablate
from flows.refinement.present import show_ablation, show_comparison
from flows.refinement.refinement import ImproveConfig, improve
from flows.reporting.figures import draw_figures
from flows.simulation.trust import Named
from refine.evaluation.gate import interval, interval_over_seeds
from storage.errors import BadInput
from storage.store import Store

ARMS = ["baseline", "labels", "no_labels", "shuffled", "random", "random_states", "oracle"]
EXPERT = Named(f"py:{__name__}:push_right_way")


def push_right_way(observation: Any) -> int:
    return int(right_actions(np.asarray(observation).reshape(1, 2))[0])


def small(**changes: Any) -> ImproveConfig:
    return small_config(gate={"placebo_draws": 2}, snapshots=(60,), **changes)


def configure(**changes: Any) -> AblateConfig:
    improving = small().model_copy(update={"random_states": True, "expert": EXPERT})
    return AblateConfig.model_validate({"improve": improving, "modes": ("A", "RA"), "seeds": 2, **changes})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a dataset and right labels."""
    folder = tmp_path_factory.mktemp("ablate")
    store = Store.create(folder / "store")
    manifest = gather_toys(store, folder, TOY)
    import_annotations(store, write_labels(store, manifest.dataset_id, folder / "labels.jsonl"))
    return store.root


@pytest.fixture(scope="module")
def done(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Ablation]:
    """An ablation that nobody interrupted."""
    store = Store.open(shutil.copytree(labelled, tmp_path_factory.mktemp("done") / "store"))
    return store, ablate(store, dataset(store), configure())


def dataset(store: Store) -> str:
    return ask(store, "SELECT dataset_id FROM datasets")[0][0]


@pytest.mark.slow
def test_the_table_has_every_mode_and_arm_and_the_known_answers(done: tuple[Store, Ablation]) -> None:
    _, found = done
    assert [(arm.recipe, arm.arm) for arm in found.arms] == [(mode, arm) for mode in ("A", "RA") for arm in ARMS]
    arms = {arm.arm: arm for arm in found.arms if arm.recipe == "A"}
    assert arms["baseline"].greedy.mean == pytest.approx(1.9, abs=0.1)
    assert arms["labels"].greedy.mean == pytest.approx(7.2, abs=0.3)
    assert arms["oracle"].greedy == arms["labels"].greedy  # the labels are right, so the trainings are equal
    assert arms["random_states"].greedy.mean > 6  # every state is labelled here: the choice does not matter
    assert (arms["labels"].draws, arms["labels"].accepted, arms["labels"].labels) == (2, 2, 96)
    assert (arms["random_states"].draws, arms["oracle"].draws, arms["no_labels"].labels) == (4, 2, 0)


@pytest.mark.slow
def test_arms_that_inform_are_no_part_of_the_verdicts(done: tuple[Store, Ablation]) -> None:
    _, found = done
    for outcome in found.outcomes.values():
        assert not {"oracle", "random_states"} & set(outcome.comparison.credit.differences)
    verdict = found.verdicts[0]
    assert (verdict.recipe, verdict.seeds, verdict.accepted, verdict.better) == ("A", 2, 2, 2)
    assert verdict.credit == sum(o.comparison.credit.holds for (mode, _), o in found.outcomes.items() if mode == "A")
    assert list(verdict.leads) == [arm for arm in ARMS if arm != "labels"]
    assert verdict.leads["baseline"].low > 4


@pytest.mark.slow
def test_intervals_respect_training_seeds_and_episodes(done: tuple[Store, Ablation]) -> None:
    _, found = done
    tables = [found.outcomes["A", seed].comparison.returns["greedy"]["labels"] for seed in (0, 1)]
    labels = next(arm for arm in found.arms if (arm.recipe, arm.arm) == ("A", "labels"))
    assert labels.greedy == interval_over_seeds(tables)
    assert labels.greedy != interval(np.mean(tables, axis=0))


@pytest.mark.slow
def test_the_catalog_has_the_table_and_the_leaderboard_every_comparison(done: tuple[Store, Ablation]) -> None:
    store, found = done
    kept = ask(store, "SELECT recipe, arm, seeds, draws, return_ FROM ablations WHERE mode = 'greedy'")
    assert sorted(kept) == sorted((a.recipe, a.arm, 2, a.draws, a.greedy.mean) for a in found.arms)
    board = ask(
        store,
        """SELECT recipe, seed, arm FROM leaderboard JOIN ablation_comparisons USING (comparison_id, recipe, seed)
           WHERE mode = 'greedy'""",
    )
    assert sorted(board) == sorted((mode, seed, arm) for mode in ("A", "RA") for seed in (0, 1) for arm in ARMS)
    assert ask(store, "SELECT DISTINCT config ->> 'expert' FROM refinements WHERE arm = 'oracle'") == [(EXPERT,)]


@pytest.mark.slow
def test_it_is_told_in_rows_sentences_and_json(done: tuple[Store, Ablation], tmp_path: Path) -> None:
    store, found = done
    rows, sentences, told = show_ablation(found)
    assert [(row["mode"], row["arm"]) for row in rows][:2] == [("A", "baseline"), ("A", "refined")]
    assert sentences[0].startswith("A: of 2 trainings accepted 2, better than the baseline 2, credited")
    assert len(told["comparisons"]) == 4
    assert told["verdicts"][0]["leads"]["oracle"].keys() == {"return", "low", "high"}
    pictures = draw_figures(store, tmp_path, comparison=told["comparisons"][0]["comparison_id"])
    assert all(">oracle<" in picture.read_text() for picture in pictures)


@pytest.mark.slow
def test_an_interrupted_ablation_goes_on_and_ends_as_one_that_was_not(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth, rough = (Store.open(shutil.copytree(labelled, tmp_path / name / "store")) for name in ("smooth", "rough"))
    short = configure(modes=("A",), seeds=1)
    expected = show_ablation(ablate(smooth, dataset(smooth), short)).values
    with monkeypatch.context() as patch:
        patch.setattr(comparing, "keep_candidates", interrupt_after(6, comparing.keep_candidates))
        with pytest.raises(KeyboardInterrupt):
            ablate(rough, dataset(rough), short)
    trained = count_trainings(monkeypatch)
    assert show_ablation(ablate(rough, dataset(rough), short)).values == expected
    assert len(trained) == 9 - 6
    assert state_of(rough.root) == state_of(smooth.root)


def interrupt_after(count: int, work: Callable[..., None]) -> Callable[..., None]:
    done: list[int] = []

    def keep(*values: Any) -> None:
        work(*values)
        done.append(1)
        if len(done) == count:
            raise KeyboardInterrupt

    return keep


def count_trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The draws that are really trained from now on."""
    trained: list[str] = []
    train = comparing.train_draws

    def counted(material: Any, draws: Any) -> Any:
        trained.extend(draw.name for draw in draws)
        return train(material, draws)

    monkeypatch.setattr(comparing, "train_draws", counted)
    return trained


@pytest.mark.slow
def test_what_was_trained_is_not_trained_again_and_an_expert_more_trains_its_own_arm_only(
    done: tuple[Store, Ablation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(shutil.copytree(done[0].root, tmp_path / "store"))
    trained = count_trainings(monkeypatch)
    plain = improve(store, dataset(store), small(mode="A"))
    assert trained == []
    with monkeypatch.context() as patch:
        patch.setattr(judging, "play_policies", None)  # nor is anything played
        assert show_comparison(improve(store, dataset(store), small(mode="A"))) == show_comparison(plain)
    other = small(mode="A").model_copy(update={"expert": f"policy:{tmp_path.name}"})
    with pytest.raises(BadInput, match="There is no policy"):
        improve(store, dataset(store), other)
    chosen = plain.comparison.policy_id
    improve(store, dataset(store), small(mode="A").model_copy(update={"expert": f"policy:{chosen}"}))
    assert trained == ["oracle"]
    shutil.rmtree(store.trainings_dir)
    assert improve(store, dataset(store), small(mode="A")).comparison_id == plain.comparison_id
    assert len(trained) == 1 + 6


def test_chance_is_no_expert(labelled: Path) -> None:
    store = Store.open(labelled)
    with pytest.raises(BadInput, match="random acts at random, so it cannot be an expert"):
        improve(store, dataset(store), small().model_copy(update={"expert": "random"}))


def test_modes_are_those_of_a_refinement() -> None:
    assert ablating.AblateConfig().modes == ("A", "R", "RA")
    with pytest.raises(ValueError, match=r"modes\.0"):
        AblateConfig.model_validate({"modes": ["B"]})
