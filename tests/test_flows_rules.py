"""Rules through the command line and through a refinement: coverage, lineage, placebos, refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from store_state import ask, lend
from toy_environment import REACH, gather_toys, small_config, write_labels

from annotate.importing.labels import import_annotations
from annotate.importing.rules import import_rules
from flows import cli
from flows.refinement.refinement import find_labels, improve
from flows.reporting.page import write_report
from refine.labels.rule_labels import RuleLabels
from storage.datasets.reader import read_manifest, read_steps
from storage.errors import BadInput, Prerequisite
from storage.store import Store

RIGHT = [
    {"predicate": "obs_0 > abs(obs_1)", "suggested_action": 0, "confidence": 0.9, "rationale": "it lies in the east"},
    {"predicate": "obs_1 > abs(obs_0)", "suggested_action": 1, "confidence": 0.9},
    {"predicate": "-obs_0 > abs(obs_1)", "suggested_action": 2, "confidence": 0.9},
    {"predicate": "obs_1 < 1", "suggested_action": 3, "confidence": 0.9},
]
Run = Callable[..., str]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one dataset, and the best policy of its world as four rules."""
    folder = tmp_path_factory.mktemp("rules")
    made = Store.create(folder / "store")
    dataset_id = gather_toys(made, folder).dataset_id
    names = read_manifest(made, dataset_id).component_names
    text = json.dumps(RIGHT).replace("obs_0", names[0]).replace("obs_1", names[1])
    (folder / "rules.json").write_text(text)
    import_rules(made, dataset_id, folder / "rules.json", "a person")
    return made.root


@pytest.fixture
def toys(template: Path) -> Store:
    return Store.open(lend(template))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["trajnote", *words])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        said = capsys.readouterr()
        assert int(leaving.value.code or 0) == code, said.err
        return said.err if code else said.out

    return call


def one(store: Store, sql: str) -> str:
    return ask(store, sql)[0][0]


def dataset(store: Store) -> str:
    return one(store, "SELECT dataset_id FROM datasets")


@pytest.mark.slow
def test_rules_refine_the_policy_and_it_leads_back_to_them(toys: Store) -> None:
    outcome = improve(toys, dataset(toys), small_config(), rules=True)
    assert outcome.n_labels == 96
    assert outcome.comparison.decision.accepted
    arms = {arm.arm: arm.greedy.mean for arm in outcome.comparison.arms}
    assert arms["labels"] > 6 > max(value for name, value in arms.items() if name not in ("labels", "rules_played"))
    with toys.catalog.read() as con:
        found = con.execute(
            """SELECT count(*), min(predicate) FROM rules JOIN (SELECT unnest(run_ids) AS run_id FROM policies
               WHERE policy_id = ?) USING (run_id)""",
            [outcome.comparison.policy_id],
        ).fetchall()
    assert found[0][0] == 4


@pytest.mark.slow
def test_a_run_of_rules_is_taken_by_its_name_and_never_mixed_with_labels(toys: Store, tmp_path: Path) -> None:
    name, rule_run = dataset(toys), one(toys, "SELECT run_id FROM rules")
    steps = read_steps(toys, name)
    with pytest.raises(Prerequisite, match="It has rules: refine with --rules"):
        find_labels(toys, [name], None, "A", rules=False)
    found = find_labels(toys, [name], [rule_run], "A", rules=False)
    labels = found.labels(read_manifest(toys, name), steps, "A")
    assert isinstance(labels, RuleLabels)
    assert (len(labels), found.run_ids) == (96, [rule_run])
    import_annotations(toys, write_labels(toys, name, tmp_path / "labels"))
    assert find_labels(toys, [name], None, "A", rules=False).lists == []
    assert find_labels(toys, [name], None, "A", rules=True).notes == []
    both = [rule_run, one(toys, "SELECT run_id FROM annotations")]
    with pytest.raises(BadInput, match="labels of single steps and rules"):
        find_labels(toys, [name], both, "A", rules=False)
    with pytest.raises(BadInput, match=f"The rules {rule_run} have no potential, which is what mode R learns from"):
        find_labels(toys, [name], None, "R", rules=True)


@pytest.mark.slow
def test_mode_r_learns_from_a_potential_beside_its_placebos(toys: Store, tmp_path: Path) -> None:
    name = dataset(toys)
    first = read_manifest(toys, name).component_names[0]
    law = {"rules": [{"predicate": f"{first} < 99", "suggested_action": 0}], "potential": f"ln({first})"}
    (tmp_path / "law.json").write_text(json.dumps(law))
    run_id = import_rules(toys, name, tmp_path / "law.json", "a person").run_id
    with pytest.raises(BadInput, match="have no potential"):
        find_labels(toys, [name], None, "R", rules=True)
    outcome = improve(toys, name, small_config(mode="R", critic_steps=50, snapshots=(50,)), run_ids=[run_id])
    arms = {arm.arm: arm.greedy.mean for arm in outcome.comparison.arms}
    assert arms.keys() == {"baseline", "labels", "no_labels", "shuffled", "random", "rules_played"}
    assert arms["labels"] not in (arms["no_labels"], arms["shuffled"], arms["random"])
    assert any("the potential has no value in" in warning for warning in outcome.warnings)


@pytest.mark.slow
def test_a_dataset_without_rules_says_how_to_get_some(tmp_path: Path, run: Run) -> None:
    store = Store.create(tmp_path / "store")
    gather_toys(store, tmp_path, REACH)
    for words in (["refine", "--rules"], ["rules", "list"]):
        assert "trajnote rules import" in run(*words, "--store", str(store.root), code=3)


@pytest.mark.slow
def test_rules_are_listed_with_coverage_agreement_and_conflicts(toys: Store, run: Run) -> None:
    told = json.loads(run("rules", "list", "--store", str(toys.root), "--json").splitlines()[-1])
    assert (told["covered"], told["steps"], len(told["rules"])) == (96, 96, 4)
    assert sum(rule["decides"] for rule in told["rules"]) == 96
    assert told["rules"][3]["steps"] == 96
    assert {pair["decides"] for pair in told["conflicts"]} == {rule["rule_id"] for rule in told["rules"][:3]}
    said = run("rules", "list", "--store", str(toys.root))
    assert "4 rules match 96 of 96 steps (100.0%)" in said
    assert "conflicts: steps that two rules match with different actions" in said


def test_rules_are_imported_once(toys: Store, tmp_path: Path, run: Run) -> None:
    column = read_manifest(toys, dataset(toys)).component_names[0]
    (tmp_path / "more.csv").write_text(f"predicate,suggested_action\n{column} > 0.5,0\n")
    words = ["rules", "import", str(tmp_path / "more.csv"), "--store", str(toys.root)]
    assert run(*words).startswith("1 new rules of 1 for ")
    assert "0 new rules of 1" in run(*words)
    (tmp_path / "bad.csv").write_text("predicate,suggested_action\nread_text(x) > 0.5,0\n")
    error = run("rules", "import", str(tmp_path / "bad.csv"), "--store", str(toys.root), code=2)
    assert "rule 1: the function `read_text` is not allowed" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_report_shows_rules_and_the_health_of_labels_passes_over_them(
    toys: Store, tmp_path: Path, run: Run
) -> None:
    pytest.importorskip("altair")
    name = dataset(toys)
    assert "gave rules, not labels" in run("annotate", "quality", "--store", str(toys.root), code=3)
    import_annotations(toys, write_labels(toys, name, tmp_path / "labels"))
    page = write_report(toys, name, pictures=0).path.read_text()
    assert "it lies in the east" in page
    assert "4 rules match 96 of 96 steps" in page
    assert "100% of" in page
    checked = json.loads(run("annotate", "quality", "--store", str(toys.root), "--json").splitlines()[-1])
    assert len(checked["runs"]) == 1


@pytest.mark.slow
def test_rules_list_shows_the_steps_that_a_formula_leaves_without_a_value(tmp_path: Path, run: Run) -> None:
    store = Store.create(tmp_path / "store")
    manifest = gather_toys(store, tmp_path, REACH)
    x = manifest.component_names[0]
    law = {"rules": [{"predicate": f"{x} > -99", "suggested_action": f"0 * ln({x})"}]}
    (tmp_path / "law.json").write_text(json.dumps(law))
    import_rules(store, manifest.dataset_id, tmp_path / "law.json")
    steps = read_steps(store, manifest.dataset_id)
    without = int((steps.observation[~steps.is_final, 0] <= 0).sum())
    assert without > 0
    said = run("rules", "list", "--store", str(store.root))
    assert "no value" in said
    assert f" {without} " in f" {' '.join(said.split())} "
