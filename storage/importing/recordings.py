"""Recordings as tables of whole episodes in the steps schema, read in pieces, so a file may be larger than memory.

Parquet, JSON lines and CSV here, HDF5 in `hdf5.py`. Nothing is checked beyond what reading needs.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from ..datasets import require_readable
from ..disk import explain_full, parse_json, read_file, require_growth, require_regular
from ..errors import BadInput
from ..schema import ManifestDraft, Provenance, Space
from .cells import CellReader, Columns, EpisodeNames, check_names, list_names, map_columns, spelled_columns
from .episode_ends import add_final_observation
from .row_validation import DERIVED, OPTIONAL, REQUIRED, ImportReport
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
        flags = [table[name].cast(pa.bool_()) for name in ("terminated", "truncated") if name in table.column_names]
        ends = np.zeros(table.num_rows, np.bool_)
        for flag in flags:
            ends |= np.asarray(pc.fill_null(flag, False))
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


def _last_start(table: pa.Table) -> int:
    ids = np.asarray(table["episode_id"])
    changes = np.flatnonzero(ids[1:] != ids[:-1])
    return int(changes[-1]) + 1 if len(changes) else 0


def _id(table: pa.Table, row: int) -> int:
    return table["episode_id"][row].as_py()


MANIFEST_KEY = "trajnote"
"""Metadata key of the manifest in an exported file."""
SIDECAR = ".manifest.json"
"""A text file's manifest is in a file of the same name with this suffix."""


class About(Provenance):
    """What is known of a recording besides its rows; fields as in the manifest, None if unknown."""

    observation_space: Space | None = None
    action_space: Space | None = None
    component_names: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None

    def but(self, **given: Any) -> About:
        """A copy in which the values given replace its own."""
        return self.model_copy(update={name: value for name, value in given.items() if value})


@dataclass(frozen=True)
class Recording:
    """Episodes that can be read repeatedly."""

    tables: Callable[[ImportReport], Iterator[pa.Table]]  # whole episodes in ascending order; counts go to the report
    about: About = field(default_factory=About)
    exactly: bool = True  # whether rounding to the space's dtype counts as a change; not for decimal text
    is_export: bool = False  # whether it carries the manifest of an exported dataset


@contextmanager
def open_rows(path: Path, columns: Columns | None = None) -> Generator[Recording]:
    """A Parquet, JSON lines or CSV file.

    Args:
        path: the file.
        columns: meaning of a column -> its names, where they are not those of the steps schema.

    Raises:
        BadInput: if it cannot be read.
    """
    with RowFile(path) as file:
        spelled = columns or spelled_columns(file.columns)
        check_names(spelled, file.columns)
        about = _read_about(path, file)
        is_export = columns is None and about is not None
        about = about or About()
        if not is_export:
            about = about.but(
                component_names=list_names(spelled, "observation"), action_names=list_names(spelled, "action")
            )
        yield Recording(
            lambda report: _pieces(file, spelled, report), about, exactly=text_kind(path) is None, is_export=is_export
        )


def parse_about(text: str | bytes, where: str) -> About:
    """Read the manifest that an export wrote.

    Raises:
        BadInput: if it is not a manifest.
    """
    try:
        found = parse_json(text, f"The manifest in {where}", "Export the dataset again.")
        draft = ManifestDraft.model_validate(
            {name: value for name, value in found.items() if name in ManifestDraft.model_fields}
        )
    except (AttributeError, ValidationError) as error:
        raise BadInput(f"The text in {where} is not a manifest.", "Export the dataset again.") from error
    return About(**{name: getattr(draft, name) for name in About.model_fields})


def sidecar(path: Path) -> Path:
    """Where the manifest of an exported text file is."""
    return path.with_name(path.name + SIDECAR)


def _read_about(path: Path, file: RowFile) -> About | None:
    """What the manifest says of an exported file, inside or beside it."""
    if notes := file.notes.get(MANIFEST_KEY.encode()):
        return parse_about(notes, str(path))
    if sidecar(path).is_file():
        return parse_about(read_file(sidecar(path)), str(sidecar(path)))
    return None


def _pieces(file: RowFile, columns: Columns, report: ImportReport) -> Iterator[pa.Table]:
    """Whole episodes; files in the steps schema already have final rows."""
    names = EpisodeNames()
    is_plain = bool(columns)
    columns = columns or {name: [name] for name in (*REQUIRED, *OPTIONAL, "next_observation") if name in file.columns}
    has_ids = "episode_id" in columns
    is_ordered = not has_ids or _is_ordered(file, columns)
    batches = (map_columns(batch.table, columns, CellReader(batch.place, names)) for batch in file.batches())
    tables = batches if is_ordered else iter([pa.concat_tables(batches)])
    if not has_ids and is_plain:
        tables = number_episodes(tables)
    pieces = whole_episodes(tables) if is_ordered else tables
    for piece in pieces:
        if is_plain or "next_observation" in columns:
            yield add_final_observation(_sorted(piece), report)
        else:
            report.finals += len(set(piece["episode_id"].to_pylist()))
            yield piece
    used = {name for group in columns.values() for name in group}
    report.rows = file.rows
    report.leave_out("columns", (name for name in file.columns if name not in used and name not in DERIVED))
    for sentence in (*file.findings, *names.sentences()):
        report.decide(sentence)


def _is_ordered(file: RowFile, columns: Columns) -> bool:
    """Whether the rows of each episode lie together, in ascending order."""
    names, last = EpisodeNames(), None
    name = columns["episode_id"][0]
    for batch in file.batches([name]):
        column = CellReader(batch.place, names).read(batch.table[name], name, "episode_id")
        if column.null_count or not batch.table.num_rows:
            return False
        values = np.asarray(column)
        if (values[1:] < values[:-1]).any() or (last is not None and values[0] < last):
            return False
        last = values[-1]
    return True


def _sorted(table: pa.Table) -> pa.Table:
    """Rows by episode, and by step where they have one."""
    keys = [table[name] for name in ("step", "episode_id") if name in table.column_names]
    if any(not pa.types.is_integer(key.type) or key.null_count for key in keys):
        raise BadInput("The columns 'episode_id' and 'step' have to be whole numbers in every row.")
    return table.take(pa.array(np.lexsort([np.asarray(key) for key in keys])))
