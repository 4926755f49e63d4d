"""The board: what is counted, what is kept, and what the table says, in a world whose best policy is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_environment import CARD, REACH, TOY, gather_toys, make_baseline, save_folder, small_config, write_answers

from annotate.importing.rules import import_rules
from benchmarks.board import __main__ as command
from benchmarks.board import jobs, online, refined, ruled
from benchmarks.board.entries import Entry, list_entries
from benchmarks.board.jobs import Job, budget_of, run_job
from benchmarks.board.online import train_until
from benchmarks.board.refined import best_rows, make_labels
from benchmarks.board.resets import Counted, CriticalResets
from benchmarks.board.results import gain, interval_over_trainings, summarise
from benchmarks.board.rows import Row, append_row, read_rows
from benchmarks.board.scenes import CONTROLLERS, Scene, Sources, TrainedExpert, set_scene, spread_states
from benchmarks.board.table import draw_labels, draw_rules, draw_table, write_between
from flows.simulation.environments import make_environment
from storage.datasets.reader import iterate_episodes, read_manifest, read_steps
from storage.errors import BadInput, Prerequisite
from storage.schema import Episode, Manifest
from storage.store import Store

ENTRY = Entry("Toy-v0", TOY, {}, episodes=6, select=4, accept=10, report=10)


@pytest.fixture
def scene(store: Store, tmp_path: Path) -> Scene:
    """The toy world with a baseline, recorded answers of a model that knows the best policy, and no expert."""
    example = tmp_path / "examples" / "toy"
    save_folder(make_baseline(), example / "baseline")
    (tmp_path / "toy.toml").write_text(CARD)
    entry = replace(ENTRY, card=str(tmp_path / "toy.toml"))
    sources = Sources(tmp_path / "nothing", examples=tmp_path / "examples")
    bare = set_scene(store, entry, sources)
    write_answers(store, bare.manifest.dataset_id, tmp_path / "toy.toml", example / "answers.jsonl", model="claude")
    return set_scene(store, entry, sources)


@pytest.fixture
def ruled_scene(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """The world of reaching with a law that is right; a training of it is small."""
    monkeypatch.setattr(ruled, "RefineConfig", lambda seed: small_config(seed=seed).refine)
    save_folder(make_baseline(REACH), tmp_path / "examples" / "reach" / "baseline")
    entry = Entry("Reach-v0", REACH, {}, episodes=6, select=4, accept=12, report=10)
    bare = set_scene(store, entry, Sources(tmp_path / "nothing", examples=tmp_path / "examples"))
    assert bare.unruled == "no recorded rules in reach/rules.jsonl"
    x = bare.manifest.component_names[0]
    (tmp_path / "law.json").write_text(f'[{{"predicate": "{x} < 9", "suggested_action": ["1.5 * {x}"]}}]')
    imported = import_rules(store, bare.manifest.dataset_id, tmp_path / "law.json", "a person")
    return replace(bare, rules_run=imported.run_id)


@pytest.fixture
def logged(store: Store, tmp_path: Path) -> tuple[Manifest, dict[int, Episode]]:
    manifest = gather_toys(store, tmp_path)
    return manifest, {e.episode_id: e for e in iterate_episodes(store, manifest.dataset_id)}


def resetting(manifest: Manifest, episodes: dict[int, Episode], probability: float = 1.0) -> CriticalResets:
    environment = Counted(make_environment(TOY))
    options: dict[str, Any] = {"states": [(3, 5)], "probability": probability, "seed": 0}
    return CriticalResets(environment, episodes, manifest, **options)


def make_row(arm: str, seed: int = 0, greedy: tuple[float, ...] = (1.0, 2.0), **changes: Any) -> Row:
    return Row(key=f"{arm}{seed}", env="Toy-v0", arm=arm, seed=seed, greedy=greedy, **changes)


@pytest.mark.slow
def test_a_reset_leads_to_the_critical_state_and_its_way_there_is_counted(
    logged: tuple[Manifest, dict[int, Episode]],
) -> None:
    environment = resetting(*logged)
    for times in (1, 2, 3):
        observation, _ = environment.reset()
        assert observation.tolist() == logged[1][3].observations[5].tolist()
        assert (environment.replayed, environment.counted.steps) == (5 * times, 5 * times)
    ended = [environment.step(0)[2] for _ in range(3)]
    assert ended == [False, False, True]  # the world ends after 8 steps, 5 of which were replayed
    assert environment.counted.steps == 18
    assert environment.missed == 0


@pytest.mark.slow
def test_chance_is_drawn_anew_behind_a_critical_state(logged: tuple[Manifest, dict[int, Episode]]) -> None:
    environment = resetting(*logged)
    following: list[list[float]] = []
    for _ in range(3):
        environment.reset()
        following.append(environment.step(0)[0].tolist())
    assert len({tuple(shown) for shown in following}) == 3
    assert logged[1][3].observations[6].tolist() not in following


@pytest.mark.slow
def test_a_state_that_is_not_reached_exactly_is_counted_and_left(logged: tuple[Manifest, dict[int, Episode]]) -> None:
    manifest, episodes = logged
    other = replace(episodes[3], rewards=episodes[3].rewards + 1)
    environment = resetting(manifest, {3: other})
    expected = make_environment(TOY)
    expected.reset(seed=7)
    observation, _ = environment.reset(seed=7)
    assert observation.tolist() == expected.reset()[0].tolist()
    assert (environment.missed, environment.replayed) == (1, 1)


@pytest.mark.slow
def test_without_probability_it_resets_as_the_environment_does(logged: tuple[Manifest, dict[int, Episode]]) -> None:
    environment = resetting(*logged, probability=0.0)
    environment.reset(seed=7)
    assert environment.counted.steps == environment.replayed == 0


def test_training_stops_with_the_rollout_in_which_the_budget_is_used_up() -> None:
    spent = [0]
    train_until(lambda: spent.__setitem__(0, spent[0] + 40), lambda: spent[0], 100)
    assert spent[0] == 120


def test_the_budget_is_the_dataset_and_the_gate_of_the_labelled_refinement() -> None:
    rows = {
        arm: make_row(arm, collected_steps=100, gate_steps=steps)
        for arm, steps in {"baseline": 10, "labels": 70, "oracle": 50}.items()
    }
    assert budget_of(rows) == 170
    failed = rows["labels"].model_copy(update={"status": "failed", "gate_steps": 0})
    assert budget_of(rows | {"labels": failed}) == 150
    assert budget_of({"baseline": rows["baseline"]}) == 0


def test_more_training_has_the_steps_of_the_method_that_it_is_compared_with() -> None:
    steps = {"rules": 70, "relabelled": 300, "labels": 20}
    rows = {arm: make_row(arm, collected_steps=100, gate_steps=n) for arm, n in steps.items()}
    arms = ("continued", "continued_rules", "continued_relabelled", "placebos")
    assert [budget_of(rows, arm) for arm in arms] == [120, 170, 400, 0]


def test_rows_survive_a_line_that_was_cut_off_and_the_newest_counts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_row(file, make_row("labels", 0))
    with file.open("ab") as half:
        half.write(b'{"key": "lab')
    append_row(file, make_row("labels", 1))
    append_row(file, make_row("labels", 0, greedy=(5.0, 6.0)))
    rows = read_rows(file)
    assert [(row.seed, row.greedy) for row in rows] == [(0, (5.0, 6.0)), (1, (1.0, 2.0))]


def test_an_interval_is_over_training_seeds_too() -> None:
    apart = interval_over_trainings(np.repeat([[0.0], [1.0]], 50, axis=1))
    assert apart.mean == 0.5
    assert apart.high == pytest.approx(0.5 + 12.706 * 0.5, abs=0.001)  # t with one degree of freedom
    alike = interval_over_trainings(np.tile([0.0, 1.0], (5, 50)))
    assert alike.high == pytest.approx(0.5 + 1.965 * 0.5025 / 500**0.5, abs=0.001)
    assert alike.n == 500
    assert alike.mean - alike.low == pytest.approx(alike.high - alike.mean)


def test_a_gain_is_paired_by_training_seed_and_episode() -> None:
    rows = [make_row("labels", seed, (11.0 + seed, 21.0)) for seed in range(3)]
    rows += [make_row("random", seed, (1.0 + seed, 11.0)) for seed in range(2)]
    found = gain({result.arm: result for result in summarise(rows)}, "labels", "random")
    assert found is not None
    assert (found.low, found.mean, found.high, found.n) == (10.0, 10.0, 10.0, 4)


def test_the_table_has_every_method_and_says_why_one_failed() -> None:
    rows = [make_row("baseline", seed, (1.0, 1.0), collected_steps=5) for seed in range(5)]
    rows += [make_row("labels", s, (9.0, 9.0), accepted=s > 0, labels=8, dollars=0.5, gate_steps=45) for s in range(5)]
    rows.append(make_row("rice", 0, (), status="failed", reason="no model.zip | at all"))
    lines = draw_table(summarise(rows)).splitlines()
    assert lines[2].startswith("| Toy-v0 | baseline |  | 1.00 [1.00, 1.00] |")
    assert lines[3] == "|  | labelled | 4 of 5 | 9.0 [9.0, 9.0] |  | 8 | 0.50 | 45 | 0 |"
    assert lines[4].startswith("|  | RICE's resets | failed: no model.zip / at all |")


def test_rules_have_a_table_of_their_own_with_wins_ties_and_losses() -> None:
    returns = {"baseline": 1.0, "rules": 9.0, "rules_played": 10.0, "relabelled": 4.0}
    returns |= {"continued_rules": 5.0, "continued_relabelled": 5.0}
    rows = [make_row(arm, 0, (found, found), accepted=arm == "rules") for arm, found in returns.items()]
    rows.append(make_row("placebos", 0, (2.0, 2.0), credited=True))
    drawn = draw_rules(summarise(rows))
    assert "|  | rules | 1 | 1 of 1 | 1 of 1 | 9.0 [9.0, 9.0] |" in drawn
    assert "| Toy-v0 | 4.0 [4.0, 4.0] | win | -1.00 [-1.00, -1.00] | loss |" in drawn
    assert "- rules against PPO continued: 1 win, 0 tie, 0 loss, 0 not played." in drawn
    assert "- rules, relabelled against PPO continued: 0 win, 0 tie, 1 loss, 0 not played." in drawn
    assert "| Other-v0 | not played |  | not played |  |" in draw_rules(summarise(rows), ["Other-v0"])
    assert draw_labels(summarise(rows)) == draw_rules(summarise(rows[:1])) == ""


def test_the_table_goes_to_its_place_in_a_page_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- board: begin -->\nold\n<!-- board: end -->\nafter\n")
    write_between(page, "board", r"new \1")
    assert page.read_text() == "before\n<!-- board: begin -->\nnew \\1\n<!-- board: end -->\nafter\n"
    with pytest.raises(BadInput, match="no place for noise"):
        write_between(page, "noise", "x")


def test_the_best_tenth_is_whole_episodes_and_at_least_one(store: Store, tmp_path: Path) -> None:
    steps = read_steps(store, gather_toys(store, tmp_path).dataset_id)
    returns = [float(steps.reward[steps.episode_id == episode].sum()) for episode in steps.episodes]
    rows = best_rows(steps)
    assert set(steps.episode_id[rows]) == {steps.episodes[int(np.argmax(returns))]}
    assert steps.step[rows].tolist() == list(range(8))
    assert spread_states(steps, 4)[:4].tolist() == [1, 3, 5, 7]


@pytest.mark.slow
def test_without_an_annotator_there_is_no_shuffled_arm_and_without_an_expert_no_oracle(scene: Scene) -> None:
    steps = scene.read_steps()
    unlabelled = replace(scene, labels=None, unlabelled="no recorded answers")
    with pytest.raises(Prerequisite, match="no recorded answers"):
        make_labels(unlabelled, "shuffled", steps, 0)
    with pytest.raises(Prerequisite, match="no expert"):
        make_labels(scene, "oracle", steps, 0)
    spread = make_labels(unlabelled, "no_labels", steps, 0)
    assert spread.suggestions.tolist() == steps.action[spread.rows].tolist()
    expert = replace(scene, expert=TrainedExpert(scene.baseline))
    assert set(make_labels(expert, "oracle", steps, 0).suggestions.tolist()) == {0}  # it pushes east for ever


@pytest.mark.slow
def test_rows_are_made_once_and_shown_on_the_leaderboard(
    scene: Scene, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(ENTRY, name="Other-v0")
    monkeypatch.setattr(command, "list_entries", lambda: {"Toy-v0": scene.entry, "Other-v0": other})
    monkeypatch.setattr(refined, "RefineConfig", lambda seed: small_config(seed=seed).refine)
    monkeypatch.setattr(command, "Sources", lambda *_, **__: Sources(tmp_path, examples=tmp_path / "examples"))
    out = tmp_path / "rows.jsonl"
    run: dict[str, Any] = {
        "store": store.root,
        "out": out,
        "baselines": tmp_path,
        "answers": None,
        "seeds": 2,
        "workers": 1,
    }
    command.run(["Toy-v0", "Other-v0"], arms="baseline,labels,continued", **run)
    rows = {(row.arm, row.seed): row for row in read_rows(out) if row.env == "Toy-v0"}
    assert rows["labels", 0].accepted
    assert rows["labels", 0].labels == 48
    assert np.mean(rows["labels", 0].greedy) > 5 > np.mean(rows["baseline", 0].greedy)
    assert rows["continued", 1].reason == "no model.zip beside the baseline"
    assert rows["labels", 0].gate_steps == 8 * (3 * 4 + 10 + 10)  # the baseline is chosen from and tested, too
    board = "SELECT arm, mode, draws, accepted_draws, episodes, better FROM leaderboard ORDER BY ALL"
    with store.catalog.read() as con:
        shown = con.execute(board).fetchall()
    assert shown[-1] == ("labels", "sampled", 2, 2, 20, True)
    assert len(shown) == 4
    before = read_rows(out)
    assert [row.reason for row in before if row.env == "Other-v0"] == ["no baseline of Other-v0"]
    monkeypatch.setattr(jobs, "play", None)  # playing anything would fail
    command.run(["Toy-v0"], arms="baseline,labels", **run)
    assert read_rows(out) == before


@pytest.mark.slow
def test_more_training_uses_the_budget_and_starts_at_critical_states(scene: Scene, tmp_path: Path) -> None:
    from stable_baselines3 import PPO

    from flows.simulation.environments import look_up_spaces
    from refine.policies import sb3_models as baselines

    model = PPO("MlpPolicy", make_environment(TOY), n_steps=16, batch_size=64, policy_kwargs={"net_arch": [8]})
    model.save(tmp_path / "model.zip")
    network = baselines.from_sb3(model, *look_up_spaces(TOY))
    started = replace(scene, baseline=network, model_zip=tmp_path / "model.zip")
    out = tmp_path / "rows.jsonl"
    rows = {arm: run_job(Job(started, arm, 0, out, budget=300)) for arm in ("continued", "rice")}
    assert {row.status for row in rows.values()} == {"done"}, rows
    assert rows["continued"].train_steps == 384  # three rollouts of 8 times 16 steps
    assert 300 <= rows["rice"].train_steps < 300 + 128 + 8 * 8 * 8
    assert rows["rice"].replayed_steps > 0 == rows["continued"].replayed_steps
    assert "48 states that the annotator marked; 0 replays were not exact" in rows["rice"].reason
    refused = run_job(Job(replace(started, baseline=make_baseline()), "continued", 0, out, budget=300))
    assert refused.reason == "model.zip does not hold the baseline's weights"


def test_the_controllers_reach_the_goal_where_training_did_not() -> None:
    for name, at_least in (("MountainCar-v0", -160.0), ("MountainCarContinuous-v0", 80.0)):
        environment = make_environment(name)
        observation, _ = environment.reset(seed=0)
        total, over = 0.0, False
        while not over:
            action = CONTROLLERS[name](observation[None])[0]
            observation, reward, terminated, truncated, _ = environment.step(action)
            total, over = total + float(reward), terminated or truncated
        assert total > at_least


def test_every_environment_of_the_issue_is_on_the_board() -> None:
    entries = list_entries()
    assert len(entries) == 17
    assert entries["LunarLander-v3-continuous"].example_names == ("lunarlandercontinuous",)
    assert entries["Pong"].example_names == ("pong", "pongobjects")
    assert entries["CartPole-v1"].mode == "sampled"
    first, second = (entries["Hopper-v5"].gate(seed).seeds for seed in (0, 1))
    assert max(first.report) < min(second.select)
    for entry in entries.values():
        assert 5 * entry.report >= 100
        assert entry.card is None or Path(entry.card).is_file()


@pytest.mark.slow
def test_a_law_is_learnt_credited_and_played_and_more_rounds_cost_more_steps(
    ruled_scene: Scene, tmp_path: Path
) -> None:
    made: dict[str, Row] = {}
    for arm in ("baseline", "rules", "rules_played", "relabelled", "placebos", "placebos_relabelled"):
        before, judged = made.get("baseline"), made.get(jobs.JUDGED.get(arm, ""))
        made[arm] = run_job(Job(ruled_scene, arm, 0, tmp_path / "rows.jsonl", before, judged))
    assert {row.status for row in made.values()} == {"done"}, made
    assert all(made[arm].accepted for arm in ("rules", "rules_played", "relabelled"))
    assert set(made["rules_played"].greedy) == {0.0}
    assert made["placebos"].credited
    assert "10 of 10 placebos" in made["placebos"].reason  # plain cloning, and three draws of each of three
    assert made["placebos_relabelled"].credited
    base, rules, relabelled = made["baseline"], made["rules"], made["relabelled"]
    assert np.mean(base.greedy) < np.mean(rules.greedy) < 0
    assert rules.collected_steps == 6 * 8
    assert rules.gate_steps == 8 * (3 * 4 + 12 + 12)  # the baseline is chosen from, too
    assert relabelled.collected_steps == 3 * rules.collected_steps
    assert (rules.rounds, rules.datasets) == (0, ())
    assert relabelled.rounds == 2
    assert relabelled.labels == 6 * 8 * (1 + len(relabelled.datasets))  # of the round that counts
    assert rules.gate_steps < relabelled.gate_steps < 3 * rules.gate_steps  # the baseline is played once


@pytest.mark.slow
def test_rules_may_learn_from_more_episodes_of_the_baseline_which_are_counted_and_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ruled, "RefineConfig", lambda seed: small_config(seed=seed).refine)
    example = tmp_path / "examples" / "reach"
    save_folder(make_baseline(REACH), example / "baseline")
    (example / "law.json").write_text('[{"predicate": "step >= 0", "suggested_action": [1.5]}]')
    entry = Entry("Reach-v0", REACH, {}, episodes=6, select=4, accept=12, report=10)
    sources = Sources(tmp_path / "nothing", rules="law.json", examples=tmp_path / "examples")
    plain, more = (set_scene(store, entry, replace(sources, episodes=n)) for n in (6, 10))
    assert (plain.further, plain.title, more.title) == ((), "Reach-v0, law", "Reach-v0, law, 10 episodes")
    assert [read_manifest(store, name).episodes for name in more.further] == [4]
    material = ruled.gather_material(more, 0, more.further)
    assert len(material.labels) == ruled.count_steps(more, material.dataset_ids) == 80


def test_labels_after_a_study_have_rows_of_their_own(store: Store) -> None:
    entry = list_entries()["Pendulum-v1"]
    plain, studied = (set_scene(store, entry, Sources(Path("nothing"), study=study)) for study in (False, True))
    assert (plain.title, studied.title) == ("Pendulum-v1", "Pendulum-v1, studied")
    assert studied.title_of("baseline") == "Pendulum-v1"
    assert plain.labels is not None
    assert studied.labels is not None
    assert (len(plain.labels), len(studied.labels)) == (96, 96)
    assert not np.array_equal(plain.labels.suggestions, studied.labels.suggestions)
    assert studied.content_id != plain.content_id


@pytest.mark.slow
def test_a_list_that_the_gate_rejects_earns_no_credit_and_shows_its_own_returns(
    ruled_scene: Scene, store: Store, tmp_path: Path
) -> None:
    x = ruled_scene.manifest.component_names[0]
    (tmp_path / "bad.json").write_text(f'[{{"predicate": "{x} < 9", "suggested_action": ["-2 * sign({x})"]}}]')
    imported = import_rules(store, ruled_scene.manifest.dataset_id, tmp_path / "bad.json", "a person")
    scene, out = replace(ruled_scene, rules_run=imported.run_id), tmp_path / "rows.jsonl"
    base = run_job(Job(scene, "baseline", 0, out))
    rules, played = (run_job(Job(scene, arm, 0, out, base)) for arm in ("rules", "rules_played"))
    assert (rules.accepted, rules.greedy) == (False, base.greedy)
    assert played.accepted is False
    assert np.mean(played.greedy) < np.mean(base.greedy)
    placebos = run_job(Job(scene, "placebos", 0, out, base, rules))
    assert placebos.credited is False
    assert placebos.reason == "nothing to credit: the refinement was rejected"
    unruled = run_job(Job(replace(scene, rules_run=None, unruled="no list"), "rules", 0, out, base))
    assert (unruled.status, unruled.reason) == ("failed", "no list")


@pytest.mark.slow
def test_a_larger_budget_goes_on_where_a_smaller_one_ended_and_ends_as_if_it_had_been_alone(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stable_baselines3 import PPO

    from flows.simulation.environments import look_up_spaces
    from refine.policies import sb3_models as baselines

    model = PPO("MlpPolicy", make_environment(TOY), n_steps=16, batch_size=64, policy_kwargs={"net_arch": [8]})
    model.save(tmp_path / "model.zip")
    started = replace(scene, baseline=baselines.from_sb3(model, *look_up_spaces(TOY)), model_zip=tmp_path / "model.zip")
    first = online.continue_training(started, 0, 100)
    np.random.rand()  # another training of this process
    second, again = (online.continue_training(started, 0, budget) for budget in (300, 100))
    alone = online.continue_training(started, 0, 300)
    assert (first.steps, second.steps) == (128, 384)
    assert first.policy.sha256 == again.policy.sha256 != second.policy.sha256 == alone.policy.sha256
