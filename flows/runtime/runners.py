"""One small interface over threads, Dask and Ray, for work that is shared out.

Processes of this machine, the default, are `processes.py`, which also shares the work out and has the setting that
chooses. Nothing here knows what the work is, and no worker writes: results travel back to the process that asked.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from inspect import isfunction
from typing import Any, Protocol

from storage.errors import Prerequisite, TrajnoteError

_KNOCK_S = 10.0


class Pool(Protocol):
    """Workers that wait for work."""

    workers: int

    def submit(self, work: Callable[[Any], Any], item: Any) -> Future[Any]:
        """Have a worker apply a function of a module to an item."""
        ...

    def translate(self, error: Exception) -> TrajnoteError | None:
        """The user's words for a worker that died; None for an error of the work itself."""
        ...

    def end(self) -> None:
        """End the workers, or let go of those that others started; what waits is dropped."""
        ...


class Threads:
    """Threads of this process, which share its interpreter."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="trajnote")

    def submit(self, work: Callable[[Any], Any], item: Any) -> Future[Any]:
        """Have a thread do it."""
        return self._executor.submit(work, item)

    def translate(self, error: Exception) -> TrajnoteError | None:
        """Threads do not die alone."""
        return None

    def end(self) -> None:
        """Wait for what is under way; a thread cannot be ended."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class Dask:
    """Workers of a Dask cluster, as the executor that Dask makes of its client.

    Args:
        address: of a scheduler; None starts one process per worker here.
        workers: processes to start; all that a running cluster has when None.
    """

    def __init__(self, address: str | None, workers: int | None) -> None:
        distributed = _load("distributed", "dask")
        try:
            self._cluster: Any = None if address else _start_dask(distributed, workers)
            self._client: Any = distributed.Client(address or self._cluster, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise _unreachable("Dask scheduler", address, error) from error
        self.workers: int = workers or max(1, sum(self._client.nthreads().values()))
        self._executor: Any = self._client.get_executor()
        self._killed: type[Exception] = distributed.scheduler.KilledWorker

    def submit(self, work: Callable[[Any], Any], item: Any) -> Future[Any]:
        """Have a worker do it; where a worker dies, Dask gives its work to another one."""
        return self._executor.submit(work, item)

    def translate(self, error: Exception) -> TrajnoteError | None:
        """Work that kills every worker it is given to."""
        return _died("Dask", error) if isinstance(error, self._killed) else None

    def end(self) -> None:
        """Drop what waits, and end the processes that were started here."""
        self._executor.shutdown(wait=False)
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


class Ray:
    """Tasks of a Ray cluster.

    Args:
        address: of a cluster, or `auto`; None starts one here.
        workers: cores to share out; all that a running cluster has when None.
    """

    def __init__(self, address: str | None, workers: int | None) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else every start warns of a later version
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray: Any = _load("ray", "ray")
        here = {} if address else {"num_cpus": workers, "include_dashboard": False}
        logging.getLogger("ray").setLevel(logging.ERROR)  # its errors arrive as exceptions
        try:
            _knock(address)
            self._ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **here)
        except (OSError, RuntimeError, ValueError) as error:
            raise _unreachable("Ray cluster", address, error) from error
        self.workers: int = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._known: dict[Callable[[Any], Any], Any] = {}
        self._under_way: dict[Future[Any], Any] = {}

    def submit(self, work: Callable[[Any], Any], item: Any) -> Future[Any]:
        """Have a worker do it; where a worker dies, Ray tries again three times."""
        if work not in self._known:
            self._known = {work: self._ray.remote(work if isfunction(work) else _named(work))}
        reference = self._known[work].remote(item)
        future: Future[Any] = reference.future()
        self._under_way[future] = reference
        future.add_done_callback(self._under_way.pop)
        return future

    def translate(self, error: Exception) -> TrajnoteError | None:
        """Work that kills every worker it is given to."""
        lost = (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError)
        return _died("Ray", error) if isinstance(error, lost) else None

    def end(self) -> None:
        """Drop what waits; a cluster that was started here ends."""
        for reference in list(self._under_way.values()):
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()


def _named(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of its own around a partial or a built-in one; Ray takes nothing else."""

    def apply(item: Any) -> Any:
        return work(item)

    return apply


def _start_dask(distributed: Any, workers: int | None) -> Any:
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs=50,
        host="127.0.0.1",
    )


def _load(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise Prerequisite(
            f"The runner {extra} needs the package {module}.", f"Install it: pip install 'trajnote[{extra}]'."
        ) from error


def _unreachable(what: str, address: str | None, error: Exception) -> TrajnoteError:
    where = f"at {address} cannot be reached" if address else "does not start here"
    words = " ".join(str(error).split())[:200]
    token = " A cluster that asks for a token needs RAY_AUTH_MODE=token here, too." if "Ray" in what else ""
    return TrajnoteError(f"The {what} {where}: {words}.", f"Start it, or use TRAJNOTE_RUNNER=processes.{token}")


def _knock(address: str | None) -> None:
    """Find out at once whether a server listens at `HOST:PORT` or `ray://HOST:PORT`; Ray itself would try for minutes.

    Raises:
        OSError: if none does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def _died(cluster: str, error: Exception) -> TrajnoteError:
    words = " ".join(str(error).split())[:200]
    return TrajnoteError(
        f"{cluster} lost the workers of this task: {words}.", "Check their memory, or use --workers 1."
    )
