"""Maps the columns of a plain file: `--column observation=x,y,z`. Only names and shapes change here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..disk import shorten
from ..errors import BadInput
from ..schema import Array
from .cells import LISTS, Reader, same_whole

SCALARS = ("episode_id", "step", "reward", "terminated", "truncated", "seed")
_SHOWN = 40  # names listed in an error
_NEEDED = ("observation", "action", "reward")
_EXAMPLE = "For example --column observation=x,y --column action=a --column reward=r --column terminated=done."

Columns = Mapping[str, Sequence[str]]


def parse_columns(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse `--column meaning=name` or `--column meaning=name,name,...`.

    Raises:
        BadInput: if an option has another form, or its meaning is unknown, named twice or needs one column.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        meaning, equals, names = text.partition("=")
        columns = [name.strip() for name in names.split(",")]
        if not equals or "" in columns:
            raise BadInput(f"--column {text!r} is not of the form meaning=column,column.", _EXAMPLE)
        if meaning not in (*LISTS, *SCALARS):
            raise BadInput(f"--column {meaning!r} is not a known meaning.", f"Known: {', '.join((*LISTS, *SCALARS))}.")
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


def check_names(columns: Columns, there: Sequence[str]) -> None:
    """Refuse named columns that are missing, and needed columns that are not named.

    Args:
        columns: meaning of a column -> its names; empty for the names of the steps schema.
        there: columns of the file.

    Raises:
        BadInput: with the nearest name.
    """
    if missing := [name for name in _NEEDED if name not in (columns or there)]:
        shown = shorten(", ".join(there[:_SHOWN]), 300)
        raise BadInput(f"The column {missing[0]!r} is missing; known: {shown}.", f"Map them. {_EXAMPLE}")
    known = set(there)
    for name in (name for names in columns.values() for name in names if name not in known):
        close = difflib.get_close_matches(name, there, n=1)
        near = f" Did you mean {close[0]!r}?" if close else ""
        raise BadInput(f"The column {name!r} is missing.{near}", f"Known: {shorten(', '.join(there[:_SHOWN]), 300)}.")


def map_columns(table: pa.Table, columns: Columns, read: Reader) -> pa.Table:
    """Rename the named columns to those of the steps schema.

    Raises:
        BadInput: if a cell is not what its meaning needs.
    """
    return pa.table({meaning: _join(table, meaning, names, read) for meaning, names in columns.items()})


def _join(table: pa.Table, meaning: str, names: Sequence[str], read: Reader) -> pa.ChunkedArray | pa.Array:
    cells = [read(table[name], name, meaning) for name in names]
    first = cells[0]
    is_list = pa.types.is_nested(first.type)
    if len(names) > 1 and any(pa.types.is_nested(column.type) for column in cells):
        raise BadInput(f"--column {meaning} joins several columns, and one of them holds lists.", "Name only that one.")
    if pa.types.is_null(first.type) and len(names) == 1:
        return pa.nulls(len(first), pa.int64())
    is_alone = len(names) == 1 and (meaning not in LISTS or meaning == "action")
    if is_list or (is_alone and not names[0].startswith(f"{meaning}.")):
        return first
    values = _stacked({name: pc.fill_null(column, 0).to_numpy() for name, column in zip(names, cells, strict=True)})
    valid = np.stack([column.is_valid().to_numpy() for column in cells], axis=1)
    flat = pa.array(values.reshape(-1), mask=~valid.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, len(names), mask=pa.array(~valid.any(axis=1)))


def _stacked(columns: Mapping[str, Array]) -> Array:
    """Columns beside each other, (N, n), in a type that holds each number exactly.

    Raises:
        BadInput: if no dtype does, since NumPy would round: 2**64 - 1 beside -1, 2**53 + 1 beside 0.5.
    """
    stacked = np.stack(list(columns.values()), axis=1)
    if stacked.dtype.kind == "f" and all(values.dtype.kind in "iu" for values in columns.values()):
        has_negative = any(values.min(initial=0) < 0 for values in columns.values())
        stacked = np.stack([values.astype("int64" if has_negative else "uint64") for values in columns.values()], 1)
    for place, (name, values) in enumerate(columns.items()):
        if values.dtype.kind in "iu" and not (same := same_whole(values, stacked[:, place])).all():
            raise BadInput(
                f"The column {name!r} has {values[np.argmin(same)]}, which does not fit exactly into "
                f"{stacked.dtype}, the common type of these columns.",
                "Leave it out, or write its numbers with a decimal point to allow rounding.",
            )
    return stacked
