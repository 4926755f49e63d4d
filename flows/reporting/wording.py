"""How a page writes numbers, intervals, times and settings, and text from strangers: what it shows is what it is.

Rationales and raw replies come from a language model, names from cards and files of unknown origin. HTML escaping
is the template's work.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from storage.disk import visible

_NEVER_IN_A_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
_NUMBERS = {float, int, bool, type(None)}


def number(value: float | None, digits: int = 1) -> str:
    """A number for people, with a true minus sign and thin spaces between thousands."""
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


def plain_reason(reason: str | None) -> str:
    """A sentence with the arms' names for people."""
    return re.sub(r"(?<![\w])-(?=\d)", "−", (reason or "").replace("no_labels", "no labels"))


def read_object(text: Any) -> dict[str, Any]:
    """The object in a JSON column; empty if null."""
    value = json.loads(text) if isinstance(text, str) else text
    return value if isinstance(value, dict) else {}


def all_visible(value: Any) -> Any:
    """Make all texts in a JSON-able value `disk.visible`; numbers that JSON lacks become None.

    Args:
        value: nested mappings, sequences, texts, numbers, booleans and None.
    """
    if isinstance(value, float):  # numbers first: they are by far the most frequent
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): all_visible(item) for key, item in value.items()}
    return _all_of(value)


def _all_of(values: Iterable[Any]) -> list[Any]:
    """A sequence likewise; a long one of numbers or of texts at once, as the columns of an episode are."""
    items = list(values)
    kinds = set(map(type, items))
    if kinds <= _NUMBERS:
        return [None if isinstance(item, float) and not math.isfinite(item) else item for item in items]
    if kinds == {str}:
        distinct = {item: visible(item) for item in set(items)}
        return [distinct[item] for item in items]
    return [all_visible(item) for item in items]


def script_json(value: Any) -> str:
    """JSON that is safe inside a `<script>` element: no tag, comment or line separator can begin in it."""
    text = json.dumps(all_visible(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.translate(_NEVER_IN_A_SCRIPT)
