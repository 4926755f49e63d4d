"""DuckDB instances that outlive one use of a catalog file: starting one costs 40 ms, attaching a file to it 5.

A file is attached while somebody uses it and at no other time, so that other processes get its lock as soon as
possible. An instance in which anything failed is thrown away.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from ..expressions import sql_text

SETTINGS: Mapping[str, str] = {"autoinstall_known_extensions": "false"}
_NAME = "catalog"  # of the attached file, as a direct connection to `catalog.duckdb` would have it
_MOST_IDLE = 2


@dataclass
class _Instance:
    root: duckdb.DuckDBPyConnection
    path: Path
    users: int = 0
    is_sound: bool = True

    def attach(self, *, read_only: bool) -> None:
        self.root.execute(f"SET temp_directory = {sql_text(f'{self.path}.tmp')}")
        options = "(READ_ONLY)" if read_only else ""
        self.root.execute(f"ATTACH {sql_text(str(self.path))} AS {_NAME} {options}")

    def detach(self) -> None:
        try:
            self.root.execute(f"DETACH {_NAME}")
        except duckdb.Error:  # a full disk, for example; what was committed is in the log beside the file
            self.is_sound = False


class _Pool:
    """The instances of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Instance] = []
        self._used: dict[Path, _Instance] = {}

    def connect(self, path: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        with self._lock:
            instance = self._used.get(path) or self._start(path, read_only=read_only)
            con = instance.root.cursor()
            con.execute(f"USE {_NAME}")
            instance.users += 1
            self._used[path] = instance
            return con

    def _start(self, path: Path, *, read_only: bool) -> _Instance:
        root = self._idle.pop().root if self._idle else duckdb.connect(config=dict(SETTINGS))
        instance = _Instance(root, path)
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


def release(path: Path, con: duckdb.DuckDBPyConnection, *, failed: bool) -> None:
    """End a connection; the file is free again when the last one has ended.

    Args:
        path: as it was given to `connect`.
        con: what `connect` returned.
        failed: whether anything was raised while it was used.
    """
    _pool.release(path.resolve(), con, failed=failed)


def _forget_in_child() -> None:
    """What was in use is its parent's; none of its threads are here."""
    global _pool
    _pool = _Pool()


_pool = _Pool()
os.register_at_fork(before=lambda: _pool.stop_idle(), after_in_child=_forget_in_child)
