"""A list of rules that plays: step for step what it says of the recorded steps, and elsewhere the baseline."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_state import lend
from test_flows_rollout import network_for

from annotate.importing.rules import import_rules
from flows.datasets.collection import CollectConfig, collect
from flows.policies.loading import load_policy
from flows.refinement.evaluator import EvaluateConfig, evaluate
from flows.refinement.refinement import ask_expert
from flows.simulation.environments import look_up_spaces, make_environment
from flows.simulation.replay import Branch, play_branches
from flows.simulation.rollouts import rollout
from flows.simulation.trust import Home, Named
from refine.labels.labels import Labels
from refine.labels.rule_labels import labels_from_rules
from refine.policies.rule_lists import CompiledRules, Past, RulePolicy
from storage.annotations.annotations import Review, insert_reviews
from storage.annotations.rules import find_rule_list
from storage.datasets.reader import read_episode, read_manifest, read_steps
from storage.errors import BadInput
from storage.schema import Array, Manifest
from storage.store import Store

pytestmark = pytest.mark.slow

PENDULUM = {
    "terms": [
        {"name": "angle", "expression": "atan2(sin_angle, cos_angle)"},
        {"name": "turned", "expression": "sin_angle - previous.sin_angle"},
    ],
    "rules": [
        {"predicate": "step < 2", "suggested_action": {"torque": 0.5}},
        {"predicate": "abs(angle) < 1", "suggested_action": {"torque": "-9 * angle - 30 * turned"}},
        {"predicate": "speed > 0 AND step % 3 = 0", "suggested_action": {"torque": "sqrt(turned)"}},
        {"predicate": "speed < -1", "suggested_action": {"torque": "2 * sign(previous.speed)"}},
    ],
}
CARTPOLE = [{"predicate": "angle * previous.angle > 0 AND angle > 0", "suggested_action": 1}]
WORLDS: dict[str, tuple[Any, Sequence[str], Sequence[str]]] = {
    "Pendulum-v1": (PENDULUM, ("cos_angle", "sin_angle", "speed"), ("torque",)),
    "CartPole-v1": (CARTPOLE, ("x", "v", "angle", "spin"), ("left", "right")),
}


def make_store(folder: Path, env_id: str) -> Store:
    """A store with a baseline, a dataset of it, and a list of rules."""
    store = Store.create(folder / "store")
    rules, components, actions = WORLDS[env_id]
    for name, content in network_for(env_id).to_files().items():
        (folder / "baseline").mkdir(exist_ok=True)
        (folder / "baseline" / name).write_bytes(content)
    config = CollectConfig(
        env_id=Named(env_id), policy=Named(f"policy:{folder / 'baseline'}"), episodes=2, max_steps=40
    )
    manifest = collect(store, config, component_names=components, action_names=actions)
    (folder / "rules.json").write_text(json.dumps(rules))
    import_rules(store, manifest.dataset_id, folder / "rules.json", "a person")
    return store


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {env_id: make_store(tmp_path_factory.mktemp("played"), env_id).root for env_id in WORLDS}


@pytest.fixture
def pendulum(templates: dict[str, Path]) -> Store:
    return Store.open(lend(templates["Pendulum-v1"]))


def list_id(store: Store) -> str:
    with store.catalog.read() as con:
        return con.execute("SELECT list_id FROM rule_lists").fetchall()[0][0]


def open_rules(store: Store, env_id: str) -> RulePolicy:
    policy = load_policy(Named(f"rules:{list_id(store)[:5]}"), look_up_spaces(Named(env_id)), store)
    assert isinstance(policy, RulePolicy)
    return policy


def play(store: Store, env_id: str, **options: Any) -> Manifest:
    _, components, actions = WORLDS[env_id]
    fields: dict[str, Any] = {"policy": Named(f"rules:{list_id(store)}"), "episodes": 4, "max_steps": 60} | options
    config = CollectConfig(env_id=Named(env_id), **fields)
    return collect(store, config, component_names=components, action_names=actions)


@pytest.mark.parametrize("env_id", sorted(WORLDS))
@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_playing_does_step_for_step_what_the_list_says_of_the_recorded_steps(
    templates: dict[str, Path], env_id: str, mode: str
) -> None:
    store = Store.open(lend(templates[env_id]))
    manifest = play(store, env_id, mode=mode, envs=3)
    steps = read_steps(store, manifest.dataset_id)
    compiled = CompiledRules.of(find_rule_list(store, list_id(store)), manifest)
    labels = labels_from_rules([compiled], steps, manifest.action_space)
    acted = ~steps.is_final
    assert 0 < len(labels) < acted.sum()
    assert labels.without_value > 0 or env_id == "CartPole-v1"
    said: Array = labels.suggestions.astype(manifest.action_space.dtype)
    assert steps.action[labels.rows].tolist() == said.tolist()
    rest = np.setdiff1d(np.flatnonzero(acted), labels.rows)
    baseline = network_for(env_id).act(steps.observation[rest]).actions
    same = steps.action[rest].tolist() == baseline.tolist()
    assert same is (mode == "greedy")
    assert (manifest.policy_output, manifest.policy_sha256) == (None, open_rules(store, env_id).sha256)


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_an_episode_is_the_same_whatever_plays_beside_it(pendulum: Store, mode: Any) -> None:
    policy = open_rules(pendulum, "Pendulum-v1")
    make = lambda: make_environment(Named("Pendulum-v1"))  # noqa: E731
    options: dict[str, Any] = {"mode": mode, "max_steps": 30}
    together = list(rollout(make, policy, range(7), envs=3, **options))
    alone = [next(rollout(make, pickle.loads(pickle.dumps(policy)), [seed], **options)) for seed in range(7)]
    for one, other in zip(together, alone, strict=True):
        assert (one.observations.tobytes(), one.actions.tobytes()) == (
            other.observations.tobytes(),
            other.actions.tobytes(),
        )


def refuse_rules(store: Store, count: int) -> None:
    """A reviewer rejects the first rules of the store."""
    with store.catalog.write() as con:
        found = con.execute("SELECT rule_id, dataset_id FROM rules ORDER BY position LIMIT ?", [count]).fetchall()
        for item, (rule_id, dataset_id) in enumerate(found, 1):
            answer = Review(
                review_id=f"r{item}",
                run_id="i_review",
                queue_id="q",
                item=item,
                model="human:ann",
                dataset_id=dataset_id,
                episode_id=None,
                step=None,
                annotation_id=None,
                rule_id=rule_id,
                verdict="reject",
                critical=None,
                suggested_action=None,
                suggested_label=None,
                note=None,
                blind=None,
                answered_at=datetime(2030, 1, 1, tzinfo=UTC),
            )
            insert_reviews(con, [answer])


def test_rules_that_reviewers_refuse_do_not_play(pendulum: Store) -> None:
    before = open_rules(pendulum, "Pendulum-v1")
    refuse_rules(pendulum, 1)
    after = open_rules(pendulum, "Pendulum-v1")
    assert [rule.predicate for rule in after.lists[0].listed.rules] == [
        rule.predicate for rule in before.lists[0].listed.rules[1:]
    ]
    refuse_rules(pendulum, 4)
    with pytest.raises(BadInput, match="Reviewers have refused all rules of rules:i_"):
        open_rules(pendulum, "Pendulum-v1")


def test_a_branch_goes_on_as_the_episode_did(pendulum: Store) -> None:
    manifest = play(pendulum, "Pendulum-v1")
    episode = read_episode(pendulum, manifest.dataset_id, 1)
    branches = [Branch(step, episode, step, episode.actions[step], pair=0) for step in (0, 1, 13)]
    home = Home(Named("Pendulum-v1"), {})
    for ending in play_branches(branches, manifest, home, open_rules(pendulum, "Pendulum-v1"), mode="greedy"):
        assert ending.difference is None
        assert ending.return_ == pytest.approx(episode.rewards[ending.branch.step :].sum(), abs=1e-9)


def test_pooled_environments_give_the_same_actions_for_the_same_observations(pendulum: Store) -> None:
    pytest.importorskip("envpool")
    manifest = play(pendulum, "Pendulum-v1", engine="envpool")
    steps = read_steps(pendulum, manifest.dataset_id)
    acted = np.flatnonzero(~steps.is_final)
    past = Past(steps.observation[np.maximum(acted - 1, 0)], steps.step[acted])
    policy = open_rules(pendulum, "Pendulum-v1")
    assert policy.act(steps.observation[acted], past=past).actions.tolist() == steps.action[acted].tolist()


def test_rules_are_evaluated_in_the_environment_of_their_dataset(pendulum: Store) -> None:
    name = list_id(pendulum)
    found = evaluate(pendulum, EvaluateConfig(policy=Named(f"rules:{name}"), episodes=3, workers=1))
    assert (found["env_id"], found["policy_id"]) == ("Pendulum-v1", f"rules:{name}")
    begins = Named(f"rules:{name[:6]}")
    assert evaluate(pendulum, EvaluateConfig(policy=begins, episodes=3, workers=1)) == found
    named = EvaluateConfig(policy=begins, env_id=Named("Pendulum-v1"), episodes=3, workers=1)
    assert evaluate(pendulum, named)["policy_id"] == f"rules:{name}"


def test_rules_are_an_expert_and_a_policy_without_a_past_is_not_asked_for_one(pendulum: Store) -> None:
    manifest = read_manifest(pendulum, play(pendulum, "Pendulum-v1").dataset_id)
    steps = read_steps(pendulum, manifest.dataset_id)
    rows = np.arange(5, 25)
    labels = Labels(rows, steps.action[rows].astype(np.float64), np.ones(20), np.zeros(20))
    oracle = ask_expert(Named(f"rules:{list_id(pendulum)}"), labels, steps, manifest, pendulum)
    assert oracle.labels.suggestions.tolist() == labels.suggestions.tolist()
    with pytest.raises(BadInput, match="previous observation, which it was not given"):
        open_rules(pendulum, "Pendulum-v1").act(steps.observation[:2])


def test_the_hash_tells_lists_and_baselines_apart(pendulum: Store) -> None:
    policy = open_rules(pendulum, "Pendulum-v1")
    assert policy.sha256 == open_rules(pendulum, "Pendulum-v1").sha256
    other = RulePolicy(policy.lists, network_for("Pendulum-v1", seed=1))
    assert len({policy.sha256, other.sha256, RulePolicy((), policy.baseline).sha256, policy.baseline.sha256}) == 4


def test_what_cannot_be_played_is_refused_in_one_line(pendulum: Store) -> None:
    name = Named(f"rules:{list_id(pendulum)}")
    with pytest.raises(BadInput, match="There is no rule list 'nothing'"):
        load_policy(Named("rules:nothing"), look_up_spaces(Named("Pendulum-v1")), pendulum)
    with pytest.raises(BadInput, match="a list of rules in a store, but no store was given"):
        load_policy(name, look_up_spaces(Named("Pendulum-v1")))
    with pytest.raises(BadInput, match=f"{name} was made for an observation space with size 3"):
        load_policy(name, look_up_spaces(Named("CartPole-v1")), pendulum)
