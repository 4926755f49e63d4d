"""A process that has its stores for itself: a catalog stays attached from one use to the next.

Attaching takes milliseconds of computing, and the tests of annotation do it thirty times each. That other processes
get a catalog as soon as it is not used is held by the tests that run without this. Here, too, a reading connection
cannot write, and whatever else opens the file finds it free: a fork, another process, a direct connection, the next
test.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from storage.catalog import engine


class _KeptPool(engine._Pool):
    """The instances of this process; the one that was used last keeps its file."""

    def __init__(self) -> None:
        super().__init__()
        self._free = threading.Event()  # once it is set, nothing is kept any more
        self._kept: tuple[Path, int, engine.Instance] | None = None  # with the number of the file at that path

    def connect(self, path: Path, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if path not in self._used and self._kept is not None:
                if self._kept[:2] == (path, _number(path)):
                    self._used[path] = self._kept[2]
                    self._kept = None
                else:
                    self._detach()
        con = super().connect(path, read_only=read_only and self._free.is_set())
        if read_only and not self._free.is_set():
            con.execute("BEGIN TRANSACTION READ ONLY")
        return con

    def release(self, path: Path, con: duckdb.DuckDBPyConnection, *, failed: bool) -> None:
        with self._lock:
            instance = self._used[path]
            if not (failed or self._free.is_set() or instance.users > 1) and instance.is_sound:
                con.close()
                instance.users = 0
                self._kept = path, _number(path), self._used.pop(path)
                return
        super().release(path, con, failed=failed)

    def let_go(self) -> None:
        """The file that is kept is free."""
        with self._lock:
            self._detach()

    def stop_keeping(self) -> None:
        self._free.set()
        self.let_go()

    def stop_idle(self) -> None:
        self.let_go()
        super().stop_idle()

    def _detach(self) -> None:
        if self._kept is not None:
            _, _, instance = self._kept
            self._kept = None
            instance.detach()
            if instance.is_sound:
                self._idle.append(instance)
            else:
                instance.root.close()


def _number(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def let_go() -> None:
    """No catalog is attached that is not used, for who moves the files of a store."""
    if isinstance(engine._pool, _KeptPool):
        engine._pool.let_go()


@contextmanager
def kept_catalogs() -> Generator[None]:
    """Catalogs stay attached, until another process is started."""
    connect = duckdb.connect

    def connect_directly(*given: Any, **named: Any) -> duckdb.DuckDBPyConnection:
        if given or "database" in named:
            let_go()
        return connect(*given, **named)

    pool = _KeptPool()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_pool", pool)
        patch.setattr(duckdb, "connect", connect_directly)
        yield
        pool.stop_keeping()
        pool.stop_idle()


def _watch(event: str, _: Any) -> None:
    if event in ("subprocess.Popen", "os.posix_spawn") and isinstance(engine._pool, _KeptPool):
        engine._pool.stop_keeping()


sys.addaudithook(_watch)
