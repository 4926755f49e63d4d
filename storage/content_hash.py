"""How values are written down, the same on every machine: as JSON, as hashes and ids of their content, and in SQL."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

_CHUNK = 1 << 20
_SEAL = "<!-- sha256 of all above: "


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, valid JSON even for infinite numbers.

    Infinity and NaN become the strings `"Infinity"`, `"-Infinity"` and `"NaN"`, which pydantic reads back as numbers.

    Args:
        value: a pydantic model, or mappings, lists, tuples, strings, numbers, booleans and None.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_id(prefix: str, value: Any, length: int = 16) -> str:
    """`prefix` followed by the first `length` hexadecimal digits of the sha256 of the canonical JSON of `value`."""
    return prefix + sha256_bytes(canonical_json(value).encode())[:length]


def sha256_bytes(content: bytes | memoryview) -> str:
    """The sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def sql_text(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def sql_name(name: str) -> str:
    """The name of a column or table as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def seal(page: bytes) -> bytes:
    """An HTML page with its own hash as the last line, so that damage shows."""
    return page + f"{_SEAL}{sha256_bytes(page)} -->\n".encode()


def is_sealed(path: Path) -> bool:
    """Whether a page is what was sealed; one without a seal has to end as pages do."""
    page, mark, seal_ = path.read_bytes().rpartition(_SEAL.encode())
    if not mark:
        return seal_.rstrip().endswith(b"</html>")
    return seal_ == f"{sha256_bytes(page)} -->\n".encode()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="python"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _spell(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no canonical JSON: {value!r}")


def _spell(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
