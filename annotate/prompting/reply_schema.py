"""The JSON schema of a reply, for servers that can make a model keep to it.

It is written out by hand, because its bytes are part of a request's id and must not change with a library. Structured
output knows no numeric bounds; the prompt states them and `parsing/labels.py` checks them. The order of the properties
is the order of the answer: the reason comes before the action, so that the action follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..cards import Card
from .templates import Kind

Schema = dict[str, Any]


def reply_schema(kind: Kind, card: Card) -> Schema:
    """The schema of a whole reply: an assessment and a list of labels, of steps, or of rules, as was asked for."""
    if kind == "rules":
        return _object(
            {
                "assessment": {"type": "string"},
                "terms": {"type": "array", "items": _object(_term())},
                "rules": {"type": "array", "items": _object(_rule(card))},
                "potential": _OPEN_TEXT,
            }
        )
    if kind == "study":
        return _object({"assessment": {"type": "string"}, "terms": {"type": "array", "items": _object(_term())}})
    items = "steps" if kind == "identify" else "labels"
    entry = _step() if kind == "identify" else _step() | _label(card)
    return _object({"assessment": {"type": "string"}, items: {"type": "array", "items": _object(entry)}})


def _step() -> Schema:
    return {"step": {"type": "integer"}, "rationale": {"type": "string"}}


def _label(card: Card) -> Schema:
    return {
        "suggested_action": _action(card),
        "implicit_reward": {"type": "number"},
        "confidence": {"type": "number"},
        "critical": {"type": "boolean"},
    }


_OPEN_TEXT: Schema = {"anyOf": [{"type": "string"}, {"type": "null"}]}


def _term() -> Schema:
    return {name: {"type": "string"} for name in ("name", "expression", "meaning")}


def _rule(card: Card) -> Schema:
    return {
        "rationale": {"type": "string"},
        "predicate": {"type": "string"},
        "suggested_action": _action(card) if card.is_discrete else _open_action(card),
        "critical": {"type": "boolean"},
        "confidence": {"type": "number"},
    }


def _open_action(card: Card) -> Schema:
    """An action whose dimensions may be computed, or left as they were."""
    part: Schema = {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]}
    return _object(dict.fromkeys(card.action_names, part))


def _action(card: Card) -> Schema:
    if card.is_discrete:
        return {"type": "string", "enum": list(card.action_names)}
    return _object({name: {"type": "number"} for name in card.action_names})


def _object(properties: Mapping[str, Any]) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
