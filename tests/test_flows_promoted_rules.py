"""The rules themselves beside what was refined from them: reported, and put in force if the gate accepts them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from store_state import ask
from toy_environment import REACH, TOY, gather_toys, small_config

from annotate.importing.rules import import_rules
from flows.policies.loading import export_policy, load_policy, read_policy
from flows.refinement.present import show_comparison
from flows.refinement.refinement import Outcome, find_units, improve
from flows.simulation.environments import look_up_spaces
from flows.simulation.trust import Named
from refine.policies.rule_lists import RulePolicy
from storage.datasets.reader import read_manifest
from storage.errors import BadInput, DamagedStore
from storage.policies.policies import policy_files, policy_record
from storage.store import Store

pytestmark = pytest.mark.slow

RIGHT = [
    {"predicate": "obs_0 > abs(obs_1)", "suggested_action": 0},
    {"predicate": "obs_1 > abs(obs_0)", "suggested_action": 1},
    {"predicate": "-obs_0 > abs(obs_1)", "suggested_action": 2},
    {"predicate": "obs_1 < 1", "suggested_action": 3},
]
LAW = [
    {"predicate": "obs_0 > 0", "suggested_action": ["1.5 * abs(obs_0)"]},
    {"predicate": "obs_0 <= 0", "suggested_action": ["-1.5 * abs(obs_0)"]},
]


def make_store(folder: Path, env_id: str) -> tuple[Store, str]:
    store = Store.create(folder / "store")
    dataset_id = gather_toys(store, folder, env_id).dataset_id
    names = read_manifest(store, dataset_id).component_names
    rules = RIGHT if env_id == TOY else LAW
    text = json.dumps(rules).replace("obs_0", names[0]).replace("obs_1", names[1])
    (folder / "rules.json").write_text(text)
    import_rules(store, dataset_id, folder / "rules.json", "a person")
    return store, dataset_id


class Judged:
    """Refinements with rules, each made once."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.store = cache(lambda env_id: make_store(factory.mktemp("promoted"), env_id))

    @cache  # noqa: B019
    def outcome(self, env_id: str, promote: bool) -> Outcome:
        store, dataset_id = self.store(env_id)
        config = small_config(gate={"placebo_draws": 19}, snapshots=(40,)).model_copy(update={"promote_rules": promote})
        return improve(store, dataset_id, config, rules=True)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return Judged(tmp_path_factory)


def test_the_rules_played_are_a_row_of_every_refinement_with_rules(judged: Judged) -> None:
    outcome, (store, _) = judged.outcome(TOY, False), judged.store(TOY)
    arms = {arm.arm: arm for arm in outcome.comparison.arms}
    assert list(arms) == ["baseline", "labels", "no_labels", "shuffled", "random", "rules_played"]
    played = arms["rules_played"]
    assert (played.greedy.mean, played.greedy.n, played.draws, played.labels) == (8.0, 30, 0, 0)
    assert played.sampled is not None
    assert played.sampled.mean == 8.0
    assert outcome.comparison.policy_id.startswith("refined-")
    shown = show_comparison(outcome)
    assert shown.rows[-1] == {
        "arm": "rules_played",
        "labels": 0,
        "accepted": "",
        "greedy [95%]": "8.0 [8.0, 8.0]",
        "sampled [95%]": "8.0 [8.0, 8.0]",
    }
    assert shown.values["rules_played"] == {"return": 8.0, "low": 8.0, "high": 8.0}
    sql = "SELECT mode, return_ FROM arms WHERE arm = 'rules_played' AND comparison_id = ? ORDER BY mode"
    assert ask(store, sql, outcome.comparison_id) == [("greedy", 8.0), ("sampled", 8.0)]
    assert outcome.comparison.credit.differences.keys() == {"no_labels", "shuffled", "random"}
    assert "rules_played" not in outcome.comparison.credit.differences


def test_rules_that_may_win_are_candidates_beside_those_of_their_placebos(judged: Judged) -> None:
    outcome, (store, dataset_id) = judged.outcome(TOY, True), judged.store(TOY)
    comparison = outcome.comparison
    assert outcome.comparison_id != judged.outcome(TOY, False).comparison_id
    counts = {trial.draw.name: len(trial.candidates) - len(trial.snapshots) for trial in comparison.trials}
    assert counts == {"labels": 1, "no_labels": 0} | {
        f"{a} {n}": 1 for a in ("shuffled", "random") for n in range(1, 20)
    }
    assert comparison.decision.accepted
    assert comparison.policy_id.startswith("rules-")
    assert comparison.credit.holds
    kept = load_policy(Named(f"policy:{comparison.policy_id}"), look_up_spaces(TOY), store)
    assert isinstance(kept, RulePolicy)
    assert kept.sha256 == comparison.trials[0].kept.sha256
    record = policy_record(store, comparison.policy_id)
    assert (record["kind"], record["dataset_id"]) == ("refined", dataset_id)
    assert json.loads(record["config"])["rules"] is True
    chosen = "SELECT step, beta FROM candidates WHERE policy_id = ? AND chosen"
    assert ask(store, chosen, comparison.policy_id)[0] == (0, 0.0)
    with pytest.raises(BadInput, match="is a list of rules, which has no ONNX form"):
        export_policy(store, comparison.policy_id, None, format="onnx")


def test_promoted_rules_leave_as_one_json_that_plays_in_any_store(judged: Judged, tmp_path: Path) -> None:
    outcome, (store, _) = judged.outcome(TOY, True), judged.store(TOY)
    path = export_policy(store, outcome.comparison.policy_id, tmp_path / "law.json").path
    away = load_policy(Named(f"policy:{path}"), look_up_spaces(TOY))
    assert away.sha256 == outcome.comparison.trials[0].kept.sha256
    told = json.loads(path.read_text())
    assert [rule["predicate"] for rule in told["lists"][0]["listed"]["rules"]]
    for content, error in (
        ("[]", BadInput),
        ("{}", BadInput),
        (json.dumps(told | {"weights": "!"}), BadInput),
        (path.read_text().replace("> abs", "< abs"), DamagedStore),
    ):
        path.write_text(content)
        with pytest.raises(error):
            load_policy(Named(f"policy:{path}"), look_up_spaces(TOY))


def test_kept_rules_that_were_changed_are_damage(judged: Judged) -> None:
    outcome, (store, _) = judged.outcome(TOY, True), judged.store(TOY)
    files = policy_files(store, outcome.comparison.policy_id)
    assert read_policy(files, "it").to_files() == files  # pyright: ignore
    for old, new in (
        (b'"suggested_action": [', b'"suggested_action": [1, '),
        (b"> abs", b"< abs"),
        (b"abs", b"getenv"),
    ):
        with pytest.raises(DamagedStore):
            read_policy({**files, "policy.json": files["policy.json"].replace(old, new)}, "it")


def test_formulas_have_the_placebo_that_reads_other_components(judged: Judged) -> None:
    comparison = judged.outcome(REACH, True).comparison
    arms = {arm.arm: arm for arm in comparison.arms}
    assert list(arms) == ["baseline", "labels", "no_labels", "shuffled", "random", "permuted", "rules_played"]
    assert 0 < arms["permuted"].draws < 19  # some of 19 drew the formula's own component
    assert arms["permuted"].labels == arms["labels"].labels
    assert arms["rules_played"].greedy.mean == pytest.approx(0, abs=1e-9)
    assert "permuted" in comparison.credit.differences
    assert comparison.credit.holds
    assert comparison.policy_id.startswith("rules-")


def test_only_one_list_of_rules_can_be_put_in_force(judged: Judged, tmp_path: Path) -> None:
    store, dataset_id = make_store(tmp_path, TOY)
    config = small_config().model_copy(update={"promote_rules": True})
    names = read_manifest(store, dataset_id).component_names
    (tmp_path / "more.json").write_text(json.dumps([RIGHT[3]]).replace("obs_1", names[1]))
    import_rules(store, dataset_id, tmp_path / "more.json", "another person")
    with pytest.raises(BadInput, match="Only one list of rules can be put in force; this refinement uses 2"):
        improve(store, dataset_id, config, rules=True)


def test_units_come_from_the_datasets_card_by_the_names_of_columns(judged: Judged) -> None:
    store, dataset_id = judged.store(TOY)
    toy = read_manifest(store, dataset_id)
    assert find_units(store, toy) == {}
    named = {"env_id": "Pendulum-v1", "card_file_sha256": None, "env_kwargs": {}}
    pendulum = toy.model_copy(update={**named, "component_names": ("cos_angle", "step", "angular_velocity")})
    assert find_units(store, pendulum) == {"cos_angle": "", "angular_velocity": "rad/s"}
    assert find_units(store, pendulum.model_copy(update={"env_id": "Nothing-v0"})) == {}
