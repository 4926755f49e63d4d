"""The DuckDB catalog: short-lived connections, one writer at a time, and a bounded wait for the file's lock.

It does not know the tables (`tables.py`), the views (`views.py`) or what the rows mean.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa

from ..disk import explain_disk
from ..errors import BadInput, CatalogLocked, DamagedStore, DiskFailed
from ..schema import canonical_json
from . import engine
from .engine import LatchTimeoutError, latch_of

Connection = duckdb.DuckDBPyConnection
OnConflict = Literal["ignore", "replace", "error"]
Row = dict[str, Any]
"""A row by the names of its columns."""

WAIT_VARIABLE = "TRAJNOTE_LOCK_WAIT"
DEFAULT_WAIT_S = 30.0

_GATE = "rollouts"
"""The folder whose lock says that somebody waits to write; a lock of the file itself would end DuckDB's own."""
_POLITE_S = 5.0
"""Seconds for which a reader lets a writer go first at most."""
_PAUSE_S = 0.02
_CORRUPT = "Corrupt database file"
_SHARD = ".parquet"
_OF_FILES = (duckdb.IOException, duckdb.SerializationException, duckdb.InternalException, duckdb.FatalException)
_LOCKED = (
    "Could not set lock on file",  # another process has it open
    "different configuration than existing connections",  # this one has, by a connection that is not shared
    "Unique file handle conflict",
)
_ARROW_TYPES: Mapping[str, pa.DataType] = {
    "VARCHAR": pa.string(),
    "JSON": pa.string(),
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", tz="UTC"),
    "VARCHAR[]": pa.list_(pa.string()),
    "DOUBLE[]": pa.list_(pa.float64()),
}
_INSERT = {"ignore": "INSERT OR IGNORE INTO", "replace": "INSERT OR REPLACE INTO", "error": "INSERT INTO"}


class Catalog:
    """One DuckDB file, opened only for as long as a `with` block lasts.

    DuckDB lets one process write, or several read, never both. Whoever comes second waits here, then gets a
    `CatalogLocked` that names the process in the way. Threads of one process take turns in the same manner.

    Args:
        path: the file, which must exist before it is read or written (see `Store.create`).
        wait_s: seconds to wait for the lock; `TRAJNOTE_LOCK_WAIT` or 30 when None.
    """

    def __init__(self, path: Path, wait_s: float | None = None) -> None:
        self.path = path
        self.wait_s = _wait_from_environment() if wait_s is None else wait_s
        self.session = ""
        """Statements at the beginning of each reading connection, which may make temporary views."""
        self.refusal: DiskFailed | None = None
        """Why nothing is written, where this is a copy that is gone when the process ends."""

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A read-only connection; inside this thread's own `write()` it is that connection, and sees its changes.

        Inside this thread's own `read()` the file is not opened again, so one `read()` around questions that belong
        together makes them cost one connection. Fetch what is needed (`fetchall`, `to_arrow_table`) before the block
        ends.

        Raises:
            CatalogLocked: if another process or thread keeps writing for longer than `wait_s`.
            DamagedStore: if the file is missing or is not a catalog.
        """
        latch = latch_of(self.path)
        if latch.is_mine:
            yield latch.held
            return
        with self._turn(exclusive=False), self._connected(read_only=True) as con:
            yield con

    @contextmanager
    def write(self) -> Generator[Connection]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Inside this thread's own `write()` it is part of that transaction.

        Raises:
            CatalogLocked: if another process or thread keeps the file open for longer than `wait_s`.
            DamagedStore: if the file is missing or is not a catalog.
            DiskFailed: if the disk does not take the changes; the file holds what it held before.
            RuntimeError: inside a `read()` of the same thread, which could never end.
        """
        if self.refusal is not None:
            raise self.refusal
        latch = latch_of(self.path)
        if latch.is_mine and latch.is_writing:
            yield latch.held
            return
        with self._turn(exclusive=True), self._connected(read_only=False) as con:
            latch.held, latch.is_writing = con, True
            con.begin()
            try:
                yield con
                con.commit()
            except BaseException:
                with suppress(duckdb.Error):
                    con.rollback()
                raise
            finally:
                latch.held, latch.is_writing = None, False

    @contextmanager
    def read_alone(self) -> Generator[Connection]:
        """A read-only connection while no other thread of this process has the file open.

        For DuckDB's global settings, which hold for all connections of a process to the file until the last one closes.

        Raises:
            CatalogLocked, DamagedStore: as for `read`.
        """
        latch = latch_of(self.path)
        with self._turn(exclusive=True), self._connected(read_only=True, is_shared=False) as con:
            latch.held = con
            try:
                yield con
            finally:
                latch.held = None

    @contextmanager
    def _turn(self, *, exclusive: bool) -> Generator[None]:
        latch = latch_of(self.path)
        with _translated_timeout(self.path, self.wait_s):
            turn = latch.exclusive(self.wait_s) if exclusive else latch.shared(self.wait_s)
            turn.__enter__()
        try:
            yield
        finally:
            turn.__exit__(None, None, None)

    @contextmanager
    def _connected(self, *, read_only: bool, is_shared: bool = True) -> Generator[Connection]:
        con = self.connect(read_only) if is_shared else self._start()
        failed = True
        try:
            self._prepare(con, read_only=read_only)
            yield con
            failed = False
        except duckdb.Error as error:
            if _is_of_the_file(error) or explain_disk(error, self.path):
                raise _explain(error, self.path, self.wait_s) from error
            raise
        finally:
            if is_shared:
                engine.release(self.path, con, failed=failed)
            else:
                con.close()

    def _prepare(self, con: Connection, *, read_only: bool = True) -> None:
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET python_enable_replacements = false")
        con.execute("SET enable_progress_bar = false")  # it would be printed among the rows of a long question
        if self.session and read_only:
            con.execute(self.session)

    def connect(self, read_only: bool) -> Connection:
        """The process's connection to the file, once no other process holds it."""
        connect = partial(engine.connect, self.path, read_only=read_only)
        if engine.is_attached(self.path):  # a writer that waits, waits for this process
            return self._wait_for(connect)
        with self._in_line(is_writing=not read_only):
            return self._wait_for(connect)

    def _start(self) -> Connection:
        """An instance of its own, whose settings concern nobody else."""
        with self._in_line(is_writing=False):
            return self._wait_for(partial(duckdb.connect, str(self.path), read_only=True, config=dict(engine.SETTINGS)))

    @contextmanager
    def _in_line(self, *, is_writing: bool) -> Generator[None]:
        """No process begins to read while another one waits to write; readers in turns would keep it out for ever.

        Who writes holds a lock of a folder beside the file until it is connected; who reads waits until nobody does.
        Where there is no such folder, or no locks, or it takes too long, everybody just tries.
        """
        try:
            gate = os.open(self.path.parent / _GATE, os.O_RDONLY)
        except OSError:
            yield
            return
        try:
            end = time.monotonic() + (self.wait_s if is_writing else min(self.wait_s, _POLITE_S))
            while not _try_lock(gate, fcntl.LOCK_EX if is_writing else fcntl.LOCK_SH) and time.monotonic() < end:
                time.sleep(_PAUSE_S)
            if not is_writing:
                _unlock(gate)
            yield
        finally:
            _unlock(gate)  # also for a child that has inherited it
            os.close(gate)

    def _wait_for(self, connect: Callable[[], Connection]) -> Connection:
        if not self.path.is_file():
            raise DamagedStore(f"The catalog {self.path} is missing.", "Restore it from a backup of the store.")
        try:
            return connect()
        except duckdb.Error as error:
            if not _is_locked(error):
                raise _explain(error, self.path, self.wait_s) from error
        try:
            return _retry(connect, self.wait_s)
        except duckdb.Error as error:
            raise _explain(error, self.path, self.wait_s) from error


def _try_lock(descriptor: int, kind: int) -> bool:
    """Lock an open folder, unless somebody else has it; where locks do not exist, nobody has."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _unlock(descriptor: int) -> None:
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def create_file(path: Path, fill: Callable[[Connection], None]) -> None:
    """Make a catalog file and fill it, in one transaction.

    Raises:
        DiskFailed: if the disk does not take it.
    """
    try:
        with duckdb.connect(str(path), config=dict(engine.SETTINGS)) as con:
            con.begin()
            fill(con)
            con.commit()
    except duckdb.Error as error:
        if (failed := explain_disk(error, path)) is None:
            raise
        raise failed from error


def insert_rows(
    con: Connection, table: str, rows: Sequence[Mapping[str, object]], *, on_conflict: OnConflict = "ignore"
) -> int:
    """Insert rows by column name, all alike in one statement; columns that a row does not name get their default.

    Mappings and sequences in JSON columns become canonical JSON; times are datetimes or ISO 8601 texts.

    Args:
        con: a connection of `Catalog.write`.
        table: the table's name.
        rows: column name -> value.
        on_conflict: what happens to a row whose primary key exists: "ignore" it, "replace" the old one, or an "error".

    Returns:
        How many rows were inserted or replaced.

    Raises:
        BadInput: if a row has a column that the table lacks, or a value breaks one of the table's rules.
    """
    types = _column_types(con, table)
    groups: dict[tuple[str, ...], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    for name in {name for names in groups for name in names}:
        if name not in types:
            raise BadInput(f"The table {table} has no column {name!r}.", f"It has {', '.join(types)}.")
    return sum(
        _insert_alike(con, f"{_INSERT[on_conflict]} {table}", group, {name: types[name] for name in names})
        for names, group in groups.items()
    )


def rows_of(answer: Connection) -> list[Row]:
    """All rows of an executed statement, each as a dictionary by column."""
    names = [column[0] for column in answer.description or ()]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def error_line(error: Exception) -> str:
    """The first line of an error's text: what the reader needs, without DuckDB's picture of the statement."""
    return str(error).strip().split("\n", 1)[0].rstrip(".!")


def _insert_alike(con: Connection, start: str, rows: Sequence[Mapping[str, object]], types: Mapping[str, str]) -> int:
    columns = {name: _arrow_column(name, [row[name] for row in rows], kind) for name, kind in types.items()}
    con.register("incoming_rows", pa.table(columns))
    try:
        counted = con.execute(f"{start} BY NAME SELECT * FROM incoming_rows").fetchone()
    except (duckdb.ConstraintException, duckdb.ConversionException) as error:
        raise BadInput(f"A row does not fit into a table ({start}): {error_line(error)}") from error
    finally:
        with suppress(duckdb.Error):  # a failed statement has aborted the transaction
            con.unregister("incoming_rows")
    return int(counted[0]) if counted else 0


def _column_types(con: Connection, table: str) -> dict[str, str]:
    try:  # `duckdb_columns()` would work out all views for it
        described = con.execute("SELECT name, type FROM pragma_table_info(?)", [table]).fetchall()
    except duckdb.CatalogException as error:
        raise BadInput(f"The catalog has no table {table!r}.") from error
    return dict(described)


def _arrow_column(name: str, values: list[Any], kind: str) -> pa.Array:
    try:
        if kind == "JSON":
            values = [value if value is None or isinstance(value, str) else canonical_json(value) for value in values]
        if kind.startswith("TIMESTAMP"):
            values = [datetime.fromisoformat(value) if isinstance(value, str) else value for value in values]
        return pa.array(values, _ARROW_TYPES[kind])
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BadInput(
            f"The column {name} cannot hold one of its values: {error}.", f"It is of type {kind}."
        ) from error


def _wait_from_environment() -> float:
    text = os.environ.get(WAIT_VARIABLE, "")
    try:
        wait_s = float(text or DEFAULT_WAIT_S)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s < float("inf"):
        raise BadInput(f"{WAIT_VARIABLE} is {text!r}.", "It has to be a number of seconds, for example 30.")
    return wait_s


def _retry(connect: Callable[[], Connection], wait_s: float) -> Connection:
    """Try again and again while somebody else has the file open."""
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random  # seldom needed, slow to import

    stop = stop_after_delay(wait_s)
    attempts = Retrying(retry=retry_if_exception(_is_locked), wait=wait_random(0.02, 0.2), stop=stop, reraise=True)
    return attempts(connect)


def _is_locked(error: BaseException) -> bool:
    return isinstance(error, duckdb.Error) and any(text in str(error) for text in _LOCKED)


def _is_of_the_file(error: duckdb.Error) -> bool:
    """Whether a file is damaged, not a statement wrong."""
    return is_corrupt(error) or _SHARD in str(error) or isinstance(error, _OF_FILES) or type(error) is duckdb.Error


def is_corrupt(error: duckdb.Error) -> bool:
    """Whether DuckDB met a damaged block of a catalog."""
    return _CORRUPT in str(error) or isinstance(error, duckdb.SerializationException | duckdb.FatalException)


def _explain(error: duckdb.Error, path: Path, wait_s: float) -> CatalogLocked | DamagedStore | DiskFailed:
    if not _is_locked(error):
        what = "The store's files" if _SHARD in str(error) else f"The catalog {path}"
        problem = f"{what} cannot be read: {error_line(error)}."
        hint = "`trajnote store verify` names everything that is damaged; restore it from a backup."
        return explain_disk(error, path) or DamagedStore(problem, hint)
    holder = re.search(r"PID (\d+)", str(error))
    return _locked(path, wait_s, int(holder[1]) if holder else os.getpid())


def _locked(path: Path, wait_s: float, pid: int) -> CatalogLocked:
    who = "another part of this process" if pid == os.getpid() else f"process {pid}"
    return CatalogLocked(
        f"The catalog {path} is in use by {who}; waited {wait_s:g} s.",
        f"Wait until it has finished (`ps {pid}` shows it), then run this again; {WAIT_VARIABLE}=SECONDS waits longer.",
    )


@contextmanager
def _translated_timeout(path: Path, wait_s: float) -> Generator[None]:
    try:
        yield
    except LatchTimeoutError as error:
        raise _locked(path, wait_s, os.getpid()) from error
