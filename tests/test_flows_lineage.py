"""Lineage by SQL: from a policy to its dataset, runs and configuration, and from a label to its raw reply."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from scripted import ScriptedProvider
from store_state import ask, raw_reply
from toy_environment import CARD, answers_of, gather_toys, make_baseline, small_config

from annotate.cards.cards import load_card
from annotate.prompting.requests import AnnotateConfig
from annotate.providers.answers import text_message
from annotate.runs.plan import plan_run
from annotate.runs.run import annotate_run
from flows.datasets.recordings import take_in
from flows.policies.loading import find_recorded_baseline, record_baseline
from flows.refinement.refinement import Outcome, improve
from storage.policies.policies import files_sha256, policy_files
from storage.store import Store


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Outcome]:
    """A store where a scripted model labelled the toy's episodes, and the refinement that followed."""
    folder = tmp_path_factory.mktemp("lineage")
    made = Store.create(folder / "store")
    (folder / "card.toml").write_text(CARD)
    dataset_id = gather_toys(made, folder).dataset_id
    plan = plan_run(made, dataset_id, load_card(str(folder / "card.toml")), AnnotateConfig(model="toy"))
    answers = answers_of(made, dataset_id, plan.questions)
    annotate_run(made, plan, ScriptedProvider(lambda request: text_message(answers[request.request_id])))
    return made, improve(made, dataset_id, small_config())


@pytest.mark.slow
def test_a_refined_policy_leads_to_its_dataset_runs_baseline_and_configuration(refined: tuple[Store, Outcome]) -> None:
    store, outcome = refined
    (found,) = ask(
        store,
        """SELECT p.kind, d.env_id, d.policy_sha256 = b.config ->> 'policy_sha256', b.kind, r.model, r.provider,
                  p.config
           FROM policies p JOIN datasets d USING (dataset_id) JOIN policies b ON b.policy_id = p.baseline_id
           JOIN annotation_runs r ON list_contains(p.run_ids, r.run_id)
           WHERE p.policy_id = ?""",
        outcome.comparison.policy_id,
    )
    assert found[:-1] == ("refined", "toy_environment:Toy-v0", True, "baseline", "toy", "scripted")
    config = json.loads(found[-1])
    winner = outcome.comparison.trials[0].snapshots[outcome.comparison.trials[0].winner]
    assert (config["arm"], config["draw"], config["step"], config["beta"]) == ("labels", 0, winner.step, winner.beta)
    assert config["refine"]["betas"] == [0.1]
    assert config["gate"]["first_seed"] == 1_000_000
    assert config["versions"]["d3rlpy"] == importlib.metadata.version("d3rlpy")


@pytest.mark.slow
def test_the_files_of_every_policy_are_those_that_its_row_names(refined: tuple[Store, Outcome]) -> None:
    store, outcome = refined
    kept = ask(store, "SELECT policy_id, sha256, baseline_id, dataset_id FROM policies ORDER BY kind, policy_id")
    accepted = {trial.kept.policy_id for trial in outcome.comparison.trials if trial.decision.accepted}
    assert {policy_id for policy_id, *_ in kept} == accepted | {outcome.comparison.trials[-1].kept.policy_id}
    for policy_id, sha256, _, dataset_id in kept:
        assert files_sha256(policy_files(store, policy_id)) == sha256
        assert dataset_id == outcome.dataset_id
        record = json.loads((store.policy_dir(policy_id) / "record.json").read_text())
        assert record["dataset_id"] == dataset_id
        assert record["config"]


@pytest.mark.slow
def test_every_candidate_leads_to_its_refinement_and_to_the_returns_that_chose_it(
    refined: tuple[Store, Outcome],
) -> None:
    store, outcome = refined
    found = ask(
        store,
        """SELECT f.arm, c.number, c.return_ = e.return_, c.chosen
           FROM candidates c JOIN refinements f USING (refinement_id)
           JOIN evaluations e ON e.policy_id = c.policy_id AND e.purpose = 'select'
               AND e.mode = 'greedy' AND e.episodes = c.episodes
           WHERE f.comparison_id = ?""",
        outcome.comparison_id,
    )
    assert len(found) == 8 * 2
    assert all(same for _, _, same, _ in found)
    assert sum(chosen for *_, chosen in found) == 8


@pytest.mark.slow
def test_a_rejected_refinement_names_the_baseline_that_stays_and_why(refined: tuple[Store, Outcome]) -> None:
    store, outcome = refined
    rejected = [trial for trial in outcome.comparison.trials if not trial.decision.accepted]
    found = ask(store, "SELECT policy_id = baseline_id, reason FROM refinements WHERE NOT accepted")
    assert len(found) == len(rejected) > 0
    assert {same for same, _ in found} == {True}
    assert sorted(reason for _, reason in found) == sorted(trial.decision.reason for trial in rejected)


@pytest.mark.slow
def test_every_label_leads_back_to_its_raw_reply_and_its_run(refined: tuple[Store, Outcome]) -> None:
    store, outcome = refined
    found = ask(
        store,
        """SELECT a.request_id, a.episode_id, a.step, a.suggested_label, q.episode_id, r.model
           FROM annotations a JOIN annotation_runs r USING (run_id) JOIN responses USING (request_id)
           JOIN run_requests q ON q.request_id = a.request_id AND q.run_id = a.run_id""",
    )
    assert len(found) == outcome.n_labels == 96
    for request_id, episode_id, step, label, asked_episode, model in found[::11]:
        assert (episode_id, model) == (asked_episode, "toy")
        text = json.loads(raw_reply(store, request_id)["raw"])["content"][0]["text"]
        said = {entry["step"]: entry["suggested_action"] for entry in json.loads(text)["labels"]}
        assert said[step] == label


@pytest.mark.slow
def test_the_leaderboard_shows_every_arm_and_the_verdicts_where_they_belong(refined: tuple[Store, Outcome]) -> None:
    store, outcome = refined
    found = ask(
        store,
        """SELECT arm, mode, labels, draws, accepted_draws, return_, low, high, better, credit FROM leaderboard
           WHERE comparison_id = ? AND mode = 'greedy' ORDER BY arm""",
        outcome.comparison_id,
    )
    expected = [
        (arm.arm, "greedy", arm.labels, arm.draws, arm.accepted, arm.greedy.mean, arm.greedy.low, arm.greedy.high)
        for arm in outcome.comparison.arms
    ]
    assert [row[:-2] for row in found] == sorted(expected)
    verdicts = {row[0]: row[-2:] for row in found}
    assert verdicts.pop("labels") == (True, outcome.comparison.credit.answer)
    assert set(verdicts.values()) == {(None, None)}
    sampled = "SELECT better, credit FROM leaderboard WHERE mode = 'sampled'"
    assert set(ask(store, sampled)) == {(None, None)}
    leads = "SELECT lead, lead_low, lead_high FROM leaderboard WHERE arm = 'shuffled' AND mode = 'greedy'"
    lead = outcome.comparison.credit.differences["shuffled"]
    assert ask(store, leads) == [(lead.mean, lead.low, lead.high)]
    assert ask(store, "SELECT arm FROM leaderboard WHERE mode = 'greedy'")[0] == ("labels",)


def test_a_baseline_is_found_again_by_its_hash_and_kept_once(store: Store, tmp_path: Path) -> None:
    policy = make_baseline()
    assert find_recorded_baseline(store, policy.sha256) is None
    for origin in ("first", "second"):
        record_baseline(store, policy, env_id="Toy-v0", dataset_id="d1", origin=origin)
    found = find_recorded_baseline(store, policy.sha256)
    assert found is not None
    assert found.to_files() == policy.to_files()
    assert ask(store, "SELECT kind, config ->> 'origin' FROM policies") == [("baseline", "first")]
    assert find_recorded_baseline(store, "0" * 64) is None


@pytest.mark.slow
def test_an_adopted_dataset_keeps_its_lineage(refined: tuple[Store, Outcome], store: Store) -> None:
    made, outcome = refined
    manifest = take_in(store, made.dataset_dir(outcome.dataset_id))
    assert manifest.policy_sha256 == make_baseline().sha256
    assert ask(store, "SELECT policy_sha256 FROM datasets") == [(manifest.policy_sha256,)]
