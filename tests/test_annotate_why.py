"""Why a request is asked anew: the field in which it differs from its nearest relative, in words, with a diff."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted import ScriptedProvider
from toy_cards import CARD
from toy_datasets import make_draft, make_episode, write

from annotate.cards.cards import Action, Card, Component
from annotate.explain import Explanation, compare_parts, explain_misses, explain_request, parts_of
from annotate.prompting.requests import AnnotateConfig
from annotate.providers.answers import text_message
from annotate.runs.plan import RunPlan, plan_run
from annotate.runs.run import annotate_run
from storage.errors import BadInput
from storage.store import Store

CONFIG = AnnotateConfig(model="toy-model", windows=2, rows=12)


def plan(store: Store, card: Card = CARD, dataset: str = "d1", **changes: Any) -> RunPlan:
    config = AnnotateConfig.model_validate(CONFIG.model_dump() | changes)
    return plan_run(store, dataset, card, config)


@pytest.fixture
def asked(toy_store: Callable[[Sequence[int]], Store]) -> Store:
    """Four episodes, all answered."""
    store = toy_store((20, 21, 22, 23))
    provider = ScriptedProvider(lambda request: text_message(json.dumps({"assessment": "", "labels": []})))
    annotate_run(store, plan(store), provider)
    return store


def first_miss(store: Store, wanted: RunPlan) -> Explanation:
    return explain_misses(store, wanted, 1)[0][0]


def fields(explanation: Explanation) -> list[str]:
    return [difference.field for difference in explanation.differences]


@pytest.mark.slow
def test_nothing_is_missed_when_everything_is_answered(asked: Store) -> None:
    assert explain_misses(asked, plan(asked)) == ([], 0)


@pytest.mark.slow
def test_another_model_is_the_only_difference(asked: Store) -> None:
    explained, missing = explain_misses(asked, plan(asked, model="toy-model-2"), 3)
    assert (len(explained), missing) == (3, 4)
    first = explained[0]
    assert fields(first) == ["model"]
    assert first.differences[0].diff == ("-toy-model", "+toy-model-2")
    assert first.relative == plan(asked).questions[0].request.request_id  # the same episode
    assert (first.state, first.relative_state) == ("unknown", "done")
    assert "it differs in model (another model)" in first.words


@pytest.mark.slow
def test_a_word_of_the_card_is_found_in_its_section(asked: Store) -> None:
    changed = CARD.model_copy(update={"components": (*CARD.components[:2], Component(name="z", meaning="height"))})
    miss = first_miss(asked, plan(asked, changed))
    assert fields(miss) == ["system: Components of the state"]
    assert miss.differences[0].meaning == "the card: components"
    assert miss.differences[0].diff == ("-- z: place along z", "+- z: height")


@pytest.mark.slow
def test_fewer_rows_change_the_table_only(asked: Store) -> None:
    miss = first_miss(asked, plan(asked, rows=10))
    assert fields(miss) == ["table"]
    assert "--rows" in miss.differences[0].meaning


@pytest.mark.slow
def test_another_action_changes_the_card_and_the_schema(asked: Store) -> None:
    actions = (CARD.actions[0], Action(name="far_right", meaning="go right"))
    named = fields(first_miss(asked, plan(asked, CARD.model_copy(update={"actions": actions}))))
    assert {"system: Actions, one in each step", "schema", "system: Your task"} <= set(named)


@pytest.mark.slow
def test_a_parameter_is_named(asked: Store) -> None:
    miss = first_miss(asked, plan(asked, max_tokens=999))
    assert (fields(miss), miss.differences[0].diff) == (["max_tokens"], ("-12000", "+999"))


@pytest.mark.slow
def test_another_sample_has_the_same_words(asked: Store) -> None:
    miss = first_miss(asked, plan(asked, samples=2))
    assert miss.differences == ()
    assert "is another sample of it" in miss.words


@pytest.mark.slow
def test_another_dataset_changes_statistics_and_episode(asked: Store) -> None:
    write(asked, make_draft("d2"), [make_episode(i + 10, 20) for i in range(4)])
    named = fields(first_miss(asked, plan(asked, dataset="d2")))
    assert {"system: What the agent usually does", "episode", "table"} <= set(named)
    assert "model" not in named
    assert "schema" not in named


@pytest.mark.slow
def test_a_stage_that_was_never_asked_has_no_relative(asked: Store) -> None:
    miss = first_miss(asked, plan(asked, two_stage=True))
    assert (miss.relative, miss.differences) == (None, ())
    assert "no other request of its kind" in miss.words


@pytest.mark.slow
def test_a_request_of_the_store_is_compared_with_the_others(asked: Store) -> None:
    mine = plan(asked).questions[2].request.request_id
    explained = explain_request(asked, mine[:20])
    assert (explained.request_id, explained.episode_id, explained.state) == (mine, 2, "done")
    assert explained.relative != mine
    assert fields(explained) == ["episode", "table"]


@pytest.mark.slow
def test_unknown_and_ambiguous_ids_are_refused(asked: Store) -> None:
    with pytest.raises(BadInput, match="is not a request of this store"):
        explain_request(asked, "r_nothing")
    with pytest.raises(BadInput, match="prefix of several"):
        explain_request(asked, "r_")


def test_long_lines_are_shown_from_where_they_differ() -> None:
    old, new = "x" * 500 + "old" + "y" * 500, "x" * 500 + "new" + "y" * 500
    (difference,) = compare_parts({"field": new}, {"field": old})
    assert all(len(line) < 170 for line in difference.diff)
    assert "old" in difference.diff[0]
    assert "new" in difference.diff[1]


@pytest.mark.slow
def test_parts_put_together_hold_all_the_words_of_a_request(asked: Store) -> None:
    params = plan(asked).questions[0].request.params
    parts = parts_of(params)
    told = "".join("".join(parts.values()).split())
    text = params["system"] + params["messages"][0]["content"]
    assert all("".join(line.split()) in told for line in text.splitlines())
    assert list(parts)[:2] == ["model", "max_tokens"]


@pytest.mark.slow
def test_the_command_explains_a_miss(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from flows.cli import make_app
    from storage.datasets import adopt_dataset

    example = Path(__file__).parents[1] / "examples" / "cartpole"
    store = Store.create(tmp_path / "store")
    adopt_dataset(store, example / "rollouts")
    place = ["--store", str(store.root), "--model", "claude"]
    recorded = ["--provider", "recorded", "--answers", str(example / "answers.jsonl")]
    run = CliRunner().invoke(make_app(), ["annotate", *recorded, *place, "--limit", "3"])
    assert run.exit_code == 0, run.output
    found = CliRunner().invoke(
        make_app(), ["annotate", "why", "--miss", *place, "--labels", "4", "--limit", "2", "--json"]
    )
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["unanswered"] == 2
    assert "table" in [each["field"] for each in told["explained"][0]["differences"]]
    neither = CliRunner().invoke(make_app(), ["annotate", "why", *place])
    assert neither.exit_code != 0
