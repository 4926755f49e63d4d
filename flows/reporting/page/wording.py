"""How numbers, intervals, times and settings are written for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

Pairs = list[tuple[str, str]]


def number(value: float | None, digits: int = 1) -> str:
    """A number as a person reads it, with a true minus sign and thin spaces between thousands."""
    if value is None:
        return "–"
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "−")


def spread(row: Mapping[str, Any]) -> str:
    """A mean with its interval."""
    return f"{number(row['return_'])} {interval_of(row)}"


def interval_of(row: Mapping[str, Any]) -> str:
    """An interval."""
    return f"[{number(row['low'])}, {number(row['high'])}]"


def when(moment: datetime | None) -> str:
    """A time to the minute, in UTC."""
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M UTC")


def pairs_of(value: object, prefix: str = "") -> Pairs:
    """Nested JSON as rows of a dotted name and a value; what is not set is left out."""
    if isinstance(value, Mapping):
        return [
            pair for key, item in value.items() for pair in pairs_of(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(str(item) for item in value))]
    return [(prefix, str(value).lower() if isinstance(value, bool) else str(value))]


def plain_reason(reason: str | None) -> str:
    """A sentence with the arms as people call them."""
    return re.sub(r"(?<![\w])-(?=\d)", "−", (reason or "").replace("no_labels", "no labels"))


def read_object(text: Any) -> dict[str, Any]:
    """The object that a JSON column holds; an empty one if there is none."""
    value = json.loads(text) if isinstance(text, str) else text
    return value if isinstance(value, dict) else {}
