"""Returns of many policies on many seeds, played by processes that stay; what the gate asks for.

The answer is the same to the last bit with any number of processes. A process loads NumPy and Gymnasium, no learner.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refine.policy import Mode
from storage.errors import TrajnoteError
from storage.schema import Array

from .actors import Actor
from .environments import Environment, make_environment
from .rollout import play

if TYPE_CHECKING:
    from multiprocessing.connection import PipeConnection

_CHUNK = 8  # seeds of one task, side by side in one process: small enough to share out evenly
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Advance = Callable[[int, int], None]


class _Task(NamedTuple):
    """Some seeds of one policy."""

    env_id: str
    env_kwargs: str  # canonical JSON, so that it can be a key
    policy: Actor
    seeds: tuple[int, ...]
    mode: Mode
    max_steps: int | None


def evaluate_returns(
    env_id: str,
    env_kwargs: Mapping[str, Any] | None,
    policies: Sequence[Actor],
    seeds: Sequence[int],
    mode: Mode = "greedy",
    workers: int | None = None,
    *,
    max_steps: int | None = None,
    advance: Advance | None = None,
) -> Array:
    """Play every policy on every seed.

    Processes start on the first call with this number of workers and stay for the next ones. They see an environment of
    your own only by `module:EnvId`, for they share no memory with this process.

    Args:
        env_id: as for `make_environment`.
        env_kwargs: as for `make_environment`.
        policies: P of them.
        seeds: S of them, the same for every policy, so that returns can be compared in pairs.
        mode: `greedy` or `sampled`.
        workers: processes; 1 plays in this one, None means one per core.
        max_steps: cut longer episodes there.
        advance: called with episodes played and episodes in all.

    Returns:
        (P, S) float64, undiscounted return of each episode.

    Raises:
        TrajnoteError: when a process died, for example for want of memory.
    """
    kwargs = json.dumps(dict(env_kwargs or {}), sort_keys=True)
    chunks = [tuple(seeds[start : start + _CHUNK]) for start in range(0, len(seeds), _CHUNK)]
    tasks = [_Task(env_id, kwargs, policy, chunk, mode, max_steps) for policy in policies for chunk in chunks]
    processes = min(workers or core_count(), len(tasks))
    returns: list[float] = []
    with closing(_play_here(tasks) if processes <= 1 else _play_in_processes(tasks, workers or core_count())) as played:
        for chunk_returns in played:
            returns += chunk_returns
            if advance is not None:
                advance(len(returns), len(policies) * len(seeds))
    return np.array(returns, dtype=np.float64).reshape(len(policies), len(seeds))


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _play_here(tasks: Sequence[_Task]) -> Generator[list[float]]:
    environments: list[Environment] = []
    try:
        for task in tasks:
            environments = environments or _make(task.env_id, task.env_kwargs)
            yield _play(task, environments)
    finally:
        for environment in environments:
            environment.close()


def _play_in_processes(tasks: Sequence[_Task], workers: int) -> Generator[list[float]]:
    pool = _pool(workers)
    futures = pool.submit(tasks)
    try:
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise TrajnoteError(
            "A process that played episodes died, perhaps for want of memory.", "Run it again with --workers 1."
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

    def submit(self, tasks: Sequence[_Task]) -> list[Future[list[float]]]:
        with _one_thread_each():
            return [self._executor.submit(_play_in_worker, task) for task in tasks]

    def end(self) -> None:
        """End the processes at once, in the middle of their episodes."""
        self._rope.close()
        self._executor.shutdown(wait=False, cancel_futures=True)


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


def _begin(rope: PipeConnection[Any, Any]) -> None:
    """In a new process: die quietly on Ctrl-C and when the rope ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_hang_on, args=(rope,), daemon=True).start()


def _hang_on(rope: PipeConnection[Any, Any]) -> None:
    rope.poll(None)  # nothing is ever sent: it returns when the other end is closed
    os._exit(0)


def _play_in_worker(task: _Task) -> list[float]:
    return _play(task, _kept_environments(task.env_id, task.env_kwargs))


@lru_cache(maxsize=1)
def _kept_environments(env_id: str, env_kwargs: str) -> list[Environment]:
    """Environments of a worker, made once and used for one task after the other."""
    return _make(env_id, env_kwargs)


def _make(env_id: str, env_kwargs: str) -> list[Environment]:
    return [make_environment(env_id, json.loads(env_kwargs)) for _ in range(_CHUNK)]


def _play(task: _Task, environments: Sequence[Environment]) -> list[float]:
    playing = environments[: len(task.seeds)]
    episodes = play(playing, task.policy, task.seeds, mode=task.mode, max_steps=task.max_steps)
    return [episode.return_ for episode in episodes]
