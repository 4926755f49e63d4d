"""`--promote best`: the best accepted arm is put in force, arms share the error rate, and all says which arm it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from store_state import ask
from toy_environment import TOY, gather_toys, make_baseline, small_config, write_labels
from typer.testing import CliRunner

from annotate.importing.labels import import_annotations
from annotate.importing.rules import import_rules
from flows.cli import make_app
from flows.deployment.night import decide
from flows.refinement import comparison as comparing
from flows.refinement.evaluator import EvaluateConfig, evaluate
from flows.refinement.present import show_comparison
from flows.refinement.refinement import Outcome, improve
from flows.reporting.page import write_report
from flows.simulation.trust import Named
from refine.config import Snapshot
from storage.datasets.reader import read_manifest
from storage.policies.deployments import link_current
from storage.policies.policies import policy_record
from storage.store import Store


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one dataset and labels of chance."""
    folder = tmp_path_factory.mktemp("promote")
    made = Store.create(folder / "store")
    manifest = gather_toys(made, folder)
    import_annotations(made, write_labels(made, manifest.dataset_id, folder / "labels", "chance"))
    return made.root


@pytest.fixture
def toys(template: Path, tmp_path: Path) -> Store:
    """A copy of that store."""
    return Store.open(shutil.copytree(template, tmp_path / "copy" / "store"))


def dataset(store: Store) -> str:
    return ask(store, "SELECT dataset_id FROM datasets")[0][0]


def right_policy() -> Any:
    """The baseline's network, changed so that it pushes where the place lies most."""
    import numpy as np

    from refine.policies.mlp import MlpPolicy

    start = make_baseline()
    weights = (np.eye(2, 8), np.concatenate([np.array([[1.0, 0, -1, 0], [0, 1, 0, -1]]), np.zeros((6, 4))]))
    biases = (np.zeros(8), np.zeros(4))
    return MlpPolicy(start.observation_space, start.action_space, weights, biases, "tanh", "logits")


@pytest.fixture
def clones_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain cloning makes a perfect policy, all else the baseline."""

    def train(material: comparing.Material, draws: Sequence[comparing.ArmDraw]) -> list[list[Snapshot]]:
        policies = [right_policy() if draw.arm == "no_labels" else material.baseline for draw in draws]
        return [[Snapshot(policy, 10, 0.1, "mode")] for policy in policies]

    monkeypatch.setattr(comparing, "train_draws", train)


def refine(store: Store, **changes: Any) -> Outcome:
    config = small_config(gate={"placebo_draws": 2, "accept": 40}).model_copy(update={"promote": "best"} | changes)
    return improve(store, dataset(store), config)


@pytest.mark.slow
@pytest.mark.usefixtures("clones_well")
def test_cloning_that_is_accepted_is_put_in_force_and_everything_says_so(toys: Store) -> None:
    outcome = refine(toys)
    made = outcome.comparison
    assert (made.arm, made.accepted, made.decision.accepted) == ("no_labels", True, False)
    assert made.improvement.holds
    assert not made.credit.holds
    sentences = show_comparison(outcome).sentences
    assert any(line.startswith("gate, no_labels: accepted") for line in sentences)
    assert f"in force: {made.policy_id} (no_labels; refined, no_labels compete)" in sentences
    assert show_comparison(outcome).values["in_force"] == "no_labels"
    assert ask(toys, "SELECT promoted_arm, accepted, policy_id, better, credit FROM comparisons") == [
        ("no_labels", True, made.policy_id, True, False)
    ]
    kept = policy_record(toys, made.policy_id)
    config = json.loads(kept["config"])
    assert (config["arm"], config["gate"]["error_rate"]) == ("no_labels", 0.025)
    assert kept["baseline_id"] == outcome.baseline_id
    assert evaluate(toys, EvaluateConfig(policy=Named(made.policy_id), episodes=10))["return"] == 8
    decision = decide(outcome, None)
    assert (decision.promoted, decision.policy_id) == (True, made.policy_id)
    assert decision.reason.startswith("promoted the arm no_labels: accepted")


@pytest.mark.slow
@pytest.mark.usefixtures("clones_well")
def test_by_default_only_the_policy_of_the_labels_may_be_put_in_force(toys: Store) -> None:
    outcome = refine(toys, promote="labels")
    made = outcome.comparison
    assert (made.arm, made.accepted, made.policy_id) == (None, False, outcome.baseline_id)
    assert show_comparison(outcome).values["in_force"] == "baseline"
    assert ask(toys, "SELECT promoted_arm, accepted FROM comparisons") == [(None, False)]


@pytest.mark.slow
@pytest.mark.usefixtures("clones_well")
def test_commands_cope_with_cloning_in_force(toys: Store, tmp_path: Path) -> None:
    policy_id = refine(toys).comparison.policy_id
    written = write_report(toys, pictures=0, env_id=TOY).path.read_text(encoding="utf-8")
    assert policy_id in written
    assert '<span class="after">8.0</span>' in written
    link = link_current(toys, "toy", policy_id)
    assert (link / "policy.json").is_file()
    arguments = [
        "policy",
        "export",
        policy_id,
        "--store",
        str(toys.root),
        "--format",
        "torch",
        "--output",
        str(tmp_path / "x.pt"),
    ]
    done = CliRunner().invoke(make_app(), arguments)
    assert done.exit_code == 0, done.output
    assert ask(toys, "SELECT accepted_draws FROM leaderboard WHERE arm = 'no_labels'")[0] == (1,)


@pytest.mark.slow
def test_rules_that_are_played_compete_by_themselves(toys: Store, tmp_path: Path) -> None:
    x, y = read_manifest(toys, dataset(toys)).component_names[:2]
    pushes = [f"abs({x}) >= abs({y}) AND {x} > 0", f"abs({x}) >= abs({y})", f"{y} > 0", f"{y} <= 0"]
    rules = [{"predicate": p, "suggested_action": a} for p, a in zip(pushes, (0, 2, 1, 3), strict=True)]
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    import_rules(toys, dataset(toys), tmp_path / "rules.json", "a person")
    config = small_config(gate={"placebo_draws": 2}, snapshots=(1,)).model_copy(update={"promote": "best"})
    outcome = improve(toys, dataset(toys), config, rules=True)
    made = outcome.comparison
    assert made.competing == ("labels", "no_labels", "rules_played")
    assert made.arm == "rules_played"
    assert made.policy_id.startswith("rules-")
    (played,) = (arm for arm in made.arms if arm.arm == "rules_played")
    assert (played.accepted, played.draws, played.greedy.mean) == (1, 1, 8)
    assert ask(toys, "SELECT step, beta FROM candidates WHERE policy_id LIKE 'rules-%'") == [(0, 0.0)]
    assert evaluate(toys, EvaluateConfig(policy=Named(made.policy_id), env_id=TOY, episodes=10))["return"] == 8
    again = improve(toys, dataset(toys), config, rules=True)
    assert again.comparison_id == outcome.comparison_id
