"""Within one process: many readers of a catalog file, or one writer. Other processes are held off by DuckDB itself.

DuckDB refuses to open one file twice in a process with different configurations, so threads have to take turns.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    """A forked child has none of its parent's threads, so nobody in it would ever let go."""
    global _registry
    _registry = threading.Lock()
    _latches.clear()


os.register_at_fork(after_in_child=_forget_in_child)
