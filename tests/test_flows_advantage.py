"""Replayed labels: the advantage is what twin environments give, costs nothing twice, and inexact states give none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from typer.testing import CliRunner

import flows.simulation.replay
from flows.cli import make_app
from flows.datasets.collection import CollectConfig, collect
from flows.labelling.label_replays import ReplayConfig, replay_labels
from flows.labelling.quality import check_labels
from flows.policies.loading import load_policy
from flows.simulation.environments import Spaces
from flows.simulation.replay import Branch, play_branches
from flows.simulation.trust import Named, find_home
from refine.policies.mlp import MlpPolicy
from storage.annotations.annotations import insert_annotations, load_label_replays
from storage.catalog import insert_rows
from storage.datasets import StepsWriter
from storage.datasets.reader import iterate_episodes, read_episode, read_manifest
from storage.errors import BadInput, Prerequisite
from storage.schema import Annotation, Manifest, ManifestDraft
from storage.store import Store

BASELINE = f"policy:{Path(__file__).parents[1] / 'examples' / 'cartpole' / 'baseline'}"
GREEDY = ReplayConfig(policy=BASELINE, mode="greedy")


def label(store: Store, manifest: Manifest, places: list[tuple[int, int]], *, same: bool = False) -> None:
    """Suggest at each (episode, step) the other action, or the same."""
    notes = [
        Annotation(
            annotation_id=f"n-{manifest.dataset_id}-{episode}-{step}-{same}",
            run_id="a_run",
            request_id=None,
            dataset_id=manifest.dataset_id,
            episode_id=episode,
            step=step,
            critical=True,
            suggested_action=(float(logged if same else 1 - logged),),
            suggested_label=None,
            implicit_reward=None,
            confidence=0.9,
            rationale=None,
            model="m",
            prompt_version=None,
        )
        for episode, step in places
        for logged in [int(read_episode(store, manifest.dataset_id, episode).actions[step])]
    ]
    with store.catalog.write() as con:
        insert_rows(
            con, "annotation_runs", [{"run_id": "a_run", "dataset_id": manifest.dataset_id, "provider": "file"}]
        )
        insert_annotations(con, notes)


@pytest.fixture
def poles(store: Store) -> Store:
    """Three episodes of chance in CartPole, with four labels and one confirmation."""
    manifest = collect(store, CollectConfig(env_id="CartPole-v1", policy="random", episodes=3, dataset="poles"))
    label(store, manifest, [(0, 0), (0, 5), (1, 3), (2, 7)])
    label(store, manifest, [(1, 4)], same=True)
    return store


def network() -> MlpPolicy:
    folder = Path(BASELINE.removeprefix("policy:"))
    return MlpPolicy.from_files({file.name: file.read_bytes() for file in folder.iterdir()})


def by_hand(store: Store, episode_id: int, step: int, action: int) -> float:
    """The return from a step on, played without any of the code that is tested."""
    episode = read_episode(store, "poles", episode_id)
    environment = gymnasium.make("CartPole-v1")
    environment.reset(seed=episode.seed)
    for earlier in range(step):
        environment.step(int(episode.actions[earlier]))
    total, policy, ended = 0.0, network(), False
    while not ended:
        shown, reward, terminated, truncated, _ = environment.step(action)
        total, ended = total + float(reward), terminated or truncated
        action = int(policy.act(np.asarray(shown, np.float32)[None], mode="greedy").actions[0])
    return total


@pytest.mark.slow
def test_the_advantage_is_what_twin_environments_give(poles: Store) -> None:
    summary = replay_labels(poles, "poles", GREEDY)
    assert (summary.labels, summary.confirmations, summary.replayed, summary.inexact) == (5, 1, 4, 0)
    rows = load_label_replays(poles, "poles")
    assert [(row.episode_id, row.step) for row in rows] == [(0, 0), (0, 5), (1, 3), (2, 7)]
    for row in rows:
        logged = int(read_episode(poles, "poles", row.episode_id).actions[row.step])
        assert row.suggested_return == by_hand(poles, row.episode_id, row.step, 1 - logged)
        assert row.logged_return == by_hand(poles, row.episode_id, row.step, logged)
        assert row.advantage == row.suggested_return - row.logged_return
        assert row.environment_steps == 2 * row.step + row.suggested_return + row.logged_return  # reward 1 a step
    assert summary.environment_steps == sum(row.environment_steps for row in rows)
    assert summary.advantage == pytest.approx(np.mean([row.advantage for row in rows]))


@pytest.mark.slow
def test_replays_are_played_once_and_a_larger_limit_adds_to_a_smaller_one(poles: Store) -> None:
    few = replay_labels(poles, "poles", GREEDY.model_copy(update={"limit": 2}))
    first = load_label_replays(poles, "poles")
    more = replay_labels(poles, "poles", GREEDY.model_copy(update={"limit": 3}))
    again = replay_labels(poles, "poles", GREEDY.model_copy(update={"limit": 3}))
    assert [(s.replayed, s.fresh) for s in (few, more, again)] == [(2, 2), (3, 1), (3, 0)]
    assert (again.environment_steps, again.advantage) == (0, more.advantage)
    assert {row.label_replay_id for row in first} < {row.label_replay_id for row in load_label_replays(poles, "poles")}


@pytest.mark.slow
def test_how_many_run_side_by_side_changes_nothing(poles: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = ReplayConfig(policy=BASELINE, mode="sampled", continuations=3)
    replay_labels(poles, "poles", chance)
    wide = load_label_replays(poles, "poles")
    with poles.catalog.write() as con:
        con.execute("DELETE FROM label_replays")
    monkeypatch.setattr(flows.simulation.replay, "LANES", 1)
    replay_labels(poles, "poles", chance)
    assert load_label_replays(poles, "poles") == wide
    assert all(len(row.advantages) == 3 and (row.standard_error or 0) >= 0 for row in wide)
    assert any(len(set(row.advantages)) > 1 for row in wide)


@pytest.mark.slow
def test_both_sides_of_a_pair_draw_the_same_chance(poles: Store) -> None:
    manifest = read_manifest(poles, "poles")
    episode = read_episode(poles, "poles", 0)
    policy = load_policy(Named(BASELINE), Spaces(manifest.observation_space, manifest.action_space))
    twins = [Branch(0, episode, 4, 1, pair) for pair in (0, 0, 1, 2, 3)]
    ends = list(play_branches(twins, manifest, find_home(poles, manifest), policy, mode="sampled"))
    by_pair = {pair: [end.return_ for end in ends if end.branch.pair == pair] for pair in range(4)}
    assert by_pair[0][0] == by_pair[0][1]
    assert len({returns[0] for returns in by_pair.values()}) > 1


@pytest.mark.slow
def test_a_state_that_cannot_be_reached_bit_for_bit_gives_no_advantage(poles: Store) -> None:
    draft = read_manifest(poles, "poles")
    changed = draft.model_copy(update={"dataset_id": "bent"})
    fields: dict[str, Any] = changed.model_dump(exclude={"shards", "episodes", "steps", "created_at"})
    with StepsWriter(poles, ManifestDraft(**fields)) as writer:
        for episode in iterate_episodes(poles, "poles"):
            bent = episode.observations.copy()
            bent[3, 0] = np.nextafter(bent[3, 0], np.float32(9))
            writer.write(replace(episode, observations=bent))
        manifest = writer.finish()
    label(poles, manifest, [(0, 2), (0, 5)])
    summary = replay_labels(poles, "bent", GREEDY)
    assert (summary.replayed, summary.inexact) == (1, 1)
    reached, missed = load_label_replays(poles, "bent")
    assert (reached.exact, missed.exact, missed.advantage, missed.advantages) == (True, False, None, ())
    assert missed.detail.startswith("not reached: step 3, observation")


@pytest.mark.slow
def test_a_horizon_cuts_continuations(poles: Store) -> None:
    replay_labels(poles, "poles", GREEDY.model_copy(update={"horizon": 5}))
    rows = load_label_replays(poles, "poles")
    assert all((row.suggested_return or 0) <= 5 for row in rows)
    assert any(row.suggested_return == 5 for row in rows)


@pytest.mark.slow
def test_without_the_policy_it_says_what_to_name(store: Store) -> None:
    manifest = collect(store, CollectConfig(env_id="CartPole-v1", policy=BASELINE, episodes=1, dataset="lost"))
    fields = manifest.model_dump(exclude={"shards", "episodes", "steps", "created_at"})
    gone = {"dataset_id": "gone", "policy": "policy:/nowhere", "policy_sha256": "0" * 64}
    with StepsWriter(store, ManifestDraft(**(fields | gone))) as writer:
        writer.write(read_episode(store, "lost", 0))
        there = writer.finish()
    label(store, there, [(0, 1)])
    with pytest.raises(Prerequisite, match=r"is not loaded\. If you trust it, name it with --policy"):
        replay_labels(store, "gone", ReplayConfig())


@pytest.mark.slow
def test_labels_without_a_simulator_are_refused(poles: Store) -> None:
    manifest = read_manifest(poles, "poles")
    fields = manifest.model_dump(exclude={"shards", "episodes", "steps", "created_at"})
    with StepsWriter(poles, ManifestDraft(**(fields | {"dataset_id": "seedless"}))) as writer:
        writer.write(replace(read_episode(poles, "poles", 0), seed=None))
        seedless = writer.finish()
    label(poles, seedless, [(0, 1)])
    with pytest.raises(BadInput, match="without a seed"):
        replay_labels(poles, "seedless", GREEDY)


@pytest.mark.slow
def test_the_commands_print_what_was_measured(poles: Store) -> None:
    arguments = [
        "annotations",
        "replay",
        "--store",
        str(poles.root),
        "--policy",
        BASELINE,
        "--mode",
        "greedy",
        "--json",
    ]
    replayed = CliRunner().invoke(make_app(), [*arguments, "--json"])
    assert replayed.exit_code == 0, replayed.output
    told = json.loads(replayed.stdout.splitlines()[-1])
    assert (told["replayed"], told["fresh"], told["confirmations"]) == (4, 4, 1)
    judged = CliRunner().invoke(make_app(), ["annotate", "quality", "--store", str(poles.root), "--json"])
    run = json.loads(judged.stdout.splitlines()[-1])["runs"][0]
    assert run["replays"]["replayed"] == 4
    assert run["replays"]["advantage"] == pytest.approx(told["advantage"])
    assert run["verdict"] == "too few to judge"  # five labels
    (checkup,) = check_labels(poles, "poles", ["a_r"])
    assert checkup.quality.labels == 5
