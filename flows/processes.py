"""Processes that share out work and stay for the next; they end when the one that started them does, however it ends.

The work is the caller's: episodes are played in `workers.py`, arms are trained in `contest.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from storage.errors import TrajnoteError

if TYPE_CHECKING:
    from multiprocessing.connection import PipeConnection

Item = TypeVar("Item")
Result = TypeVar("Result")
_GLANCE_S = 0.2  # seconds; a Ctrl-C that another thread receives does not wake a longer wait
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Generator[Result]:
    """Apply a function to every item, in processes that do their linear algebra in one thread each.

    Processes start on the first call with this number of workers and stay for the next ones. Closing the generator
    before its end ends them in the middle of their work.

    Args:
        work: a function of a module, so that another process finds it.
        items: what travels to the processes.
        workers: processes at most; 1 works in this one.

    Yields:
        The results in the order of the items.

    Raises:
        TrajnoteError: when a process died, for example for want of memory; and whatever `work` raises.
    """
    if workers == 1:
        yield from map(work, items)
        return
    pool = _pool(workers)
    futures = pool.submit(work, items)
    try:
        for future in futures:
            while not future.done():
                wait([future], timeout=_GLANCE_S)
            yield future.result()
    except BrokenProcessPool as error:
        raise TrajnoteError(
            "A process died in the middle of its work, perhaps for want of memory.", "Run it again with --workers 1."
        ) from error
    finally:
        if not all(future.done() and not future.exception() for future in futures):
            _pool.cache_clear()
            pool.end()


class _Pool:
    """Processes that end when their rope does: when this process lets go of it, or dies in whatever way."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of Prefect and torch half-way
        their_end, self._rope = context.Pipe(duplex=False)
        begin = partial(_begin, their_end)
        self._executor = ProcessPoolExecutor(workers, mp_context=context, initializer=begin)

    def submit(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Future[Result]]:
        with _one_thread_each(), _interrupts_wait():
            return [self._executor.submit(work, item) for item in items]

    def end(self) -> None:
        """End the processes at once."""
        self._rope.close()
        self._executor.shutdown(wait=True, cancel_futures=True)


@lru_cache(maxsize=1)
def _pool(workers: int) -> _Pool:
    """The processes that stay; another number of them replaces these."""
    return _Pool(workers)


@contextmanager
def _one_thread_each() -> Generator[None]:
    """Processes that start in here do their linear algebra in one thread; they are as many as there are cores."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_wait() -> Generator[None]:
    """Processes that start in here inherit that Ctrl-C waits, until `_begin` lets it end them without a word."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(rope: PipeConnection[Any, Any]) -> None:
    """In a new process: die quietly on Ctrl-C and when the rope ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_hang_on, args=(rope,), daemon=True).start()


def _hang_on(rope: PipeConnection[Any, Any]) -> None:
    rope.poll(None)  # nothing is ever sent: it returns when the other end is closed
    os._exit(0)
