"""Rounds on a world whose best policy is known: no seed is shared, lineage is one chain, a killed series goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_state import ask, state_of
from toy_environment import CARD, TOY, Answer, answers_of, make_baseline, save_folder, small_config, write_labels

from annotate.importing.labels import import_annotations
from annotate.prompting.feedback import Measured
from annotate.prompting.requests import AnnotateConfig
from annotate.prompting.selection import select_episodes
from flows.datasets.collection import CollectConfig
from flows.labelling.annotation import LabelConfig, write_questions
from flows.refinement.feedback import Version, best_of
from flows.refinement.present import show_rounds
from flows.refinement.refinement import ImproveConfig, Outcome, improve
from flows.refinement.rounds import RoundsConfig, Series, Work, check_seeds, plain_work, plan_round, run_rounds
from storage.errors import BadInput
from storage.schema import Episode
from storage.store import Store


def configure(folder: Path, store: str = "store", **changes: Any) -> RoundsConfig:
    (folder / "card.toml").write_text(CARD)
    baseline = save_folder(make_baseline(), folder / "baseline")
    asked = AnnotateConfig(model="toy")
    improving = small_config(gate={"placebo_draws": 2, "accept": 30}, snapshots=(20,))
    fields: dict[str, Any] = {
        "store": folder / store,
        "collect": CollectConfig(env_id=TOY, policy=f"policy:{baseline}", episodes=12, mode="sampled"),
        "label": LabelConfig(
            provider="file", answers=folder / "exchange", card=str(folder / "card.toml"), annotate=asked
        ),
        "improve": improving,
        "rounds": 2,
    }
    return RoundsConfig(**fields | changes)


def labelled_by(folder: Path, answer: Answer = "right") -> Work:
    """The plain steps with a labeller that knows the world, or one that guesses."""

    def label(store_root: Path, dataset_id: str, config: LabelConfig) -> str:
        store = Store.open(store_root)
        return import_annotations(store, write_labels(store, dataset_id, folder / "labels.jsonl", answer)).run_ids[0]

    return replace(plain_work(), label=label)


def with_imports(config: RoundsConfig) -> RoundsConfig:
    return config.model_copy(update={"label": LabelConfig(card=config.label.card)})


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> tuple[RoundsConfig, Series]:
    """Two rounds that nobody interrupted."""
    folder = tmp_path_factory.mktemp("rounds")
    config = with_imports(configure(folder))
    return config, run_rounds(config, labelled_by(folder))


def rows(root: Path, sql: str) -> list[Any]:
    return ask(Store.open(root), sql)


@pytest.mark.slow
def test_the_second_round_starts_from_what_the_first_put_in_force_and_gains_again(
    smooth: tuple[RoundsConfig, Series],
) -> None:
    _, series = smooth
    first, second = series.rounds
    assert (first.accepted, second.accepted, series.waits) == (True, True, False)
    assert second.outcome.baseline_id == first.outcome.comparison.policy_id
    assert first.gain.low > 0
    assert second.gain.low > 0
    assert second.outcome.comparison.arms[0].greedy.mean == pytest.approx(
        first.outcome.comparison.arms[1].greedy.mean, abs=0.5
    )  # the same policy, on other seeds
    assert series.ended == "all 2 rounds are done"
    assert [row["round"] for row in show_rounds(series).rows] == [1, 2]
    assert show_rounds(series).sentences[-1] == f"in force: {second.outcome.comparison.policy_id}"
    assert show_rounds(series).values["rounds"][1]["baseline_id"] == first.outcome.comparison.policy_id


@pytest.mark.slow
def test_no_seed_serves_two_rounds(smooth: tuple[RoundsConfig, Series]) -> None:
    config, _ = smooth
    sql = "SELECT DISTINCT purpose, unnest(range(first_seed, first_seed + episodes)) FROM evaluations"
    seeds = [seed for _, seed in rows(config.store, sql)]
    seeds += [seed for (seed,) in rows(config.store, "SELECT seed FROM episodes")]
    assert len(seeds) == len(set(seeds))
    assert 2 * (10 + 12 + 30 + 12) <= len(seeds) <= 2 * (10 + 30 + 30 + 12)  # an acceptance ends when it is clear


@pytest.mark.slow
def test_lineage_is_one_chain_and_sql_shows_every_round(smooth: tuple[RoundsConfig, Series]) -> None:
    config, series = smooth
    told = rows(config.store, "SELECT round, baseline_id, policy_id, accepted, gain, low FROM rounds ORDER BY round")
    assert told == [
        (r.number, r.outcome.baseline_id, r.outcome.comparison.policy_id, True, r.gain.mean, r.gain.low)
        for r in series.rounds
    ]
    chain = rows(
        config.store,
        """WITH RECURSIVE line AS (
               SELECT policy_id, baseline_id, 1 AS depth FROM policies WHERE policy_id IN
                   (SELECT policy_id FROM rounds ORDER BY round DESC LIMIT 1)
               UNION ALL
               SELECT policies.policy_id, policies.baseline_id, depth + 1 FROM policies JOIN line
               ON policies.policy_id = line.baseline_id)
           SELECT policy_id FROM line ORDER BY depth""",
    )
    made = [r.outcome.comparison.policy_id for r in series.rounds]
    assert [policy for (policy,) in chain] == [made[1], made[0], series.rounds[0].outcome.baseline_id]
    assert rows(config.store, "SELECT count(*) FROM policies WHERE kind = 'baseline'") == [(1,)]


@pytest.mark.slow
def test_a_series_that_was_killed_goes_on_in_its_round_and_ends_the_same(
    smooth: tuple[RoundsConfig, Series], tmp_path: Path
) -> None:
    whole, expected = smooth
    config = with_imports(configure(tmp_path)).model_copy(update={"collect": whole.collect})
    work = labelled_by(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(config, replace(work, improve=killed_at(2)))
    assert len(rows(config.store, "SELECT * FROM rounds")) == 1
    assert show_rounds(run_rounds(config, work)) == show_rounds(expected)
    assert state_of(config.store) == state_of(whole.store)
    longer = run_rounds(config.model_copy(update={"rounds": 3}), work)
    assert [r.outcome.comparison_id for r in longer.rounds[:2]] == [r.outcome.comparison_id for r in expected.rounds]
    assert len({series for (series,) in rows(config.store, "SELECT series_id FROM rounds")}) == 1


def killed_at(round_: int) -> Callable[..., Outcome]:
    """`improve`, but the process is interrupted when this round comes to it."""
    calls: list[int] = []

    def improving(store: Path, dataset_id: str, run_ids: list[str], config: ImproveConfig) -> Outcome:
        calls.append(1)
        if len(calls) == round_:
            raise KeyboardInterrupt
        return improve(Store.open(store), dataset_id, config, run_ids=run_ids)

    return improving


@pytest.mark.slow
def test_a_round_that_gains_nothing_is_the_last(tmp_path: Path) -> None:
    config = with_imports(configure(tmp_path, rounds=5))
    series = run_rounds(config, labelled_by(tmp_path, "chance"))
    assert [made.accepted for made in series.rounds] == [False]
    assert series.ended.startswith("round 1 gained nothing: rejected: the best candidate's gain")
    assert rows(config.store, "SELECT round, accepted, policy_id = baseline_id FROM rounds") == [(1, False, True)]


@pytest.mark.slow
def test_a_round_by_file_waits_for_its_answers_and_the_same_call_goes_on(tmp_path: Path) -> None:
    config = configure(tmp_path)
    (tmp_path / "exchange").mkdir()
    first = run_rounds(config)
    assert (first.rounds, first.waits) == ([], True)
    assert first.ended.startswith("round 1 waits for 12 answers: the requests are in")
    answer(config, 1, only=5)
    assert run_rounds(config).ended.startswith("round 1 waits for 7 answers")
    answer(config, 1)
    second = run_rounds(config)
    assert [made.accepted for made in second.rounds] == [True]
    assert second.ended.startswith("round 2 waits for 12 answers")
    requests = [json.loads(line) for line in (tmp_path / "exchange" / "round-2-requests.jsonl").open()]
    assert len(requests) == 12
    answer(config, 2)
    third = run_rounds(config)
    assert (len(third.rounds), third.waits) == (2, False)


def answer(config: RoundsConfig, number: int, only: int | None = None) -> None:
    """Reply to a round's questions as one who knows the world."""
    store = Store.open(config.store)
    dataset_id = rows(config.store, "SELECT dataset_id FROM datasets ORDER BY created_at DESC LIMIT 1")[0][0]
    planned = plan_round(config, number, config.collect.policy)
    questions = write_questions(store, dataset_id, planned.label).questions
    replies = list(answers_of(store, dataset_id, questions).items())[:only]
    path = planned.label.answers
    assert path is not None
    path.write_text("".join(json.dumps({"request_id": id_, "text": text}) + "\n" for id_, text in replies))


def test_rounds_that_would_share_seeds_are_refused_before_anything_starts(tmp_path: Path) -> None:
    config = configure(tmp_path, rounds=9)
    check_seeds(config)
    near = config.model_copy(update={"collect": config.collect.model_copy(update={"seed": 999_900})})
    check_seeds(near.model_copy(update={"rounds": 8}))
    with pytest.raises(BadInput, match="999900 to 1000007 and judge with 1000000 to 1000629"):
        run_rounds(near)
    assert not config.store.exists()
    named = config.model_copy(update={"collect": config.collect.model_copy(update={"dataset": "d1"})})
    with pytest.raises(BadInput, match="its own dataset"):
        run_rounds(named)


def test_failing_episodes_are_asked_about_first_and_not_the_same_failure_over_and_over() -> None:
    returns = [5.0, 1.0, 1.0, 9.0, 8.0, 2.0]
    places = [0.0, 0.0, 0.0, 0.0, 0.0, 7.0]
    episodes = [
        make(number, return_, place) for number, (return_, place) in enumerate(zip(returns, places, strict=True))
    ]
    orders = [{e.episode_id for e in select_episodes(episodes, n, method="failing")} for n in (1, 2, 3, 4)]
    assert orders == [{1}, {1, 5}, {1, 5, 2}, {1, 5, 2, 0}]


def make(number: int, return_: float, place: float) -> Episode:
    observations = np.full((3, 1), place) + np.arange(3)[:, None]
    return Episode(number, number, observations, np.zeros(2, np.int64), np.array([return_, 0.0]), True, False)


def test_the_flow_of_rounds_is_found_by_its_module() -> None:
    from prefect.flows import load_flow_from_entrypoint

    found = load_flow_from_entrypoint("flows.deployment.prefect_flows.rounds_flow")
    assert (found.name, list(found.parameters.properties)) == ("rounds", ["config"])


EAST_AND_NORTH: dict[str, Any] = {
    "assessment": "Push where it lies.",
    "terms": [{"name": "is_north", "expression": "y > abs(x)", "meaning": "it lies north most"}],
    "rules": [
        {"predicate": "is_north", "suggested_action": "north", "critical": True, "confidence": 0.9, "rationale": "so"},
        {"predicate": "x > 0", "suggested_action": "east", "critical": False, "confidence": 0.9, "rationale": "so"},
    ],
    "potential": None,
}
ALL_FOUR = EAST_AND_NORTH | {
    "rules": [
        *EAST_AND_NORTH["rules"][:1],
        {
            "predicate": "-y > abs(x)",
            "suggested_action": "south",
            "critical": True,
            "confidence": 0.9,
            "rationale": "so",
        },
        {"predicate": "x > 0", "suggested_action": "east", "critical": False, "confidence": 0.9, "rationale": "so"},
        {"predicate": "x <= 0", "suggested_action": "west", "critical": False, "confidence": 0.9, "rationale": "so"},
    ]
}


@pytest.mark.slow
def test_an_annotator_betters_its_list_as_long_as_that_gains_something_and_the_best_list_counts(tmp_path: Path) -> None:
    config = configure(tmp_path, rounds=4)
    asked = config.label.annotate.model_copy(update={"kind": "rules"})
    config = config.model_copy(update={"label": config.label.model_copy(update={"annotate": asked})})
    assert run_rounds(config).ended.startswith("round 1 waits for 1 answers")
    assert "Your earlier list" not in reply(tmp_path, 1, EAST_AND_NORTH)
    assert run_rounds(config).ended.startswith("round 2 waits for 1 answers")
    shown = reply(tmp_path, 2, ALL_FOUR)
    assert '"predicate": "is_north"' in shown
    assert "- your list, played as it stands: " in shown
    assert "- no rule, so the agent acted: in " in shown
    assert "The rule that decided, by step: " in shown
    assert "Your list reads nothing that the imitating policy does not see." in shown
    assert "- rule 2: 100%, 100%" in shown
    assert run_rounds(config).ended.startswith("round 3 waits for 1 answers")
    reply(tmp_path, 3, EAST_AND_NORTH | {"assessment": "Back to the first."})
    series = run_rounds(config)
    first, second, third = (made.version for made in series.rounds)
    assert first is not None
    assert second is not None
    assert third is not None
    assert series.ended.startswith("round 3 gained nothing")
    assert series.best is series.rounds[1]
    assert (first.parent_id, second.parent_id, third.parent_id) == (None, first.list_id, second.list_id)
    assert second.played.mean == 8.0 > first.played.mean > first.baseline.mean
    assert first.environment_steps == 3 * 20 * 8
    shown_rounds = show_rounds(series)
    assert shown_rounds.values["policy_id"] == series.rounds[1].outcome.comparison.policy_id
    assert f"best list: {second.list_id}, of round 2" in shown_rounds.sentences[1]
    assert rows(config.store, "SELECT count(*), count(parent_id) FROM rule_lists") == [(3, 2)]


def test_a_series_goes_on_while_a_list_or_its_imitation_gains_and_the_best_imitation_counts() -> None:
    first, copied, both_worse, better_played = (version(*pair) for pair in ((12, -17), (1, 1), (11, 0), (13, -5)))
    assert first.gains([])
    assert copied.gains([first])
    assert not both_worse.gains([first, copied])
    assert not version(12, 1).gains([first, copied])
    assert better_played.gains([first, copied])
    assert best_of([first, copied, better_played]) is copied
    assert best_of([copied, version(1, 1)]) is copied
    promoted = replace(better_played, is_promoted=True)
    assert best_of([first, copied, promoted]) is promoted


@pytest.mark.slow
def test_a_reply_without_a_rule_ends_the_series_and_the_best_list_counts(tmp_path: Path) -> None:
    config = configure(tmp_path, rounds=4)
    asked = config.label.annotate.model_copy(update={"kind": "rules"})
    config = config.model_copy(update={"label": config.label.model_copy(update={"annotate": asked})})
    run_rounds(config)
    reply(tmp_path, 1, EAST_AND_NORTH)
    run_rounds(config)
    reply(tmp_path, 2, EAST_AND_NORTH | {"rules": [EAST_AND_NORTH["rules"][0] | {"predicate": "getenv(x) > 1"}]})
    series = run_rounds(config)
    assert re.fullmatch(r"round 2 gained nothing: the run \w+ gave no valid rule\. .*rejections.*", series.ended)
    assert series.best is series.rounds[0]
    assert len(series.rounds) == 1


def version(played: float, refined: float) -> Version:
    returns = {"played": played, "refined": refined, "baseline": -19}
    measured: dict[str, Any] = {name: Measured(mean, mean - 1, mean + 1) for name, mean in returns.items()}
    return Version(list_id="l", parent_id=None, environment_steps=0, text="", **measured)


def reply(folder: Path, number: int, law: dict[str, Any]) -> str:
    """Answer a round's request; returns what the annotator was shown."""
    (line,) = (folder / "exchange" / f"round-{number}-requests.jsonl").read_text().splitlines()
    request = json.loads(line)
    answered = {"request_id": request["custom_id"], "text": json.dumps(law)}
    (folder / "exchange" / f"round-{number}-answers.jsonl").write_text(json.dumps(answered) + "\n")
    return request["params"]["messages"][0]["content"]
