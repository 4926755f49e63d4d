"""How a process uses a catalog file: the DuckDB instance to which it is attached, and the turns of its threads.

Starting an instance costs 40 ms, attaching a file to it 5. A file is attached while somebody uses it and at no other
time, so that other processes get its lock as soon as possible; DuckDB itself holds them off. An instance in which
anything failed is thrown away. DuckDB refuses to open one file twice in a process with different configurations, so
threads take turns: many readers, or one writer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from ..schema import sql_text

SETTINGS: Mapping[str, str] = {"autoinstall_known_extensions": "false"}
_NAME = "catalog"  # of the attached file, as a direct connection to `catalog.duckdb` would have it
_MOST_IDLE = 2


@dataclass
class Instance:
    """A DuckDB instance, and the file that is attached to it."""

    root: duckdb.DuckDBPyConnection
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

    def connect(self, path: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        with self._lock:
            instance = self._used.get(path) or self._start(path, read_only=read_only)
            con = instance.root.cursor()
            con.execute(f"USE {_NAME}")
            instance.users += 1
            self._used[path] = instance
            return con

    def is_attached(self, path: Path) -> bool:
        """Whether this process uses a file now."""
        with self._lock:
            return path in self._used

    def _start(self, path: Path, *, read_only: bool) -> Instance:
        root = self._idle.pop().root if self._idle else duckdb.connect(config=dict(SETTINGS))
        instance = Instance(root, path)
        try:
            instance.attach(read_only=read_only)
        except BaseException:
            root.close()
            raise
        return instance

    def release(self, path: Path, con: duckdb.DuckDBPyConnection, *, failed: bool) -> None:
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


def connect(path: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
    """A connection to a catalog file, which `release` ends; readers of one process share the file.

    Raises:
        duckdb.Error: as `duckdb.connect` does.
    """
    return _pool.connect(path.resolve(), read_only=read_only)


def is_attached(path: Path) -> bool:
    """Whether this process has a catalog file open by `connect`."""
    return _pool.is_attached(path.resolve())


def release(path: Path, con: duckdb.DuckDBPyConnection, *, failed: bool) -> None:
    """End a connection; the file is free again when the last one has ended.

    Args:
        path: as it was given to `connect`.
        con: what `connect` returned.
        failed: whether anything was raised while it was used.
    """
    _pool.release(path.resolve(), con, failed=failed)


class LatchTimeoutError(Exception):
    """Another thread of this process did not finish in time."""


class Latch:
    """Many readers or one writer; a waiting writer goes before new readers, a thread may nest its own reads."""

    def __init__(self) -> None:
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
            LatchTimeoutError: after `wait_s` seconds behind a writer.
        """
        me = threading.get_ident()
        with self._free:
            nested = me in self._readers
            if not self._free.wait_for(lambda: self._writer is None and (nested or not self._waiting), wait_s):
                raise LatchTimeoutError
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
            LatchTimeoutError: after `wait_s` seconds behind other threads.
            RuntimeError: if this thread already reads or writes: it would wait for itself.
        """
        me = threading.get_ident()
        if self._writer == me or me in self._readers:
            raise RuntimeError("This thread already has the catalog open; use that connection, or close it first.")
        with self._free:
            self._waiting += 1
            try:
                if not self._free.wait_for(lambda: self._writer is None and not self._readers, wait_s):
                    raise LatchTimeoutError
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


_latches: dict[Path, Latch] = {}
_registry = threading.Lock()


def latch_of(path: Path) -> Latch:
    """The one latch of a file in this process, whichever way its path is written."""
    with _registry:
        return _latches.setdefault(path.resolve(), Latch())


def _forget_in_child() -> None:
    """What was in use is its parent's; none of its threads are here, so nobody would ever let go."""
    global _pool, _registry
    _pool = _Pool()
    _registry = threading.Lock()
    _latches.clear()


_pool = _Pool()
os.register_at_fork(before=lambda: _pool.stop_idle(), after_in_child=_forget_in_child)
