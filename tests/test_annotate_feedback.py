"""What an annotator is shown of its own list says what the imitating policy cannot see, and how far it copied it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from toy_cards import CARD
from toy_datasets import make_episode

from annotate.cards.cards import Action
from annotate.prompting.feedback import Copied, Measured, PlayedList, describe_feedback
from annotate.prompting.rendering import render_feedback
from storage.annotations.rules import Rule, RuleList
from storage.formulas import Term

PUSH = CARD.model_copy(update={"actions": (Action(name="push", meaning="p", low=-1, high=1),)})
PUSHED = np.zeros((4, 1))


def rule(predicate: str, **changes: Any) -> Rule:
    fields: dict[str, Any] = {
        "rule_id": predicate,
        "run_id": "a_1",
        "request_id": None,
        "dataset_id": "d1",
        "position": 0,
        "predicate": predicate,
        "suggested_action": (1.0,),
        "suggested_label": "right",
        "confidence": 0.9,
        "rationale": None,
        "model": "toy",
        "prompt_version": None,
    }
    return Rule(**fields | changes)


def played(*rules: Rule, terms: tuple[Term, ...] = (), copied: Copied | None = None, **episode: Any) -> PlayedList:
    listed = RuleList("l_1", "a_1", None, "d1", "toy", None, rules, terms)
    shares = [copied or Copied(1.0, 1.0)] * len(rules)
    measured = Measured(1.0, 0.0, 2.0)
    return PlayedList(
        listed, [make_episode(0, **episode)], [np.zeros(4, np.int64)], shares, measured, measured, measured
    )


def test_terms_and_rules_that_read_the_past_are_named_also_where_they_read_it_through_other_terms() -> None:
    terms = (
        Term("speed", "x - previous.x"),
        Term("late", "step > 50"),
        Term("soon", "x + 3 * speed"),
        Term("wide", "y * 2"),
    )
    rules = (rule("soon > 0"), rule("wide > 0"), rule("late"), rule("x > 0"))
    text = describe_feedback(CARD, played(*rules, terms=terms))
    assert (
        "Your list reads what the imitating policy does not see: previous.x, step. On that depend, directly or through"
        " other terms: the terms speed, late, soon; the rules 1, 3." in text
    )


def test_the_past_in_a_formula_of_an_action_counts_and_a_component_that_is_called_like_it_does_not() -> None:
    computed = rule("x > 0", suggested_action=(None,), formulas=("x - previous.x",))
    card = PUSH.model_copy(
        update={
            "components": tuple(
                c.model_copy(update={"name": n}) for c, n in zip(CARD.components, ("x", "y", "previous_x"), strict=True)
            )
        }
    )
    text = describe_feedback(card, played(rule("previous_x > 0"), computed, actions=PUSHED))
    assert (
        "does not see: previous.x. On that depend, directly or through other terms: the terms none; the rules 2."
        in text
    )


def test_a_list_of_the_current_components_alone_hides_nothing() -> None:
    text = describe_feedback(CARD, played(rule("x > 0"), terms=(Term("wide", "y * 2"),)))
    assert "Your list reads nothing that the imitating policy does not see." in text


def test_each_rule_says_how_often_it_was_copied_in_recorded_and_in_its_own_steps() -> None:
    text = describe_feedback(CARD, played(rule("x > 0"), rule("x <= 0"), copied=Copied(0.884, None)))
    assert "acts as the rule that decides says: in the recorded steps" in text
    assert text.count(": 88%, never") == 2
    text = describe_feedback(PUSH, played(rule("x > 0"), copied=Copied(0.999, 0.0), actions=PUSHED))
    assert "says, each number within 5% of its range: in" in text
    assert "- rule 1: >99%, 0%" in text


def test_the_request_says_what_the_imitating_policy_sees() -> None:
    assert "neither `previous.` nor `step`" in render_feedback(json.dumps({}))
