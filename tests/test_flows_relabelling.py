"""Relabelling: the learner plays, its rules label what it played, and nothing is played or trained twice."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_environment import REACH, gather_toys, small_config, write_labels

from annotate.importing.labels import import_annotations
from annotate.importing.rules import import_rules
from flows import cli
from flows.datasets import collection
from flows.refinement import comparison as comparing
from flows.refinement import evaluator as judging
from flows.refinement.present import show_relabelling
from flows.refinement.refinement import ImproveConfig, find_labels, improve
from flows.refinement.relabelling import Relabelled, RelabelRound, improve_and_relabel
from refine.labels.rule_labels import RuleLabels
from storage.annotations.rules import resolve_ruled_dataset
from storage.datasets import catalogued_episodes
from storage.datasets.reader import read_manifest, read_pool, resolve_dataset
from storage.errors import BadInput
from storage.policies.policies import policy_record
from storage.store import Store

pytestmark = pytest.mark.slow


def config(relabel: int = 1) -> ImproveConfig:
    return small_config(snapshots=(40,)).model_copy(update={"relabel": relabel})


def write_law(store: Store, dataset_id: str, path: Path) -> Path:
    x = read_manifest(store, dataset_id).component_names[0]
    rules = [
        {"predicate": f"{x} > 0", "suggested_action": [f"1.5 * abs({x})"]},
        {"predicate": f"{x} <= 0", "suggested_action": [f"-1.5 * abs({x})"]},
    ]
    path.write_text(json.dumps(rules))
    return path


class Made:
    """A store with a law, relabelled once."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.create(folder / "store")
        self.dataset_id = gather_toys(self.store, folder, REACH).dataset_id
        self.law = write_law(self.store, self.dataset_id, folder / "law.json")
        import_rules(self.store, self.dataset_id, self.law, "a person")
        self.found = improve_and_relabel(self.store, self.dataset_id, config(), rules=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("relabelled"))


def count(store: Store, table: str) -> int:
    with store.catalog.read() as con:
        return con.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]


def test_the_second_round_learns_also_from_what_the_learner_played_labelled_by_the_same_law(made: Made) -> None:
    first, second = made.found.rounds
    assert first.dataset_ids == (made.dataset_id,)
    assert (len(second.dataset_ids), second.dataset_ids[0]) == (2, made.dataset_id)
    assert (first.outcome.n_labels, second.outcome.n_labels) == (96, 192)
    old, new = (read_manifest(made.store, name) for name in second.dataset_ids)
    assert (new.episodes, new.policy_mode, new.component_names) == (12, "sampled", old.component_names)
    assert new.policy == f"policy:{first.tested.policy_id}"
    steps = read_pool(made.store, second.dataset_ids)
    labels = find_labels(made.store, second.dataset_ids, None, "A", rules=True).labels(old, steps, "A")
    assert isinstance(labels, RuleLabels)
    assert labels.rows.tolist() == np.flatnonzero(~steps.is_final).tolist()
    assert np.allclose(labels.suggestions[:, 0], 1.5 * steps.observation[labels.rows, 0])


def test_a_second_run_plays_trains_and_writes_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((judging, "play_policies"), (collection, "_play"), (comparing, "keep_candidates")):
        monkeypatch.setattr(module, name, None)  # playing or training anything would fail
    before = [count(made.store, name) for name in ("datasets", "evaluations", "comparisons", "policies")]
    again = improve_and_relabel(made.store, made.dataset_id, config(), rules=True)
    assert show_relabelling(again) == show_relabelling(made.found)
    assert [count(made.store, name) for name in ("datasets", "evaluations", "comparisons", "policies")] == before


def test_the_learner_plays_on_seeds_that_nothing_else_has_used(made: Made, tmp_path: Path) -> None:
    seeds = [
        {episode.seed for episode in catalogued_episodes(made.store, name)}
        for name in made.found.rounds[-1].dataset_ids
    ]
    assert not seeds[0] & seeds[1]
    assert min(filter(None, seeds[1])) >= 1 << 24
    store = Store.open(shutil.copytree(made.store.root, tmp_path / "store"))
    first = min(filter(None, seeds[1]))
    with store.catalog.write() as con:
        con.execute("DELETE FROM episodes WHERE seed >= ?", [first])
        con.execute("UPDATE evaluations SET first_seed = ?, episodes = 30 WHERE purpose = 'report'", [first - 2])
    elsewhere = improve_and_relabel(store, made.dataset_id, config(), rules=True).rounds[1].dataset_ids[1]
    assert min(episode.seed or 0 for episode in catalogued_episodes(store, elsewhere)) == first + 28


def test_the_environment_steps_are_those_of_datasets_and_of_the_gate_of_what_learned(made: Made) -> None:
    first, second = made.found.rounds
    with made.store.catalog.read() as con:
        rows = con.execute("SELECT episodes, steps FROM evaluations").fetchall()
    assert {steps / episodes for episodes, steps in rows} == {8.0}
    assert first.environment_steps is not None
    assert second.environment_steps is not None
    gated = first.environment_steps - 96
    # one candidate and the baseline on 20 acceptance seeds at most, and on 10 selection seeds
    assert 0 < gated <= 8 * 2 * 30
    assert 96 < second.environment_steps - first.environment_steps <= 96 + 8 * 30


def test_the_accepted_round_with_the_best_selection_counts(made: Made) -> None:
    def judged(accepted: bool, selection: float, like: int) -> RelabelRound:
        each = made.found.rounds[like]
        trial = replace(each.trial, decision=replace(each.trial.decision, accepted=accepted), selection=[selection])
        comparison = replace(each.outcome.comparison, trials=[trial, *each.outcome.comparison.trials[1:]])
        return replace(each, outcome=replace(each.outcome, comparison=comparison))

    assert Relabelled([judged(True, -2.0, 0), judged(True, -1.0, 1)]).best.number == 1
    assert Relabelled([judged(True, -2.0, 0), judged(False, -1.0, 1)]).best.number == 0
    assert Relabelled([judged(False, -2.0, 0), judged(False, -1.0, 1)]).best.number == 0
    assert Relabelled([judged(True, -1.0, 0), judged(True, -1.0, 1)]).best.number == 0


def test_a_rejected_learner_plays_too_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "store")
    dataset_id = gather_toys(store, tmp_path, REACH).dataset_id
    x = read_manifest(store, dataset_id).component_names[0]
    (tmp_path / "bad.json").write_text(json.dumps([{"predicate": "step >= 0", "suggested_action": [f"-2 * {x}"]}]))
    import_rules(store, dataset_id, tmp_path / "bad.json", "a person")
    first, second = improve_and_relabel(store, dataset_id, config(), rules=True).rounds
    assert not first.accepted
    assert first.outcome.comparison.policy_id == first.outcome.baseline_id
    assert read_manifest(store, second.dataset_ids[1]).policy == f"policy:{first.tested.policy_id}"
    kept = json.loads(policy_record(store, first.tested.policy_id)["config"])
    assert (kept["tried"], kept["arm"]) == (first.outcome.comparison_id, "labels")


def test_equal_lists_of_several_datasets_count_once(made: Made, tmp_path: Path) -> None:
    store = Store.open(shutil.copytree(made.store.root, tmp_path / "store"))
    datasets = made.found.rounds[1].dataset_ids
    import_rules(store, datasets[1], made.law, "another person")
    assert len(find_labels(store, datasets, None, "A", rules=True).lists) == 1
    x = read_manifest(store, datasets[1]).component_names[0]
    (tmp_path / "more.json").write_text(json.dumps([{"predicate": f"{x} > 0", "suggested_action": [1.0]}]))
    import_rules(store, datasets[1], tmp_path / "more.json", "another person")
    assert len(find_labels(store, datasets, None, "A", rules=True).lists) == 2


def test_without_a_name_the_newest_dataset_with_rules_is_meant(made: Made) -> None:
    assert resolve_dataset(made.store) == made.found.rounds[1].dataset_ids[1]
    assert resolve_ruled_dataset(made.store) == made.dataset_id
    assert resolve_ruled_dataset(made.store, resolve_dataset(made.store)) == resolve_dataset(made.store)


def test_labels_of_single_steps_are_not_relabelled(made: Made, tmp_path: Path) -> None:
    store = Store.open(shutil.copytree(made.store.root, tmp_path / "store"))
    import_annotations(store, write_labels(store, made.dataset_id, tmp_path / "labels", env_id=REACH))
    with pytest.raises(BadInput, match="Labels of single steps say nothing about new steps"):
        improve_and_relabel(store, made.dataset_id, config())


def test_none_is_what_improve_does(made: Made) -> None:
    found = improve_and_relabel(made.store, made.dataset_id, config(0), rules=True)
    assert len(found.rounds) == 1
    assert found.best.outcome.comparison_id == made.found.rounds[0].outcome.comparison_id
    plain = improve(made.store, made.dataset_id, config(0), rules=True)
    assert plain.comparison_id == found.best.outcome.comparison_id


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--relabel", "1"], "no annotations. It has rules"),
        (["--rules", "--relabel", "1", "--estimate"], "An estimate plays nothing"),
    ],
)
def test_what_cannot_be_relabelled_is_one_line(
    made: Made,
    words: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["trajnote", "refine", *words, "--store", str(made.store.root), "--dataset", made.dataset_id]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err.strip()
    assert problem in " ".join(said.split())
    assert len(said.splitlines()) == 1
