"""Requests: equal content has an equal id, the system part is shared, and the answer's shape is fixed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from annotate.cards.cards import Action, Card, load_card
from annotate.prompting.rendering import prompt_version
from annotate.prompting.requests import AnnotateConfig, RequestBuilder, canonical_body, request_id_of
from annotate.prompting.selection import describe_dataset
from storage.schema import Episode


def episodes(count: int = 6, length: int = 100) -> list[Episode]:
    rng = np.random.default_rng(5)
    return [
        Episode(
            i,
            i,
            np.round(rng.normal(size=(length + 1, 4)), 3).astype(np.float32),
            rng.integers(0, 2, length),
            np.ones(length),
            terminated=True,
            truncated=False,
        )
        for i in range(count)
    ]


def questioner(config: AnnotateConfig | None = None, card: Card | None = None) -> RequestBuilder:
    card = card or load_card("CartPole-v1")
    data = episodes()
    statistics = describe_dataset(data, card)
    return RequestBuilder(card, config or AnnotateConfig(), statistics, data[statistics.median_episode])


@pytest.mark.slow
def test_equal_content_has_an_equal_id_and_the_system_part_is_shared() -> None:
    first = [questioner().ask_first(episode)[0].request for episode in episodes()]
    again = [questioner().ask_first(episode)[0].request for episode in episodes()]
    assert [r.request_id for r in first] == [r.request_id for r in again]
    assert len({r.request_id for r in first}) == 6
    assert len({r.params["system"] for r in first}) == 1


def test_an_exported_request_can_be_checked_against_its_id() -> None:
    request = questioner().ask_first(episodes()[0])[0].request
    assert request_id_of(json.loads(request.body)) == request.request_id
    assert canonical_body(json.loads(request.body)) == request.body


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"rows": 48}, {"median_rows": 20}, {"max_tokens": 500}, {"windows": 4}]
)
def test_any_change_of_what_is_asked_is_a_new_request(change: dict[str, object]) -> None:
    changed = AnnotateConfig().model_copy(update=change)
    before = questioner().ask_first(episodes()[0])[0].request.request_id
    assert questioner(changed).ask_first(episodes()[0])[0].request.request_id != before


def test_a_changed_word_on_the_card_is_a_new_request() -> None:
    card = load_card("CartPole-v1")
    changed = questioner(card=card.model_copy(update={"goal": card.goal + " Always."}))
    assert (
        changed.ask_first(episodes()[0])[0].request.request_id
        != questioner().ask_first(episodes()[0])[0].request.request_id
    )


def test_samples_have_equal_parameters_and_different_ids() -> None:
    asked = questioner(AnnotateConfig(samples=3)).ask_first(episodes()[0])
    assert len({q.request.request_id for q in asked}) == 3
    assert len({q.request.body for q in asked}) == 1
    assert [q.sample for q in asked] == [0, 1, 2]


def test_a_label_may_name_the_steps_that_are_shown_and_no_others() -> None:
    question = questioner().ask_first(episodes()[0])[0]
    rows = question.request.params["messages"][0]["content"].partition("step cart")[2].splitlines()[1:]
    shown = {int(row.split()[0]) for row in rows if row[:1].isdigit()}
    assert question.steps == shown
    assert 20 < len(shown) <= 40


def test_the_prompt_says_what_everything_means() -> None:
    request = questioner().ask_first(episodes()[0])[0].request
    system = request.params["system"]
    card = load_card("CartPole-v1")
    told = [card.goal, card.termination, card.reward, *card.advice]
    told += [part.meaning for part in (*card.components, *card.actions)]
    assert all(text in system for text in told)
    assert "{{" not in system
    assert "median return 100" in system
    assert "confirmation" in system
    assert "give none" in system


def test_an_action_outside_the_list_is_impossible_in_the_schema() -> None:
    schema = questioner().ask_first(episodes()[0])[0].request.params["output_config"]["format"]["schema"]
    label = schema["properties"]["labels"]["items"]
    assert label["properties"]["suggested_action"]["enum"] == ["push_left", "push_right"]
    assert label["additionalProperties"] is False
    assert label["required"] == ["step", "rationale", "suggested_action", "implicit_reward", "confidence", "critical"]


def test_two_stages_first_ask_for_steps_and_then_for_actions() -> None:
    two = questioner(AnnotateConfig(two_stage=True))
    first = two.ask_first(episodes()[0])[0]
    assert first.request.kind == "identify"
    assert "suggested_action" not in first.request.body
    second = two.ask_second(episodes()[0], [(0, "the start weighs most")], 0)
    assert second.request.kind == "suggest"
    assert second.steps == {0}
    assert "- step 0: the start weighs most" in second.request.params["messages"][0]["content"]


def test_too_few_rows_for_the_windows_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave no choice in 8 windows"):
        AnnotateConfig(rows=12)


def test_the_prompt_version_is_a_hash_of_the_templates() -> None:
    assert prompt_version().startswith("p_")
    assert len(prompt_version()) == 14


def test_a_continuous_action_is_asked_for_as_one_number_for_each_dimension() -> None:
    thrust = (
        Action(name="main", meaning="main engine", low=-1, high=1, unit="100 N"),
        Action(name="side", meaning="side engine", low=-2, high=2),
    )
    card = load_card("CartPole-v1").model_copy(update={"actions": thrust, "claims": ()})
    data = [replace(episode, actions=np.zeros((100, 2))) for episode in episodes()]
    asked = RequestBuilder(card, AnnotateConfig(), describe_dataset(data, card), data[0]).ask_first(data[0])[0].request
    assert "- main (-1 to 1, in 100 N): main engine" in asked.params["system"]
    assert '"suggested_action": {"main": number, "side": number}' in asked.params["system"]
    assert "not a change to the agent's action" in asked.params["system"]
    label = asked.params["output_config"]["format"]["schema"]["properties"]["labels"]["items"]["properties"]
    assert label["suggested_action"]["required"] == ["main", "side"]
    assert label["suggested_action"]["properties"] == {"main": {"type": "number"}, "side": {"type": "number"}}
