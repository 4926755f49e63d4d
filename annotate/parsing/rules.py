"""From a raw reply to corrective rules: what breaks a rule of the game is kept with its reason, the rest still counts.

A reply is hostile until proven otherwise; its conditions are read by `storage.expressions.predicates` and run nowhere
here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from storage.catalog import STEP, component_columns
from storage.errors import BadInput
from storage.expressions import read_predicate

from ..cards import Card
from ..prompting import Kind, label_vector
from .labels import (
    BrokenError,
    ParsedReply,
    ProposedRule,
    Refused,
    find_in_reply,
    read_action,
    read_field,
    read_labels,
    read_nothing,
    read_number,
    read_rationale,
    refuse_entry,
    refuse_reply,
    show,
)
from .messages import Entry, Found, ReplyProblem

MAX_RULES = 100
"""Rules of one reply that are looked at; far more than are asked for."""


def read_answer(found: Found, kind: Kind, card: Card, steps: Collection[int]) -> ParsedReply:
    """Validate the entries of a reply to any kind of request, see `read_reply` and `read_rules`."""
    return _read_found(found, card) if kind == "rules" else read_labels(found, kind, card, steps)


def read_rules(raw: str, card: Card) -> ParsedReply:
    """Validate a reply that gives rules.

    Args:
        raw: the message as it came.
        card: the columns and the legal actions.

    Returns:
        The rules that are allowed, each condition at most once, and what was refused. It never raises.
    """
    return _read_found(find_in_reply(raw, "rules"), card)


def _read_found(reply: Found, card: Card) -> ParsedReply:
    if (nothing := read_nothing(reply)) is not None:
        return nothing
    message, found = reply.message, reply.entries
    refused: list[Refused] = [refuse_reply(t, message.text) for t in (message.trouble, found.trouble) if t][:1]
    rules: dict[str, ProposedRule] = {}
    for position, entry in enumerate(found.entries[:MAX_RULES]):
        try:
            rule = _read_entry(position, entry, card)
            if rule.predicate in rules:
                raise BrokenError("duplicate_rule", f"the condition {rule.predicate} has a rule already")
            rules[rule.predicate] = rule
        except BrokenError as broken:
            refused.append(refuse_entry(position, entry, broken.trouble))
    if len(found.entries) > MAX_RULES:
        trouble = ReplyProblem("too_many", f"{len(found.entries)} entries, {MAX_RULES} are read")
        refused.append(refuse_reply(trouble, message.text))
    return ParsedReply(message, found.assessment, (), tuple(refused), tuple(rules.values()))


def _read_entry(position: int, entry: Entry, card: Card) -> ProposedRule:
    if not isinstance(entry, dict):
        raise BrokenError("wrong_type", f"a {type(entry).__name__} in place of an object")
    action, label = read_rule_action(read_field(entry, "suggested_action"), card)
    return ProposedRule(
        position,
        _read_predicate(entry, card),
        read_rationale(entry),
        action,
        label,
        confidence=read_number(entry, "confidence", 0, 1),
    )


def read_rule_action(action: object, card: Card) -> tuple[tuple[float | None, ...], str]:
    """The action of a rule: an index into the card's list, or a number or null for each dimension, and its name."""
    if card.is_discrete:
        return read_action(action, card)
    if not isinstance(action, dict) or not set(action) <= set(card.action_names):
        raise BrokenError("illegal_action", f"{show(action)} gives something else than {', '.join(card.action_names)}")
    values = tuple(
        None
        if action.get(dimension.name) is None
        else read_number(action, dimension.name, dimension.low, dimension.high, "illegal_action")
        for dimension in card.actions
    )
    given = [(a, value) for a, value in zip(card.actions, values, strict=True) if value is not None]
    if not given:
        raise BrokenError("illegal_action", f"{show(action)} gives no number for any dimension")
    names, decimals = [a.name for a, _ in given], [a.decimals for a, _ in given]
    return values, label_vector(names, [value for _, value in given], decimals)


def _read_predicate(entry: Mapping[str, Any], card: Card) -> str:
    text = read_field(entry, "predicate")
    if not isinstance(text, str):
        raise BrokenError("wrong_type", f"predicate is {show(text)}; text is allowed")
    try:
        return read_predicate(text, rule_names(card)).text
    except BadInput as error:
        raise BrokenError("illegal_predicate", error.problem.rstrip(".")) from None


def rule_names(card: Card) -> list[str]:
    """The columns that a rule may speak of."""
    return [*component_columns(card.component_names), STEP]
