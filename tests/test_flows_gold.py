"""`annotate quality --gold` on a real dataset: what is compared, what the view says, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_environment import REACH, gather_toys, right_actions, write_labels
from typer.testing import CliRunner

from annotate.importing.labels import import_annotations
from annotate.importing.reviews import import_labels
from annotate.importing.rules import import_rules
from flows.cli import make_app
from flows.labelling.quality import (
    check_labels,
    describe_gain,
    describe_gold,
    find_gold_runs,
    gold_as_plain,
    score_against_gold,
    score_by_readers,
    score_rows,
)
from flows.labelling.queues import prepare_queue
from flows.reporting.page import write_report
from storage.datasets.reader import read_steps
from storage.errors import BadInput, Prerequisite
from storage.store import Store


def enter(store: Store, path: Path, lines: list[dict[str, Any]], model: str) -> str:
    """Import lines as one labeller's; returns the run."""
    path.write_text("".join(json.dumps(line | {"model": model}) + "\n" for line in lines))
    (run_id,) = import_annotations(store, path).run_ids
    return run_id


def best_lines(store: Store, dataset_id: str, count: int, env_id: str = "") -> list[dict[str, Any]]:
    """The best action of the first steps."""
    steps = read_steps(store, dataset_id)
    rows = np.flatnonzero(~steps.is_final)[:count]
    best = right_actions(steps.observation[rows], env_id) if env_id else right_actions(steps.observation[rows])
    return [
        {
            "dataset_id": dataset_id,
            "episode_id": int(steps.episode_id[row]),
            "step": int(steps.step[row]),
            "suggested_action": action.tolist(),
        }
        for row, action in zip(rows, best, strict=True)
    ]


@pytest.fixture
def toys(store: Store, tmp_path: Path) -> tuple[Store, str, str]:
    """A dataset with a right label on each of its 96 steps, and a gold set of 70 of them."""
    dataset_id = gather_toys(store, tmp_path).dataset_id
    import_annotations(store, write_labels(store, dataset_id, tmp_path / "labels.jsonl"))
    gold = best_lines(store, dataset_id, 70)
    for place, line in enumerate(gold):
        line["critical"] = place % 2 == 0
    return store, dataset_id, enter(store, tmp_path / "gold.jsonl", gold, "human:ann")


@pytest.mark.slow
def test_right_labels_are_right_and_better_than_the_agent(toys: tuple[Store, str, str]) -> None:
    store, dataset_id, gold = toys
    found = score_against_gold(store, [gold[:8]])
    (score,) = found.scores
    assert (found.dataset_id, score.model, score.shared) == (dataset_id, "imported", 70)
    assert score.right is not None
    assert (score.right.hits, score.right.n) == (70, 70)
    assert score.right.low == pytest.approx(0.025 ** (1 / 70))
    steps = read_steps(store, dataset_id)
    rows = np.flatnonzero(~steps.is_final)[:70]
    assert score.agent is not None
    assert score.agent.hits == int((steps.action[rows] == right_actions(steps.observation[rows])).sum())
    assert score.verdict == "better than what the agent did"
    assert score.critical_right is not None
    assert (score.critical_right.hits, score.critical_right.n) == (35, 70)
    assert "gold set may not be random" in describe_gold(found)[-1]
    assert "exact McNemar test" in describe_gain(score)
    assert score_rows(score)[0] == {
        "measure": "suggestions that are right",
        "share": "100%",
        "95% interval": "95% to 100%",
        "behind it": "70 of 70",
    }
    plain = json.loads(json.dumps(gold_as_plain(found)))
    assert plain["runs"][0]["right"]["hits"] == 70
    assert plain["gold"]["readers"] == ["human:ann"]


@pytest.mark.slow
def test_the_report_shows_the_gold_set_of_its_dataset_and_does_not_judge_it_by_itself(
    toys: tuple[Store, str, str],
) -> None:
    store, dataset_id, gold = toys
    page = write_report(store, dataset_id, pictures=0).path.read_text()
    part = page[page.index('id="gold"') :].split("</section>")[0]
    assert f"70 states by human:ann ({gold})" in part
    assert part.count("<h3>") == 1
    assert '<td class="n">100% <span>[95% to 100%]</span></td><td class="n">70 of 70</td>' in part
    assert score_by_readers(store, dataset_id, [gold]) is None


@pytest.mark.slow
def test_two_labellers_and_rules_are_compared_on_the_same_states(toys: tuple[Store, str, str], tmp_path: Path) -> None:
    store, dataset_id, gold = toys
    chance = best_lines(store, dataset_id, 96)
    for place, line in enumerate(chance):
        line["suggested_action"] = (line["suggested_action"] + (place % 3 > 0)) % 4
    other = enter(store, tmp_path / "other.jsonl", chance, "other")
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps([{"predicate": "o0 > -2", "suggested_action": 0}]))
    ruled = import_rules(store, dataset_id, rules).run_id
    found = score_against_gold(store, [gold])
    assert [score.run_id for score in found.scores][1:] == [other, ruled]
    shares = {score.run_id: score.right for score in found.scores}
    assert shares[other] is not None
    assert shares[other].hits == 24  # type: ignore[union-attr]
    assert shares[ruled] is not None
    assert shares[ruled].n == 70  # type: ignore[union-attr]
    rivalry = found.rivalries[0]
    assert (rivalry.second, rivalry.paired.only_first, rivalry.paired.only_second) == (other, 46, 0)
    assert rivalry.answer == "the first is right more often"
    assert len(found.rivalries) == 3
    assert [score.run_id for score in score_against_gold(store, [gold], runs=[other]).scores] == [other]


@pytest.mark.slow
def test_the_view_counts_what_the_command_counts(toys: tuple[Store, str, str]) -> None:
    store, _, gold = toys
    (score,) = score_against_gold(store, [gold]).scores
    with store.catalog.read() as con:
        rows = con.execute(
            """SELECT action, compared, correct, low, high, critical_precision FROM annotator_scores
               WHERE gold_run_id = ?""",
            [gold],
        ).fetchall()
    assert rows[0][:3] == (None, 70, 70)
    assert rows[0][3] == pytest.approx(70 / (70 + 1.96**2), abs=1e-3)
    assert rows[0][4] == pytest.approx(1.0)
    assert rows[0][5] == 0.5
    assert {row[0]: (row[2], row[1]) for row in rows[1:]} == {
        name: (rate.hits, rate.n) for name, rate in score.by_action.items()
    }


@pytest.mark.slow
def test_an_answer_without_an_action_counts_in_the_view_too(toys: tuple[Store, str, str], tmp_path: Path) -> None:
    store, dataset_id, _ = toys
    lines = [
        {key: value for key, value in line.items() if key != "suggested_action"} | {"implicit_reward": 1.0}
        for line in best_lines(store, dataset_id, 30)
    ]
    gold = enter(store, tmp_path / "fine.jsonl", lines, "human:bob")
    first = score_against_gold(store, [gold]).scores[0]
    with store.catalog.read() as con:
        (counted,) = con.execute(
            "SELECT compared, correct FROM annotator_scores WHERE gold_run_id = ? AND run_id = ? AND action IS NULL",
            [gold, first.run_id],
        ).fetchall()
    assert first.right is not None
    assert counted == (first.right.n, first.right.hits) == (30, counted[1])
    assert counted[1] < 30  # labels that correct the agent are wrong where there is no better action


@pytest.mark.slow
def test_continuous_suggestions_say_their_tolerance(store: Store, tmp_path: Path) -> None:
    dataset_id = gather_toys(store, tmp_path, REACH).dataset_id
    import_annotations(store, write_labels(store, dataset_id, tmp_path / "labels.jsonl", env_id=REACH))
    gold = best_lines(store, dataset_id, 60, REACH)
    for place, line in enumerate(gold):
        line["suggested_action"] = [
            line["suggested_action"][0] + (0.1 if place % 2 else 0.3)
        ]  # a range of 4: 5% is 0.2
    found = score_against_gold(store, [enter(store, tmp_path / "gold.jsonl", gold, "human:ann")])
    (score,) = found.scores
    assert score.right is not None
    assert score.nearer is not None
    assert (score.right.hits, score.right.n) == (30, 60)
    assert score.by_action == {}
    assert "a suggestion is right if each number differs from the reader's by at most 5% of its range" in found.remarks


@pytest.mark.slow
def test_what_cannot_be_compared_is_one_clear_line(toys: tuple[Store, str, str], tmp_path: Path) -> None:
    store, dataset_id, gold = toys
    elsewhere = gather_toys(store, tmp_path / "more", episodes=3, seed=50).dataset_id
    foreign = enter(store, tmp_path / "foreign.jsonl", best_lines(store, elsewhere, 5), "human:cy")
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps([{"predicate": "o0 > 0", "suggested_action": 0}]))
    ruled = import_rules(store, dataset_id, rules).run_id
    refused = [
        ([gold], {"runs": [gold]}, f"{gold} is the gold run itself"),
        ([gold, gold[:10]], {}, f"--gold names {gold} twice"),
        ([foreign], {"dataset": dataset_id}, f"The gold run {foreign} is of the dataset {elsewhere}, not {dataset_id}"),
        ([gold], {"runs": [foreign]}, f"The run {foreign} is of the dataset {elsewhere}; the gold run is of"),
        ([gold, foreign], {}, f"The gold run {foreign} is of the dataset {elsewhere}, not {dataset_id}"),
        ([ruled], {}, f"{ruled} is about rules; a gold set has answers about single states"),
        (["nobody"], {}, "There is no annotation run 'nobody'"),
    ]
    for runs, more, text in refused:
        with pytest.raises(BadInput, match=re.escape(text)):
            score_against_gold(store, runs, **more)
    with pytest.raises(Prerequisite, match=re.escape(f"the gold run {foreign} have no state in common")):
        score_against_gold(store, [foreign])


@pytest.mark.slow
def test_one_reader_with_two_runs_is_said_to_be_one(toys: tuple[Store, str, str], tmp_path: Path) -> None:
    store, dataset_id, gold = toys
    again = enter(store, tmp_path / "again.jsonl", best_lines(store, dataset_id, 10), "human:ann")
    found = score_against_gold(store, [gold, again])
    assert found.gold.between is not None
    assert (found.gold.between.hits, found.gold.between.n) == (10, 10)
    assert "human:ann has 2 of the gold runs, which count as one reader" in found.remarks
    assert set(score_against_gold(store, ["human:ann"]).gold.run_ids) == {gold, again}


@pytest.mark.slow
def test_fewer_than_sixty_comparisons_are_too_few(toys: tuple[Store, str, str], tmp_path: Path) -> None:
    store, dataset_id, _ = toys
    small = enter(store, tmp_path / "small.jsonl", best_lines(store, dataset_id, 59), "human:bob")
    assert {score.verdict for score in score_against_gold(store, [small]).scores} == {"too few to judge"}
    assert [checkup.judgement.verdict for checkup in check_labels(store, dataset_id)][-1] == "too few to judge"


def answer(store: Store, path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_id,) = import_labels(store, path).run_ids
    return run_id


@pytest.mark.slow
def test_a_gold_queue_is_known_to_be_random_and_says_only_what_its_reader_said(store: Store, tmp_path: Path) -> None:
    dataset_id = gather_toys(store, tmp_path).dataset_id
    labels = write_labels(store, dataset_id, tmp_path / "all.jsonl")
    some = tmp_path / "some.jsonl"
    some.write_text("\n".join(labels.read_text().splitlines()[:40]))
    import_annotations(store, some)
    queue = prepare_queue(store, order="gold", limit=60).queue
    best = {(line["episode_id"], line["step"]): line for line in best_lines(store, dataset_id, 96)}
    lines: list[dict[str, Any]] = []
    for number, item in enumerate(queue.items, 1):
        line = {"queue": queue.queue_id, "item": number, "model": "human:ann"}
        action = best[item.episode_id or 0, item.step or 0]["suggested_action"]
        lines.append(line | ({"verdict": "unsure"} if number == 1 else {"suggested_action": action}))
        if number > 10:
            lines[-1]["critical"] = number % 3 == 0
    gold = answer(store, tmp_path / "answers.jsonl", lines)
    found = score_against_gold(store, [gold])
    (score,) = found.scores
    labelled = {item[:2] for item in queue.items[1:]} & {(e, s) for e in range(5) for s in range(8)}
    assert score.shared == len(labelled)
    assert {(stratum.size, len(stratum.places)) for stratum in found.gold.strata} == {(40, 30), (56, 30)}
    assert "1 states are left out, because a reader is unsure" in found.remarks
    assert not any("may not be random" in remark for remark in found.remarks)
    critical = [state.critical for state in found.gold.states.values()]
    assert critical.count(None) == 9
    anywhere = score.critical_found_anywhere
    assert anywhere is not None
    assert anywhere.n == 50
    assert 0 < anywhere.share < 0.8  # 56 of the 96 steps have no label that could call them critical
    assert gold in find_gold_runs(store, dataset_id)


@pytest.mark.slow
def test_verdicts_on_labels_count_and_a_bare_refusal_is_one(toys: tuple[Store, str, str], tmp_path: Path) -> None:
    store, _, _ = toys
    with store.catalog.read() as con:
        ((run_id,),) = con.execute("SELECT run_id FROM annotation_runs WHERE model = 'imported'").fetchall()
    queue = prepare_queue(store, run_id, order="stratified", limit=9).queue
    verdicts = ["accept"] * 4 + ["reject"] * 3 + ["correct"] * 2
    lines = [
        {"queue": queue.queue_id, "item": number, "model": "human:bob", "verdict": verdict}
        | ({"suggested_action": (_suggested(store, item.annotation_id) + 1) % 4} if verdict == "correct" else {})
        for number, (item, verdict) in enumerate(zip(queue.items, verdicts, strict=True), 1)
    ]
    gold = answer(store, tmp_path / "verdicts.jsonl", lines)
    found = score_against_gold(store, [gold], runs=[run_id])
    (score,) = found.scores
    assert score.right is not None
    assert (score.right.hits, score.right.n) == (4, 9)
    assert "a reader saw the suggestions before answering, which favours them" in found.remarks
    with store.catalog.read() as con:
        counted = con.execute(
            "SELECT correct, compared FROM annotator_scores WHERE gold_run_id = ? AND run_id = ? AND action IS NULL",
            [gold, run_id],
        ).fetchall()
    assert counted == [(4, 9)]


def _suggested(store: Store, annotation_id: str | None) -> int:
    with store.catalog.read() as con:
        query = "SELECT suggested_action[1] FROM annotations WHERE annotation_id = ?"
        ((action,),) = con.execute(query, [annotation_id]).fetchall()
    return int(action)


@pytest.mark.slow
def test_the_command_prints_tables_for_people_and_one_object_for_programs(toys: tuple[Store, str, str]) -> None:
    store, _, gold = toys
    command = ["annotate", "quality", "--gold", "human:ann", "--store", str(store.root)]
    printed = CliRunner().invoke(make_app(), command)
    assert printed.exit_code == 0, printed.output
    assert "suggestions that are right 100% 95% to 100% 70 of 70" in " ".join(printed.output.split())
    found = json.loads(CliRunner().invoke(make_app(), [*command, "--json"]).output.splitlines()[-1])
    assert found["gold"]["run_ids"] == [gold]
    assert found["runs"][0]["gain"]["only_second"] == 0
