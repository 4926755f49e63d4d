"""From a raw reply to labels and rejections: whatever breaks a rule is kept with its reason, the rest still counts.

A reply is hostile until proven otherwise: nothing in it raises, nothing is corrected or clipped, nothing is carried
out. How text and JSON are found in a message is in `messages.py`; what becomes of labels is in `ledger/readings.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from storage.formulas import Term

from ..cards import Card
from ..prompting import Kind, label_vector
from .messages import MAX_RAW, Entry, Found, Message, ReplyProblem, clean_text, find_answer

MAX_ENTRIES = 2_000
"""Entries of one reply that are looked at; far more than a table has rows."""


@dataclass(frozen=True)
class Label:
    """What a reply says about one step, with every rule kept."""

    step: int
    rationale: str
    action: tuple[float, ...] | None  # an index into the card's list, or a number for each dimension; None in stage one
    action_label: str | None
    implicit_reward: float | None
    confidence: float | None
    critical: bool


@dataclass(frozen=True)
class ProposedRule:
    """What a reply says about all steps that meet a condition, with every rule kept."""

    position: int  # of the entry in the reply
    predicate: str  # canonical
    rationale: str
    action: tuple[float | None, ...]  # an index into the card's list, or a number for each dimension; None: as logged
    action_label: str
    confidence: float
    formulas: tuple[str | None, ...] | None = None  # canonical, in place of a number, for each dimension
    critical: bool | None = None


@dataclass(frozen=True)
class ParsedReply:
    """Everything that was understood of one reply."""

    message: Message
    assessment: str
    labels: tuple[Label, ...]
    refused: tuple[Refused, ...]
    rules: tuple[ProposedRule, ...] = ()  # only where rules were asked for
    terms: tuple[Term, ...] = ()  # named expressions, where rules or a study were asked for
    potential: str | None = None  # canonical, where rules were asked for
    is_answer: bool = True  # false: the reply holds none, and the request stays open


def find_in_reply(raw: str, kind: Kind, body: Mapping[str, Any] | None = None) -> Found:
    """The entries of a reply to some kind of request, or why it holds no answer; see `find_answer`."""
    return find_answer(raw, {"identify": "steps", "rules": "rules", "study": "terms"}.get(kind, "labels"), body)


def read_nothing(found: Found) -> ParsedReply | None:
    """The reading of a reply that holds no answer; None for one that holds one."""
    if found.problem is None:
        return None
    return ParsedReply(
        found.message, "", (), (refuse_reply(found.problem, found.message.text or found.raw),), is_answer=False
    )


def read_reply(raw: str, kind: Kind, card: Card, steps: Collection[int]) -> ParsedReply:
    """Validate a reply.

    Args:
        raw: the message as it came.
        kind: what was asked.
        card: the legal actions.
        steps: the steps that the request showed; a label may name no other.

    Returns:
        The labels that keep every rule, at most one for each step, and what was refused. It never raises.
    """
    return read_labels(find_in_reply(raw, kind), kind, card, steps)


def read_labels(reply: Found, kind: Kind, card: Card, steps: Collection[int]) -> ParsedReply:
    """Validate the entries of a reply, see `read_reply`."""
    if (nothing := read_nothing(reply)) is not None:
        return nothing
    message, found = reply.message, reply.entries
    refused = [refuse_reply(t, message.text) for t in (message.trouble, found.trouble) if t][:1]
    labels: dict[int, Label] = {}
    for position, entry in enumerate(found.entries[:MAX_ENTRIES]):
        try:
            label = _read_entry(entry, kind, card, steps)
            if label.step in labels:
                raise BrokenError("duplicate_step", f"step {label.step} has a label already")
            labels[label.step] = label
        except BrokenError as broken:
            refused.append(refuse_entry(position, entry, broken.trouble))
    if len(found.entries) > MAX_ENTRIES:
        trouble = ReplyProblem("too_many", f"{len(found.entries)} entries, {MAX_ENTRIES} are read")
        refused.append(refuse_reply(trouble, message.text))
    return ParsedReply(message, found.assessment, tuple(labels.values()), tuple(refused))


def _read_entry(entry: Entry, kind: Kind, card: Card, steps: Collection[int]) -> Label:
    if not isinstance(entry, dict):
        raise BrokenError("wrong_type", f"a {type(entry).__name__} in place of an object")
    step = _read_step(entry, steps)
    rationale = read_rationale(entry)
    if kind == "identify":
        return Label(step, rationale, None, None, None, None, critical=True)
    action, action_label = read_action(read_field(entry, "suggested_action"), card)
    critical = read_field(entry, "critical")
    if not isinstance(critical, bool):
        raise BrokenError("wrong_type", f"critical is {show(critical)}; true or false is allowed")
    return Label(
        step,
        rationale,
        action,
        action_label,
        implicit_reward=read_number(entry, "implicit_reward", -1, 1),
        confidence=read_number(entry, "confidence", 0, 1),
        critical=critical,
    )


def _read_step(entry: Mapping[str, Any], steps: Collection[int]) -> int:
    step = read_field(entry, "step")
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    if isinstance(step, bool) or not isinstance(step, int):
        raise BrokenError("wrong_type", f"step is {show(step)}; the number of a row is allowed")
    if step not in steps:
        raise BrokenError("unknown_step", f"step {show(step)} has no row in the request's table")
    return step


def read_action(action: object, card: Card) -> tuple[tuple[float, ...], str]:
    """A legal action: an index into the card's list, or a number for each dimension, and its name."""
    if card.is_discrete:
        if not isinstance(action, str) or action not in card.action_names:
            raise BrokenError("illegal_action", f"{show(action)} is none of {', '.join(card.action_names)}")
        return (float(card.action_names.index(action)),), action
    if not isinstance(action, dict) or set(action) != set(card.action_names):
        raise BrokenError(
            "illegal_action", f"{show(action)} does not give {', '.join(card.action_names)} and nothing else"
        )
    values = tuple(
        read_number(action, dimension.name, dimension.low, dimension.high, "illegal_action")
        for dimension in card.actions
    )
    return values, label_vector(card.action_names, values, [a.decimals for a in card.actions])


MAX_RATIONALE = 1_000
"""Characters of a rationale that are kept; the prompt asks for one sentence."""


@dataclass(frozen=True)
class Refused:
    """A piece of a reply that breaks a rule."""

    position: int  # of the entry in the reply; -1 for the reply itself
    step: int | None
    reason: str
    detail: str
    raw: str


class BrokenError(Exception):
    """A rule is broken; carries the trouble to where the entry is known."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.trouble = ReplyProblem(reason, detail)


def refuse_reply(trouble: ReplyProblem, raw: str) -> Refused:
    """A reply as a whole that breaks a rule."""
    return Refused(-1, None, trouble.reason, trouble.detail, clean_text(raw, MAX_RAW))


def refuse_entry(position: int, entry: Entry, trouble: ReplyProblem) -> Refused:
    """An entry that breaks a rule."""
    try:
        raw = json.dumps(entry, ensure_ascii=False)
    except (ValueError, RecursionError):
        raw = "not printable"
    return Refused(position, _step_if_any(entry), *trouble, clean_text(raw, MAX_RAW))


def _step_if_any(entry: Entry) -> int | None:
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**31 else None


def read_rationale(entry: Mapping[str, Any]) -> str:
    """Its reason, as text that anything can hold."""
    rationale = read_field(entry, "rationale")
    if not isinstance(rationale, str):
        raise BrokenError("wrong_type", f"rationale is {show(rationale)}; text is allowed")
    return clean_text(rationale, MAX_RATIONALE)


def read_number(
    entry: Mapping[str, Any], name: str, low: float | None, high: float | None, reason: str = "out_of_range"
) -> float:
    """A finite number within its bounds."""
    value = read_field(entry, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BrokenError("wrong_type", f"{name} is {show(value)}; a number is allowed")
    if isinstance(value, float) and not math.isfinite(value):
        raise BrokenError("not_finite", f"{name} is {value}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise BrokenError(reason, f"{name} is {show(value)}; {low} to {high} is allowed")
    try:
        return float(value)
    except OverflowError:
        raise BrokenError("not_finite", f"{name} has {len(str(abs(value)))} digits") from None


def read_field(entry: Mapping[str, Any], name: str) -> object:
    """A field that has to be there."""
    if name not in entry:
        raise BrokenError("missing_field", f"{name} is missing")
    return entry[name]


def show(value: object) -> str:
    """A value as a message quotes it."""
    try:
        return clean_text(json.dumps(value, ensure_ascii=False), 120)
    except (ValueError, RecursionError, TypeError):
        return f"a {type(value).__name__}"
