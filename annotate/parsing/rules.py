"""From a raw reply to corrective rules: what breaks a rule of the game is kept with its reason, the rest still counts.

A reply is hostile until proven otherwise; its expressions are read by `storage.formulas` and run nowhere here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from storage.catalog import component_columns
from storage.errors import BadInput
from storage.formulas import MAX_TERMS, FormulaReader, Term

from ..cards import Action, Card
from ..prompting import Kind, label_vector
from .replies import (
    MAX_RATIONALE,
    BrokenError,
    Entry,
    Found,
    ParsedReply,
    ProposedRule,
    Refused,
    ReplyProblem,
    clean_text,
    read_action,
    read_field,
    read_nothing,
    read_number,
    read_rationale,
    refuse_entry,
    refuse_reply,
    refuse_whole,
    show,
    take_each,
)

MAX_RULES = 100
"""Rules of one reply that are looked at; far more than are asked for."""
MAX_LABEL = 200
"""Characters of a formula that are kept as the name of an action."""


def read_rule_reply(reply: Found, kind: Kind, card: Card) -> ParsedReply:
    """Validate the entries of a reply that gives rules, or a study: an assessment and terms without rules.

    Args:
        reply: from `find_in_reply`.
        kind: `rules` or `study`.
        card: the columns and the legal actions.

    Returns:
        The rules that are allowed, each condition at most once, the terms, and what was refused. It never raises.
    """
    if (nothing := read_nothing(reply)) is not None:
        return nothing
    found, refused = reply.entries, refuse_whole(reply)
    if kind == "study":
        terms, _ = _read_terms(found.entries, card, refused)
        return ParsedReply(reply.message, found.assessment, (), tuple(refused), terms=terms)
    terms, reader = _read_terms(found.whole.get("terms"), card, refused)
    rules: dict[str, ProposedRule] = {}

    def take(position: int, entry: Entry) -> None:
        rule = _read_entry(position, entry, card, reader)
        if rule.predicate in rules:
            raise BrokenError("duplicate_rule", f"the condition {rule.predicate} has a rule already")
        rules[rule.predicate] = rule

    refused += take_each(reply, MAX_RULES, take)
    potential = _read_potential(found.whole.get("potential"), reader, refused)
    return ParsedReply(reply.message, found.assessment, (), tuple(refused), tuple(rules.values()), terms, potential)


def formula_reader(card: Card) -> FormulaReader:
    """Reads expressions about what a card names."""
    return FormulaReader.of(component_columns(card.component_names), ())


def _read_terms(entries: object, card: Card, refused: list[Refused]) -> tuple[tuple[Term, ...], FormulaReader]:
    """The terms that are allowed, and a reader that knows them; what is refused is added to the list."""
    terms: list[Term] = []
    reader = formula_reader(card)
    given = entries if isinstance(entries, list | tuple) else []
    for position, entry in enumerate(given[: 2 * MAX_TERMS]):
        try:
            term, reader = _read_term(entry, reader)
            terms.append(term)
        except BrokenError as broken:
            refused.append(refuse_entry(position, entry, broken.problem))
    if entries is not None and given is not entries:
        refused.append(refuse_reply(ReplyProblem("wrong_type", "terms is not a list"), show(entries)))
    return tuple(terms), reader


def _read_term(entry: Entry, reader: FormulaReader) -> tuple[Term, FormulaReader]:
    if not isinstance(entry, dict):
        raise BrokenError("wrong_type", f"a {type(entry).__name__} in place of an object")
    name, expression = _read_text(entry, "name"), _read_text(entry, "expression")
    meaning = entry.get("meaning")
    try:
        known = reader.with_term(Term(name, expression))
    except BadInput as error:
        raise BrokenError("illegal_term", error.problem.rstrip(".")) from None
    words = clean_text(meaning, MAX_RATIONALE) if isinstance(meaning, str) else None
    return Term(name, known.terms[name].text, words), known


def _read_potential(text: object, reader: FormulaReader, refused: list[Refused]) -> str | None:
    """An expression for how good a state is; None if there is none, or it is refused."""
    if text is None:
        return None
    try:
        if not isinstance(text, str):
            raise BrokenError("wrong_type", f"potential is {show(text)}; an expression or null is allowed")
        read = reader.formula(text)
        if reader.is_constant(read):
            raise BrokenError("illegal_potential", f"the potential {read.text} is the same in every state")
        return read.text
    except BadInput as error:
        refused.append(refuse_reply(ReplyProblem("illegal_potential", error.problem.rstrip(".")), show(text)))
    except BrokenError as broken:
        refused.append(refuse_reply(broken.problem, show(text)))
    return None


def _read_entry(position: int, entry: Entry, card: Card, reader: FormulaReader) -> ProposedRule:
    if not isinstance(entry, dict):
        raise BrokenError("wrong_type", f"a {type(entry).__name__} in place of an object")
    suggestion = read_rule_action(read_field(entry, "suggested_action"), card, reader)
    critical = entry.get("critical")
    if not isinstance(critical, bool | None):
        raise BrokenError("wrong_type", f"critical is {show(critical)}; true or false is allowed")
    return ProposedRule(
        position,
        _read_predicate(entry, reader),
        read_rationale(entry),
        suggestion.action,
        suggestion.label,
        confidence=read_number(entry, "confidence", 0, 1),
        formulas=suggestion.formulas,
        critical=critical,
    )


class RuleAction(NamedTuple):
    """What a rule says should be done."""

    action: tuple[float | None, ...]  # None: as logged, or computed
    formulas: tuple[str | None, ...] | None  # canonical; None without any
    label: str


def read_rule_action(action: object, card: Card, reader: FormulaReader) -> RuleAction:
    """The action of a rule: an index into the card's list, or a number, a formula or null for each dimension."""
    if card.is_discrete:
        index, label = read_action(action, card)
        return RuleAction(index, None, label)
    if not isinstance(action, dict) or not set(action) <= set(card.action_names):
        raise BrokenError("illegal_action", f"{show(action)} gives something else than {', '.join(card.action_names)}")
    read = [_read_dimension(action, dimension, reader) for dimension in card.actions]
    given = [(a, part) for a, part in zip(card.actions, read, strict=True) if part is not None]
    if not given:
        raise BrokenError("illegal_action", f"{show(action)} gives neither number nor formula for any dimension")
    label = label_vector([a.name for a, _ in given], [part for _, part in given], [a.decimals for a, _ in given])
    numbers = tuple(None if isinstance(part, str) else part for part in read)
    formulas = tuple(part if isinstance(part, str) else None for part in read)
    return RuleAction(numbers, formulas if any(formulas) else None, clean_text(label, MAX_LABEL))


def _read_dimension(action: Mapping[str, Any], dimension: Action, reader: FormulaReader) -> float | str | None:
    """A number, the canonical text of a formula, or None; a formula that reads nothing is a number."""
    value = action.get(dimension.name)
    if value is None:
        return None
    if not isinstance(value, str):
        return read_number(action, dimension.name, dimension.low, dimension.high, "illegal_action")
    try:
        formula = reader.formula(value)
    except BadInput as error:
        raise BrokenError("illegal_formula", f"{dimension.name}: {error.problem.rstrip('.')}") from None
    if not reader.is_constant(formula):
        return formula.text
    known: dict[str, Any] = {}
    for name, term in reader.terms.items():
        if term.columns <= known.keys():
            known[name] = term.compute(known)
    value = float(formula.compute(known))
    if not math.isfinite(value):
        raise BrokenError("illegal_formula", f"{dimension.name}: {formula.text} has no value in any state")
    return read_number({dimension.name: value}, dimension.name, dimension.low, dimension.high, "illegal_action")


def _read_predicate(entry: Mapping[str, Any], reader: FormulaReader) -> str:
    try:
        return reader.predicate(_read_text(entry, "predicate")).text
    except BadInput as error:
        raise BrokenError("illegal_predicate", error.problem.rstrip(".")) from None


def _read_text(entry: Mapping[str, Any], name: str) -> str:
    text = read_field(entry, name)
    if not isinstance(text, str):
        raise BrokenError("wrong_type", f"{name} is {show(text)}; text is allowed")
    return text
