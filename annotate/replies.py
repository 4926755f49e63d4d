"""From a raw reply to labels and rejections: whatever breaks a rule is kept with its reason, the rest still counts.

A reply is hostile until proven otherwise: nothing in it raises, nothing is corrected or clipped, nothing is carried
out. How text and JSON are found in a message is in `messages.py`; what becomes of labels is in `ledger.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .cards import Card
from .messages import MAX_RAW, Entry, Message, Trouble, clean_text, find_entries, read_message
from .prompts import Kind
from .tables import label_vector

MAX_RATIONALE = 1_000
"""Characters of a rationale that are kept; the prompt asks for one sentence."""
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
class Refused:
    """A piece of a reply that breaks a rule."""

    position: int  # of the entry in the reply; -1 for the reply itself
    step: int | None
    reason: str
    detail: str
    raw: str


@dataclass(frozen=True)
class Reading:
    """Everything that was understood of one reply."""

    message: Message
    assessment: str
    labels: tuple[Label, ...]
    refused: tuple[Refused, ...]


class _Broken(Exception):
    """A rule is broken; carries the trouble to where the entry is known."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.trouble = Trouble(reason, detail)


def read_reply(raw: str, kind: Kind, card: Card, steps: Collection[int]) -> Reading:
    """Validate a reply.

    Args:
        raw: the message as it came.
        kind: what was asked.
        card: the legal actions.
        steps: the steps that the request showed; a label may name no other.

    Returns:
        The labels that keep every rule, at most one for each step, and what was refused. It never raises.
    """
    message = read_message(raw)
    if message.trouble and message.trouble.reason != "max_tokens" and not _worth_reading(message):
        return Reading(message, "", (), (_refuse_reply(message.trouble, message.text or raw),))
    found = find_entries(message.text, "steps" if kind == "identify" else "labels")
    refused = [_refuse_reply(t, message.text) for t in (message.trouble, found.trouble) if t][:1]
    labels: dict[int, Label] = {}
    for position, entry in enumerate(found.entries[:MAX_ENTRIES]):
        try:
            label = _read_entry(entry, kind, card, steps)
            if label.step in labels:
                raise _Broken("duplicate_step", f"step {label.step} has a label already")
            labels[label.step] = label
        except _Broken as broken:
            refused.append(_refuse_entry(position, entry, broken.trouble))
    if len(found.entries) > MAX_ENTRIES:
        trouble = Trouble("too_many", f"{len(found.entries)} entries, {MAX_ENTRIES} are read")
        refused.append(_refuse_reply(trouble, message.text))
    return Reading(message, found.assessment, tuple(labels.values()), tuple(refused))


def _worth_reading(message: Message) -> bool:
    return message.trouble is not None and message.trouble.reason == "too_long"


def _refuse_reply(trouble: Trouble, raw: str) -> Refused:
    return Refused(-1, None, trouble.reason, trouble.detail, clean_text(raw, MAX_RAW))


def _refuse_entry(position: int, entry: Entry, trouble: Trouble) -> Refused:
    try:
        raw = json.dumps(entry, ensure_ascii=False)
    except (ValueError, RecursionError):
        raw = "not printable"
    return Refused(position, _step_if_any(entry), *trouble, clean_text(raw, MAX_RAW))


def _step_if_any(entry: Entry) -> int | None:
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**31 else None


def _read_entry(entry: Entry, kind: Kind, card: Card, steps: Collection[int]) -> Label:
    if not isinstance(entry, dict):
        raise _Broken("wrong_type", f"a {type(entry).__name__} in place of an object")
    step = _read_step(entry, steps)
    rationale = _read_rationale(entry)
    if kind == "identify":
        return Label(step, rationale, None, None, None, None, critical=True)
    action, action_label = _read_action(_field(entry, "suggested_action"), card)
    critical = _field(entry, "critical")
    if not isinstance(critical, bool):
        raise _Broken("wrong_type", f"critical is {_show(critical)}; true or false is allowed")
    return Label(
        step,
        rationale,
        action,
        action_label,
        implicit_reward=_read_number(entry, "implicit_reward", -1, 1),
        confidence=_read_number(entry, "confidence", 0, 1),
        critical=critical,
    )


def _read_step(entry: Mapping[str, Any], steps: Collection[int]) -> int:
    step = _field(entry, "step")
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    if isinstance(step, bool) or not isinstance(step, int):
        raise _Broken("wrong_type", f"step is {_show(step)}; the number of a row is allowed")
    if step not in steps:
        raise _Broken("unknown_step", f"step {_show(step)} has no row in the request's table")
    return step


def _read_rationale(entry: Mapping[str, Any]) -> str:
    rationale = _field(entry, "rationale")
    if not isinstance(rationale, str):
        raise _Broken("wrong_type", f"rationale is {_show(rationale)}; text is allowed")
    return clean_text(rationale, MAX_RATIONALE)


def _read_action(action: object, card: Card) -> tuple[tuple[float, ...], str]:
    if card.is_discrete:
        if not isinstance(action, str) or action not in card.action_names:
            raise _Broken("illegal_action", f"{_show(action)} is none of {', '.join(card.action_names)}")
        return (float(card.action_names.index(action)),), action
    if not isinstance(action, dict) or set(action) != set(card.action_names):
        raise _Broken(
            "illegal_action", f"{_show(action)} does not give {', '.join(card.action_names)} and nothing else"
        )
    values = tuple(
        _read_number(action, dimension.name, dimension.low, dimension.high, "illegal_action")
        for dimension in card.actions
    )
    return values, label_vector(card.action_names, values, [a.decimals for a in card.actions])


def _read_number(
    entry: Mapping[str, Any], name: str, low: float | None, high: float | None, reason: str = "out_of_range"
) -> float:
    value = _field(entry, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Broken("wrong_type", f"{name} is {_show(value)}; a number is allowed")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Broken("not_finite", f"{name} is {value}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise _Broken(reason, f"{name} is {_show(value)}; {low} to {high} is allowed")
    try:
        return float(value)
    except OverflowError:
        raise _Broken("not_finite", f"{name} has {len(str(abs(value)))} digits") from None


def _field(entry: Mapping[str, Any], name: str) -> object:
    if name not in entry:
        raise _Broken("missing_field", f"{name} is missing")
    return entry[name]


def _show(value: object) -> str:
    try:
        return clean_text(json.dumps(value, ensure_ascii=False), 120)
    except (ValueError, RecursionError, TypeError):
        return f"a {type(value).__name__}"
