"""Work shared out to processes, or to the runner that a setting chooses, and how it reports its progress.

The workers stay. Processes end when the one that started them does, however it ends. Other runners are in `runners.py`.
The work is the caller's: episodes are played in `simulation/workers.py`, arms are trained in
`refinement/comparison.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from storage.errors import BadInput, TrajnoteError

from .runners import Dask, Pool, Ray, Threads

if TYPE_CHECKING:
    from multiprocessing.connection import PipeConnection

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 4  # items per worker that travel before the first result is taken
_GLANCE_S = 0.2  # seconds; a Ctrl-C that another thread receives does not wake a longer wait
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
VARIABLE = "TRAJNOTE_RUNNER"
KINDS = ("processes", "threads", "dask", "ray")
_FORMS = "processes, threads, dask, dask:ADDRESS, ray or ray:ADDRESS"


class Runner(NamedTuple):
    """Where work runs."""

    kind: str = "processes"
    address: str | None = None  # of a cluster that runs already; None starts one on this machine


PROCESSES = Runner()
_chosen: ContextVar[Runner | None] = ContextVar("trajnote_runner", default=None)


def parse_runner(text: str) -> Runner:
    """Read a setting such as `dask:tcp://10.0.0.1:8786`.

    Raises:
        BadInput: saying what is allowed.
    """
    kind, colon, address = text.strip().partition(":")
    if kind not in KINDS or (colon and (not address or kind in KINDS[:2])):
        raise BadInput(f"Unknown runner {text!r}.", f"{VARIABLE} and `runner` may be {_FORMS}.")
    return Runner(kind, address or None)


def chosen_runner() -> Runner | None:
    """What the environment variable says, else what `running_on` says, else None."""
    text = os.environ.get(VARIABLE, "")
    return parse_runner(text) if text.strip() else _chosen.get()


@contextmanager
def running_on(runner: str | None) -> Generator[None]:
    """Share work out there inside this block, unless the environment variable says otherwise; None changes nothing."""
    token = _chosen.set(_chosen.get() if runner is None else parse_runner(runner))
    try:
        yield
    finally:
        _chosen.reset(token)


def workers_if_chosen() -> int | None:
    """For work that stays in this process, 1, unless a runner was chosen: then all of its workers, None."""
    return 1 if chosen_runner() is None else None


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    *,
    threadsafe: bool = False,
    runner: Runner | None = None,
) -> Generator[Result]:
    """As `working`, from the first result that is asked for on; closing the generator is leaving the block."""
    with working(work, items, workers, threadsafe=threadsafe, runner=runner) as results:
        yield from results


@contextmanager
def working(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    *,
    threadsafe: bool = False,
    runner: Runner | None = None,
) -> Generator[Iterator[Result]]:
    """Apply a function to every item, in workers that do their linear algebra in one thread each.

    Workers start on the first call with this number of them and stay for the next ones. Leaving the block before the
    last result ends them in the middle of their work. A few items for each worker travel at a time, so that neither all
    items nor all results are in memory at once.

    Args:
        work: a function of a module, so that another process finds it.
        items: what travels to the workers.
        workers: at most; 1 works in this process, None means one per core, or all of a running cluster.
        threadsafe: whether the work may run beside itself in one process. Else it runs there one at a time: learners
            draw from random generators that belong to the process.
        runner: where; the chosen one, or processes, when None.

    Yields:
        The results in the order of the items; others are worked at meanwhile.

    Raises:
        TrajnoteError: when a worker died, for example for lack of memory; and whatever `work` raises.
    """
    runner = runner or chosen_runner() or PROCESSES
    workers = workers or (None if runner.address else core_count())
    if workers == 1 or not items:
        yield map(work, items)
        return
    pool = _keep(runner, workers)
    submit = partial(pool.submit, work if threadsafe or runner == PROCESSES else partial(_one_at_a_time, work))
    submitted = (submit(item) for item in items)
    futures: deque[Future[Result]] = deque()
    try:
        with _in_words(pool):
            futures.extend(islice(submitted, _AHEAD * pool.workers))
        yield _in_order(pool, futures, submitted)
    finally:
        if futures:
            shutdown_workers()


def _in_order(pool: Pool, futures: deque[Future[Result]], submitted: Iterator[Future[Result]]) -> Generator[Result]:
    """The results, for each of which one more item is submitted."""
    while futures:
        with _in_words(pool):
            while not futures[0].done():
                wait([futures[0]], timeout=_GLANCE_S)
            result = futures[0].result()
            futures.extend(islice(submitted, 1))
        futures.popleft()
        yield result


@contextmanager
def _in_words(pool: Pool) -> Generator[None]:
    """End the workers where one of them fails, and say so in words where it died."""
    try:
        yield
    except Exception as error:
        shutdown_workers()
        if (words := pool.translate(error)) is not None:
            raise words from error
        raise


_turn = threading.Lock()


def _one_at_a_time(work: Callable[[Item], Result], item: Item) -> Result:
    """Do work that needs its process for itself, also where a runner has several threads in one."""
    with _turn:
        return work(item)


class _Processes:
    """Processes that end when their parent pipe does: when this process lets go of it, or dies, however it dies."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of Prefect and torch half-way
        their_end, self._rope = context.Pipe(duplex=False)
        begin = partial(_begin, their_end)
        self._executor = ProcessPoolExecutor(workers, mp_context=context, initializer=begin)

    def submit(self, work: Callable[[Any], Any], item: Any) -> Future[Any]:
        """Have a process do it."""
        with _one_thread_each(), _interrupts_wait():
            return self._executor.submit(work, item)

    def translate(self, error: Exception) -> TrajnoteError | None:
        """A process that died takes the others along."""
        if not isinstance(error, BrokenProcessPool):
            return None
        return TrajnoteError("A worker process died, perhaps for lack of memory.", "Run this again with --workers 1.")

    def end(self) -> None:
        """End the processes at once."""
        self._rope.close()
        self._executor.shutdown(wait=True, cancel_futures=True)


_kept: dict[tuple[Runner, int | None], Pool] = {}  # one at most


def _keep(runner: Runner, workers: int | None) -> Pool:
    """The workers that stay; others replace them."""
    if (runner, workers) not in _kept:
        shutdown_workers()
        _kept[runner, workers] = _open(runner, workers)
    return _kept[runner, workers]


def start_workers(workers: int | None, *modules: str) -> None:
    """Start this machine's processes before there is work for them; each imports modules, and nobody waits for it."""
    count = workers or core_count()
    if chosen_runner() is None and count > 1:
        pool = _keep(PROCESSES, count)
        for _ in range(count):
            pool.submit(_load, modules)


def _load(modules: Sequence[str]) -> None:
    for module in modules:
        import_module(module)


def are_waiting(workers: int) -> bool:
    """Whether so many processes of this machine have started already and wait for work."""
    return (PROCESSES, workers) in _kept


def shutdown_workers() -> None:
    """End the workers that wait for more work; the next work starts others."""
    while _kept:
        _kept.popitem()[1].end()


def _open(runner: Runner, workers: int | None) -> Pool:
    if runner.kind == "dask":
        return Dask(runner.address, workers)
    if runner.kind == "ray":
        return Ray(runner.address, workers)
    return (Threads if runner.kind == "threads" else _Processes)(workers or core_count())


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


def _begin(parent_pipe: PipeConnection[Any, Any]) -> None:
    """In a new process: die quietly on Ctrl-C and when the parent pipe ends, and print nothing among results."""
    sys.stdout = sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_hang_on, args=(parent_pipe,), daemon=True).start()


def _hang_on(parent_pipe: PipeConnection[Any, Any]) -> None:
    parent_pipe.poll(None)  # nothing is ever sent: it returns when the other end is closed
    os._exit(0)


class Report(Protocol):
    """Called as work advances."""

    def __call__(self, description: str, done: int, total: int | None, /) -> None:
        """Show the state of one named piece of work: how much is done, and how much there is."""
        ...


def silent(description: str, done: int, total: int | None, /) -> None:
    """A report that shows nothing, for programs and tests."""


_listener: ContextVar[Report] = ContextVar("listener", default=silent)


def listener() -> Report:
    """Who listens to flows that run in this context; a flow's own parameters are values only."""
    return _listener.get()


@contextmanager
def listening(report: Report) -> Generator[None]:
    """Have the flows that run inside this block report their progress to `report`."""
    token = _listener.set(report)
    try:
        yield
    finally:
        _listener.reset(token)
