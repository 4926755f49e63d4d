"""Reads tables in pieces of whole episodes, so a file may be larger than memory. No rule is checked."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..datasets import require_readable
from ..disk import explain_full, require_growth, require_regular
from ..errors import BadInput
from .text_rows import PACKED, TEXT, TextRows, text_kind

ROWS = 65_536  # rows read at a time; a piece has more if an episode does
MAX_ROWS = 100_000_000
"""Of one file."""
MAX_COLUMNS = 20_000
"""Of one file; longer observations are lists in one column."""
MAX_EPISODE_BYTES = 1 << 31
"""Of one episode, which is held in memory at once."""
_PIECE_BYTES = 1 << 28
_BROKEN = (
    pa.ArrowException,
    pl.exceptions.PolarsError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    MemoryError,
    csv.Error,
)


class Batch(NamedTuple):
    """Some rows of a file."""

    table: pa.Table
    place: Callable[[int], str]  # where one of them is in the file


class RowFile:
    """A file of rows that can be read again and again; use it in a `with` block.

    Args:
        path: Parquet, JSON lines or CSV, the latter two packed or not.

    Raises:
        BadInput: if there is no such file, or it is none of these.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = TemporaryDirectory(prefix="trajnote-", ignore_cleanup_errors=True)
        self._text: TextRows | None = None
        if not path.exists():
            raise BadInput(f"There is no file {path}.")
        require_regular(path)
        try:
            rows = self._as_parquet()
            if self._text is None:
                require_readable(rows)
            self._file = pq.ParquetFile(rows)
            self._rows = _check_parquet(path, self._file)
        except _BROKEN as error:
            raise explain_full(error, Path(self._folder.name)) or unreadable(path, error) from error

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._folder.cleanup()

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return self._file.schema_arrow.names

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self._file.metadata.num_rows

    @property
    def notes(self) -> dict[bytes, bytes]:
        """What its writer put beside the rows."""
        return self._file.schema_arrow.metadata or {}

    @property
    def findings(self) -> list[str]:
        """What was found out about how it is written, in sentences."""
        return self._text.notes if self._text else []

    def batches(self, columns: list[str] | None = None) -> Iterator[Batch]:
        """Its rows, some at a time, in its order; one empty batch if there are none.

        Raises:
            BadInput: if it is damaged.
        """
        start = 0
        try:
            for table in self._tables(columns):
                yield Batch(table, partial(self._place, start))
                start += table.num_rows
        except _BROKEN as error:
            raise unreadable(self._path, error) from error

    def _tables(self, columns: list[str] | None) -> Iterator[pa.Table]:
        if not self.rows:
            yield self._file.read(columns)
        for batch in self._file.iter_batches(min(ROWS, self._rows), columns=columns):
            yield pa.Table.from_batches([batch])

    def _place(self, start: int, row: int) -> str:
        return self._text.place(start + row) if self._text else f"{self._path}, row {start + row} (the first is 0)"

    def _as_parquet(self) -> Path:
        if self._path.suffix == ".parquet":
            return self._path
        if text_kind(self._path) is None:
            raise BadInput(
                f"{self._path} has the ending {self._path.suffix!r}.",
                f"Allowed are .parquet, {', '.join(TEXT)} (also with {' or '.join(PACKED)} behind it), .h5, .hdf5 and "
                "the folder of a dataset.",
            )
        self._text = TextRows(self._path, Path(self._folder.name))
        return self._text.parquet


def _check_parquet(path: Path, file: pq.ParquetFile) -> int:
    """Refuse a Parquet file that claims more than anybody should read; its pages are not looked at.

    Returns:
        How many of its rows may be read at a time.

    Raises:
        BadInput: naming the column, or what there is too much of.
    """
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise BadInput(f"{path} has more than one column {twice!r}.", "Give each its own name.")
    if len(names) > MAX_COLUMNS:
        raise BadInput(
            f"{path} has {len(names):,} columns; {MAX_COLUMNS:,} are allowed.",
            "Write an observation as one column of lists.",
        )
    if file.metadata.num_rows > MAX_ROWS:
        raise BadInput(f"{path} has {file.metadata.num_rows:,} rows; {MAX_ROWS:,} are allowed.", "Split the file.")
    widest = 1
    for place in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(place)
        values = 0
        for column, kind in zip(map(group.column, range(group.num_columns)), file.schema, strict=True):
            if kind.max_repetition_level:  # lists; all others have one value for each row
                where = f"{path}: the column {column.path_in_schema.removesuffix('.list.element')!r}"
                require_growth(where, 8 * column.num_values, column.total_compressed_size)
            values += column.num_values
        widest = max(widest, 8 * values // max(group.num_rows, 1))
    return max(1, _PIECE_BYTES // widest)


def whole_episodes(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows cut between episodes; rows of one episode lie together."""
    rest: list[pa.Table] = []  # the beginning of an episode whose end was not seen yet
    for table in tables:
        if rest and _id(table, 0) != _id(rest[0], 0):
            yield pa.concat_tables(rest)
            rest = []
        if start := _last_start(table):
            yield pa.concat_tables([*rest, table.slice(0, start)])
            rest = []
        rest.append(table.slice(start))
        if (size := sum(piece.nbytes for piece in rest)) > MAX_EPISODE_BYTES:
            episode = _id(rest[0], 0)
            raise BadInput(f"Episode {episode} has over {size:,} bytes; {MAX_EPISODE_BYTES:,} are allowed.")
    if rest:
        yield pa.concat_tables(rest)


def number_episodes(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Rows without an episode's number get one; a row with a flag is the last one of its episode."""
    done = 0
    for table in tables:
        ends = _any_flag(table)
        ids = done + np.cumsum(np.append(0, ends[:-1])) if len(ends) else np.zeros(0, np.int64)
        done = int(ids[-1] + ends[-1]) if len(ends) else done
        yield table.append_column("episode_id", pa.array(ids.astype(np.int64)))


def guarded(tables: Iterable[pa.Table], path: Path, errors: tuple[type[Exception], ...]) -> Iterator[pa.Table]:
    """The same tables; what goes wrong while they are read, and only that, is the file's fault.

    Raises:
        BadInput: in place of the errors named.
    """
    try:
        yield from tables
    except errors as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> BadInput:
    """What is said of a file that cannot be read, in one line."""
    lines = str(error).splitlines()
    return BadInput(f"{path} cannot be read: {lines[0] if lines else type(error).__name__}.")


def _any_flag(table: pa.Table) -> np.ndarray:
    flags = [name for name in ("terminated", "truncated") if name in table.column_names]
    columns = [np.asarray(pc.fill_null(table[name].cast(pa.bool_()), False)) for name in flags]
    return np.any(columns, axis=0) if columns else np.zeros(table.num_rows, np.bool_)


def _last_start(table: pa.Table) -> int:
    ids = np.asarray(table["episode_id"])
    changes = np.flatnonzero(ids[1:] != ids[:-1])
    return int(changes[-1]) + 1 if len(changes) else 0


def _id(table: pa.Table, row: int) -> int:
    return table["episode_id"][row].as_py()
