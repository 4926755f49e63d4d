"""Maps the columns of a plain file, and converts cells to what they mean: flags, numbers, ids or lists.

Files differ in how they write them: `yes` or `1` for true, text for numbers, `[0.1, 0.2]` in a CSV, half floats. Errors
name the first bad cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..disk import shorten
from ..errors import BadInput, did_you_mean
from ..schema import Array

Bools = NDArray[np.bool_]
Place = Callable[[int], str]  # row of a piece -> its place in the file: `line 7`
LISTS = ("observation", "next_observation", "action", "policy_output")
FLAGS = ("terminated", "truncated")
_TRUE, _FALSE = ("true", "t", "yes", "y", "1", "1.0"), ("false", "f", "no", "n", "0", "0.0")
_FLAG_HINT = f"Allowed: {', '.join(_TRUE)}; {', '.join(_FALSE)}; in upper or lower case."


@dataclass
class EpisodeNames:
    """Texts that name episodes, numbered in the order in which they appear."""

    numbers: dict[str, int] = field(default_factory=dict[str, int])

    def number(self, texts: list[str]) -> NDArray[np.int64]:
        """The numbers of some names, (N,)."""
        return np.array([self.numbers.setdefault(text, len(self.numbers)) for text in texts], np.int64)

    def sentences(self) -> list[str]:
        """Which name has which number; empty without names."""
        shown = ", ".join(f"{name!r} is {number}" for name, number in itertools.islice(self.numbers.items(), 10))
        return [f"episodes are numbered as their names appear: {shown}"] if self.numbers else []


class CellReader(NamedTuple):
    """Reads the cells of one piece of a file."""

    place: Place
    names: EpisodeNames  # so far

    def read(self, column: pa.ChunkedArray, name: str, meaning: str) -> pa.ChunkedArray:
        """Convert one column of a file to what it means; a column that needs no change is not copied.

        Args:
            column: as the file has it.
            name: of the column in the file.
            meaning: a column of the steps schema, or `next_observation`.

        Raises:
            BadInput: naming the place, the column and the first value that cannot be read.
        """
        cells = _Cells(_plain(column), name, self.place)
        if pa.types.is_null(cells.column.type):
            return cells.column
        if meaning in FLAGS:
            return _flags(cells)
        if meaning == "episode_id":
            return _ids(cells, self.names)
        if meaning in ("step", "seed"):
            return _whole(cells, may_miss=meaning == "seed")
        if meaning in LISTS and (is_list(cells.column.type) or _is_text_list(cells)):
            return _lists(cells)
        return _numbers(cells)


def same_whole(values: Array, converted: Array) -> Bools:
    """Where whole numbers stay the same when converted to another dtype."""
    with np.errstate(all="ignore"):
        same = (converted.astype(values.dtype) == values) & ((converted < 0) == (values < 0))
    beyond = 2.0 ** (8 * values.dtype.itemsize - (values.dtype.kind == "i"))  # rounded up to that, it overflows
    return same & (converted < beyond) if converted.dtype.kind == "f" else same


@dataclass(frozen=True)
class _Cells:
    column: pa.ChunkedArray
    name: str
    place: Place

    def require(self, good: Bools, complaint: str, hint: str = "") -> None:
        """Refuse the first cell that is not `good`."""
        if (wrong := np.flatnonzero(~good)).size:
            value = str(self.column[int(wrong[0])].as_py())
            shown = value if len(value) <= 40 else value[:40] + "..."
            raise BadInput(f"{self.place(int(wrong[0]))}, column {self.name!r}: {shown!r} {complaint}.", hint)


def _flags(cells: _Cells) -> pa.ChunkedArray:
    kind = cells.column.type
    if pa.types.is_boolean(kind):
        return cells.column
    absent = np.asarray(cells.column.is_null())
    if _is_text(kind):
        texts = _series(cells.column).str.to_lowercase().fill_null("")
        is_true, is_false = (texts.is_in(words).to_numpy() for words in (_TRUE, _FALSE))
    elif is_number(kind):
        values = np.asarray(pc.fill_null(cells.column, 0))
        is_true, is_false = values == 1, values == 0
    else:
        raise _wrong_type(cells, "true or false, or 1 or 0")
    cells.require(is_true | is_false | absent, "is neither true nor false", _FLAG_HINT)
    return pa.chunked_array([pa.array(is_true & ~absent, mask=absent)])


def _ids(cells: _Cells, names: EpisodeNames) -> pa.ChunkedArray:
    if not _is_text(cells.column.type):
        return _whole(cells, may_miss=False)
    cells.require(~np.asarray(cells.column.is_null()), "names no episode")
    return pa.chunked_array([pa.array(names.number(cells.column.to_pylist()))])


def _whole(cells: _Cells, *, may_miss: bool) -> pa.ChunkedArray:
    """Whole numbers as int64, also where they are written as text or as floats."""
    numbers = _numbers(cells)
    cells.require(~np.asarray(numbers.is_null()) | may_miss, "is missing")
    if pa.types.is_integer(numbers.type):
        if numbers.type == pa.uint64():
            fits = np.asarray(pc.fill_null(numbers, 0)) < 2**63
            cells.require(fits, f"is larger than {2**63 - 1}, the largest number allowed")
        return numbers.cast(pa.int64())
    values = np.asarray(pc.fill_null(numbers, 0)).astype(np.float64)
    cells.require((np.abs(values) < 2**53) & (values == np.floor(values)), "is not a whole number")
    return pa.chunked_array([pa.array(values.astype(np.int64), mask=np.asarray(numbers.is_null()))])


def _numbers(cells: _Cells) -> pa.ChunkedArray:
    kind = cells.column.type
    if _is_text(kind):
        return _parsed(cells)
    if (plain := _plain_number(kind)) is None:
        raise _wrong_type(cells, "numbers")
    return cells.column.cast(plain)


def _plain_number(kind: pa.DataType) -> pa.DataType | None:
    """The type in which numbers of a type are read; None if it has no numbers."""
    if pa.types.is_boolean(kind):
        return pa.uint8()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_decimal(kind):
        return pa.float64()
    return kind if is_number(kind) else None


def _parsed(cells: _Cells) -> pa.ChunkedArray:
    texts = cells.column.to_pylist()
    values = np.zeros(len(texts))
    good = np.ones(len(texts), np.bool_)
    for row, text in enumerate(texts):
        if text is not None:
            try:
                values[row] = _number(text)
            except ValueError:
                good[row] = False
    cells.require(
        good, "is not a number, or is a whole number too large for a float", "Write decimals with a point: 0.5."
    )
    return pa.chunked_array([pa.array(values, mask=np.array([text is None for text in texts], np.bool_))])


def _number(text: str) -> float:
    """A number that is written as text.

    Raises:
        ValueError: if it is not a number, or a whole number with so many digits that it would be rounded.
    """
    number = float(text.replace("_", "x"))
    if abs(number) >= 2**53 and text.lstrip("+-").isdecimal() and int(text) != int(number):
        raise ValueError(text)
    return number


def _lists(cells: _Cells) -> pa.ChunkedArray:
    """Lists of numbers, all of the same length; null where there is none."""
    column = cells.column if is_list(cells.column.type) else _parsed_lists(cells)
    inner = column.type.value_type
    plain = inner if pa.types.is_null(inner) else _plain_number(inner)
    if plain is None:
        raise _wrong_type(cells, "lists of numbers")
    absent = np.asarray(column.is_null())
    lengths = np.asarray(pc.fill_null(pc.call_function("list_value_length", [column]), 0))
    size = int(lengths[~absent][0]) if not absent.all() else 0
    cells.require(absent | (lengths == size), f"does not have as many numbers as the first one, {size}")
    return column if plain == inner else column.cast(pa.list_(plain))


def _parsed_lists(cells: _Cells) -> pa.ChunkedArray:
    found = [None if text is None else _list_of(text) for text in cells.column.to_pylist()]
    is_list = np.array([numbers is not None for numbers in found], np.bool_)
    cells.require(is_list | np.asarray(cells.column.is_null()), "is not a list of numbers such as [0.1, 0.2]")
    return pa.chunked_array([pa.array(found, pa.list_(pa.float64()))])


def _list_of(text: str) -> list[float] | None:
    """`[0.1, 0.2]`, or `[0.1 0.2]` as NumPy prints it; None if it is neither."""
    inner = text.strip()
    if not (inner.startswith(("[", "(")) and inner.endswith(("]", ")"))):
        return None
    parts = inner[1:-1].replace(",", " ").split()
    try:
        return [_number(part) for part in parts]
    except ValueError:
        return None


def _is_text_list(cells: _Cells) -> bool:
    if not _is_text(cells.column.type) or not (present := cells.column.drop_null()):
        return False
    return str(present[0].as_py()).lstrip().startswith(("[", "("))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts without blanks around them, null where nothing is left; dictionary columns are decoded."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not _is_text(column.type):
        return column
    stripped = _series(column).str.strip_chars()
    return pa.chunked_array([stripped.set(stripped == "", None).to_arrow()])


def _series(column: pa.ChunkedArray) -> pl.Series:
    return pl.Series(pl.from_arrow(column))


def _wrong_type(cells: _Cells, needed: str) -> BadInput:
    return BadInput(f"The column {cells.name!r} is of type {cells.column.type}; it has to be {needed}.")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_number(kind: pa.DataType) -> bool:
    """Whether values of a type are whole or floating numbers."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of a type are lists, of fixed size or not."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


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


def list_names(columns: Columns, meaning: str) -> tuple[str, ...]:
    """The names that the columns of a list give its numbers; empty if they give none."""
    names = columns.get(meaning, ())
    return tuple(name.removeprefix(f"{meaning}.") for name in names) if len(names) > 1 else ()


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
        near = did_you_mean(name, there)
        raise BadInput(f"The column {name!r} is missing.{near}", f"Known: {shorten(', '.join(there[:_SHOWN]), 300)}.")


def map_columns(table: pa.Table, columns: Columns, reader: CellReader) -> pa.Table:
    """Rename the named columns to those of the steps schema.

    Raises:
        BadInput: if a cell is not what its meaning needs.
    """
    return pa.table({meaning: _join(table, meaning, names, reader) for meaning, names in columns.items()})


def _join(table: pa.Table, meaning: str, names: Sequence[str], reader: CellReader) -> pa.ChunkedArray | pa.Array:
    cells = [reader.read(table[name], name, meaning) for name in names]
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
