"""Which columns of a plain file mean what: `--column observation=x,y,z`. Only names and shapes change here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import BadInput

LISTS = ("observation", "next_observation", "action", "policy_output")
SCALARS = ("episode_id", "step", "reward", "terminated", "truncated", "seed")
_NEEDED = ("observation", "action", "reward")
_EXAMPLE = "For example --column observation=x,y --column action=a --column reward=r --column terminated=done."

Columns = Mapping[str, Sequence[str]]


def parse_columns(texts: Sequence[str]) -> dict[str, list[str]]:
    """What `--column` was given: `meaning=name` or `meaning=name,name,...`.

    Raises:
        BadInput: if one is not of that form, the meaning is unknown, named twice or needs one column.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        meaning, equals, names = text.partition("=")
        columns = [name.strip() for name in names.split(",")]
        if not equals or "" in columns:
            raise BadInput(f"--column {text!r} is not of the form meaning=column,column.", _EXAMPLE)
        if meaning not in (*LISTS, *SCALARS):
            raise BadInput(f"--column {meaning!r} has no meaning here.", f"There is {', '.join((*LISTS, *SCALARS))}.")
        if meaning in found or (meaning in SCALARS and len(columns) > 1):
            raise BadInput(f"--column {meaning} has more than one column.", _EXAMPLE)
        found[meaning] = columns
    if missing := [name for name in _NEEDED if found and name not in found]:
        raise BadInput(f"--column {missing[0]}=... is missing.", _EXAMPLE)
    return found


def spelled_columns(names: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a file that spells lists out, `observation.x`, `observation.y`, as `export --format csv` does."""
    lists = {meaning: [name for name in names if name.startswith(f"{meaning}.")] for meaning in LISTS}
    if not lists["observation"]:
        return {}
    single = {name: [name] for name in (*SCALARS, "action") if name in names}
    return single | {meaning: columns for meaning, columns in lists.items() if columns}


def list_names(columns: Columns, meaning: str) -> list[str] | None:
    """The names that the columns of a list give its numbers; None if they give none."""
    names = columns.get(meaning, ())
    return [name.removeprefix(f"{meaning}.") for name in names] if len(names) > 1 else None


def map_columns(table: pa.Table, columns: Columns) -> pa.Table:
    """The named columns under the names of the steps schema.

    Raises:
        BadInput: if a column is not there, or a column of a list is not of numbers.
    """
    for names in columns.values():
        if missing := [name for name in names if name not in table.column_names]:
            raise BadInput(f"There is no column {missing[0]!r}.", f"There is {', '.join(table.column_names)}.")
    return pa.table({meaning: _join(table, meaning, names) for meaning, names in columns.items()})


def _join(table: pa.Table, meaning: str, names: Sequence[str]) -> pa.ChunkedArray | pa.Array:
    first = table[names[0]]
    if pa.types.is_large_string(first.type) and first.null_count == len(first):
        return pa.nulls(len(first), pa.int64())  # an empty column of a text, whose type nobody could tell
    is_alone = len(names) == 1 and (meaning not in LISTS or meaning == "action" or pa.types.is_nested(first.type))
    if is_alone and not names[0].startswith(f"{meaning}."):
        return first
    for name in names:
        kind = table[name].type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise BadInput(f"The column {name!r} is of type {kind}; it has to be numbers.")
    values = np.stack([pc.fill_null(table[name], 0).to_numpy() for name in names], axis=1)
    valid = np.stack([table[name].is_valid().to_numpy() for name in names], axis=1)
    flat = pa.array(values.reshape(-1), mask=~valid.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, len(names), mask=pa.array(~valid.any(axis=1)))
