"""The DuckDB catalog: short-lived connections, one writer at a time, and a bounded wait for the file's lock.

Starting a DuckDB instance costs 40 ms, attaching a file to it 5. A file is attached while somebody uses it and at no
other time, so that other processes get its lock as soon as possible; DuckDB itself holds them off. An instance in which
anything failed is thrown away. DuckDB refuses to open one file twice in a process with different configurations, so
threads take turns: many readers, or one writer.

It does not know the tables (`tables.py`), the views (`views.py`) or what the rows mean.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from ..disk import explain_disk
from ..errors import BadInput, CatalogLocked, DamagedStore, DiskFailed
from ..schema import sql_text

Connection = duckdb.DuckDBPyConnection
Row = dict[str, Any]
"""A row by the names of its columns."""
Values = Sequence[object] | Mapping[str, object]
"""Of the parameters of a statement, by their order or by their names."""

WAIT_VARIABLE = "TRAJNOTE_LOCK_WAIT"
DEFAULT_WAIT_S = 30.0
SETTINGS: Mapping[str, str] = {"autoinstall_known_extensions": "false"}
_NAME = "catalog"  # of the attached file, as a direct connection to `catalog.duckdb` would have it
_MOST_IDLE = 2

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
        lock = lock_of(self.path)
        if lock.is_mine:
            yield lock.held
            return
        with lock.shared(self.wait_s), self._connected(read_only=True) as con:
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
        lock = lock_of(self.path)
        if lock.is_mine and lock.is_writing:
            yield lock.held
            return
        with lock.exclusive(self.wait_s), self._connected(read_only=False) as con:
            lock.held, lock.is_writing = con, True
            con.begin()
            try:
                yield con
                con.commit()
            except BaseException:
                with suppress(duckdb.Error):
                    con.rollback()
                raise
            finally:
                lock.held, lock.is_writing = None, False

    @contextmanager
    def read_alone(self) -> Generator[Connection]:
        """A read-only connection while no other thread of this process has the file open.

        For DuckDB's global settings, which hold for all connections of a process to the file until the last one closes.

        Raises:
            CatalogLocked, DamagedStore: as for `read`.
        """
        lock = lock_of(self.path)
        with lock.exclusive(self.wait_s), self._connected(read_only=True, is_shared=False) as con:
            lock.held = con
            try:
                yield con
            finally:
                lock.held = None

    @contextmanager
    def _connected(self, *, read_only: bool, is_shared: bool = True) -> Generator[Connection]:
        con = self.connect(read_only) if is_shared else self._start()
        failed = True
        try:
            con.execute("SET TimeZone = 'UTC'")
            con.execute("SET python_enable_replacements = false")
            con.execute("SET enable_progress_bar = false")  # it would be printed among the rows of a long question
            if self.session and read_only:
                con.execute(self.session)
            yield con
            failed = False
        except duckdb.Error as error:
            if _is_of_the_file(error) or explain_disk(error, self.path):
                raise _explain(error, self.path, self.wait_s) from error
            raise
        finally:
            if is_shared:
                _pool.release(self.path, con, failed=failed)
            else:
                con.close()

    def connect(self, read_only: bool) -> Connection:
        """The process's connection to the file, once no other process holds it."""
        connect = partial(_pool.connect, self.path, read_only=read_only)
        if _pool.is_attached(self.path):  # a writer that waits, waits for this process
            return self._wait_for(connect)
        with self._in_line(is_writing=not read_only):
            return self._wait_for(connect)

    def _start(self) -> Connection:
        """An instance of its own, whose settings concern nobody else."""
        with self._in_line(is_writing=False):
            return self._wait_for(partial(duckdb.connect, str(self.path), read_only=True, config=dict(SETTINGS)))

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
        end = time.monotonic() + self.wait_s
        while True:
            try:
                return connect()
            except duckdb.Error as error:
                if not _is_locked(error) or time.monotonic() >= end:
                    raise _explain(error, self.path, self.wait_s) from error
            time.sleep(random.uniform(0.02, 0.2))


@dataclass
class Instance:
    """A DuckDB instance, and the file that is attached to it."""

    root: Connection
    path: Path
    users: int = 0
    is_sound: bool = True

    def attach(self, *, read_only: bool) -> None:
        """Take the file's lock."""
        self.root.execute(f"SET temp_directory = {sql_text(f'{self.path}.tmp')}")
        options = "(READ_ONLY)" if read_only else ""
        self.root.execute(f"ATTACH {sql_text(str(self.path))} AS {_NAME} {options}")

    def detach(self) -> None:
        """Free the file; what fails makes the instance one that is not used again."""
        try:
            self.root.execute(f"DETACH {_NAME}")
        except duckdb.Error:  # a full disk, for example; what was committed is in the log beside the file
            self.is_sound = False


class _Pool:
    """The instances of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Instance] = []
        self._used: dict[Path, Instance] = {}

    def connect(self, path: Path, *, read_only: bool) -> Connection:
        """A connection to a catalog file, which `release` ends; readers of one process share the file.

        Raises:
            duckdb.Error: as `duckdb.connect` does.
        """
        path = path.resolve()
        with self._lock:
            instance = self._used.get(path) or self._attach(path, read_only=read_only)
            con = instance.root.cursor()
            con.execute(f"USE {_NAME}")
            instance.users += 1
            self._used[path] = instance
            return con

    def is_attached(self, path: Path) -> bool:
        """Whether this process uses a file now."""
        with self._lock:
            return path.resolve() in self._used

    def _attach(self, path: Path, *, read_only: bool) -> Instance:
        root = self._idle.pop().root if self._idle else duckdb.connect(config=dict(SETTINGS))
        instance = Instance(root, path)
        try:
            instance.attach(read_only=read_only)
        except BaseException:
            root.close()
            raise
        return instance

    def release(self, path: Path, con: Connection, *, failed: bool) -> None:
        """End a connection; the file is free again when the last one has ended.

        Args:
            path: as it was given to `connect`.
            con: what `connect` returned.
            failed: whether anything was raised while it was used.
        """
        path = path.resolve()
        with self._lock:
            con.close()
            instance = self._used[path]
            instance.users -= 1
            instance.is_sound &= not failed
            if instance.users:
                return
            del self._used[path]
            if instance.is_sound:
                instance.detach()
            if instance.is_sound and len(self._idle) < _MOST_IDLE:
                self._idle.append(instance)
            else:
                instance.root.close()

    def stop_idle(self) -> None:
        """No thread of an idle instance is there afterwards."""
        with self._lock:
            while self._idle:
                self._idle.pop().root.close()


class ReadWriteLock:
    """Many readers or one writer; a waiting writer goes before new readers, a thread may nest its own reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._free = threading.Condition()
        self._readers: dict[int, int] = {}
        self._writer: int | None = None
        self._waiting = 0
        self.held: Any = None  # what the writer shares with reads inside its own block
        self.is_writing = False  # whether that is a transaction

    @property
    def is_mine(self) -> bool:
        """Whether this very thread is the writer."""
        return self._writer == threading.get_ident()

    @contextmanager
    def shared(self, wait_s: float) -> Generator[None]:
        """Read together with other readers.

        Raises:
            CatalogLocked: after `wait_s` seconds behind a writer.
        """
        me = threading.get_ident()
        with self._free:
            nested = me in self._readers
            if not self._free.wait_for(lambda: self._writer is None and (nested or not self._waiting), wait_s):
                raise _locked(self._path, wait_s, os.getpid())
            self._readers[me] = self._readers.get(me, 0) + 1
        try:
            yield
        finally:
            with self._free:
                self._readers[me] -= 1
                if not self._readers[me]:
                    del self._readers[me]
                self._free.notify_all()

    @contextmanager
    def exclusive(self, wait_s: float) -> Generator[None]:
        """Be alone.

        Raises:
            CatalogLocked: after `wait_s` seconds behind other threads.
            RuntimeError: if this thread already reads or writes: it would wait for itself.
        """
        me = threading.get_ident()
        if self._writer == me or me in self._readers:
            raise RuntimeError("This thread already has the catalog open; use that connection, or close it first.")
        with self._free:
            self._waiting += 1
            try:
                if not self._free.wait_for(lambda: self._writer is None and not self._readers, wait_s):
                    raise _locked(self._path, wait_s, os.getpid())
                self._writer = me
            finally:
                self._waiting -= 1
                self._free.notify_all()
        try:
            yield
        finally:
            with self._free:
                self._writer = None
                self._free.notify_all()


_locks: dict[Path, ReadWriteLock] = {}
_registry = threading.Lock()


def lock_of(path: Path) -> ReadWriteLock:
    """The one lock of a file in this process, whichever way its path is written."""
    with _registry:
        return _locks.setdefault(path.resolve(), ReadWriteLock(path))


def _forget_in_child() -> None:
    """What was in use is its parent's; none of its threads are here, so nobody would ever let go."""
    global _pool, _registry
    _pool = _Pool()
    _registry = threading.Lock()
    _locks.clear()


_pool = _Pool()
os.register_at_fork(before=lambda: _pool.stop_idle(), after_in_child=_forget_in_child)


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
        with duckdb.connect(str(path), config=dict(SETTINGS)) as con:
            con.begin()
            fill(con)
            con.commit()
    except duckdb.Error as error:
        if (failed := explain_disk(error, path)) is None:
            raise
        raise failed from error


def rows_of(answer: Connection) -> list[Row]:
    """All rows of an executed statement, each as a dictionary by column."""
    names = [column[0] for column in answer.description or ()]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def select_column(con: Connection, question: str, values: Values = ()) -> list[Any]:
    """The first column of an answer; a statement may also change rows and return them."""
    return [row[0] for row in con.execute(question, values).fetchall()]


def error_line(error: Exception) -> str:
    """The first line of an error's text: what the reader needs, without DuckDB's picture of the statement."""
    return str(error).strip().split("\n", 1)[0].rstrip(".!")


def _wait_from_environment() -> float:
    text = os.environ.get(WAIT_VARIABLE, "")
    try:
        wait_s = float(text or DEFAULT_WAIT_S)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s < float("inf"):
        raise BadInput(f"{WAIT_VARIABLE} is {text!r}.", "It has to be a number of seconds, for example 30.")
    return wait_s


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
