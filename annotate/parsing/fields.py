"""The fields of one entry of a reply: each is read by its rule, or the rule that it breaks is named.

Nothing is corrected or clipped. What an entry is made of is said in `labels.py` and `rules.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .messages import MAX_RAW, Entry, ReplyProblem, clean_text

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
