"""Text from strangers made harmless for a page: what it shows is what it is. HTML escaping is the template's work.

Rationales and raw replies come from a language model, names from cards and files of anybody.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_TAKEN_LITERALLY = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, line feed and tab excepted
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls and a space without width
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # separators that end a line of JavaScript; marks that nobody sees
    "\U000e0000-\U000e007f"  # tags, which are letters that nobody sees
    "\ud800-\udfff"  # halves of characters
    "]"
)
_NEVER_IN_A_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def visible(text: str) -> str:
    """Text in which every character that would reorder, hide or break the others shows its number: ⟨U+202E⟩."""
    return _TAKEN_LITERALLY.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text)


def all_visible(value: Any) -> Any:
    """A JSON-able value whose texts are all `visible`; numbers that JSON cannot say become None.

    Args:
        value: nested mappings, sequences, texts, numbers, booleans and None.
    """
    if isinstance(value, float):  # numbers come first: there are a hundred times more of them than of anything else
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): all_visible(item) for key, item in value.items()}
    return [all_visible(item) for item in value]


def script_json(value: Any) -> str:
    """JSON that can stand inside a `<script>` element: no tag, comment or line separator can begin in it."""
    text = json.dumps(all_visible(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return "".join(_NEVER_IN_A_SCRIPT.get(character, character) for character in text)
