"""Prefect's server for the flows of one command: it starts while the command loads, and ends when the command does.

Prefect can start one by itself, but does so when the first flow runs, and a `kill -9` of the command leaves it behind.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import httpx

from storage.errors import RemoteFailed, TrajnoteError

DEFAULTS: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # errors reach the terminal as one line of our own
}


_LOOPS = ("_run_sync_loop", "_global_loop")
_LOOP_END_S = 5.0  # seconds; a loop that does not end holds up nobody for longer
_START_S = 240.0  # seconds; on a fresh machine it makes its database first
_ANSWER_S = 5.0  # seconds that a server of the user's has for one answer
_TRIES = 2
_PAUSE_S = 1.0  # seconds between two tries
_ENVIRONMENT = {"PREFECT__SERVER_FINAL": "1", "PREFECT_UI_ENABLED": "0"}
_WITHOUT_SCHEDULES = {"PREFECT__SERVER_EPHEMERAL": "1"}
_WITH_SCHEDULES = {
    "PREFECT_UI_ENABLED": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # a server that is killed must not forget for how long a place is taken, or it is taken for ever
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}


def quieten_prefect() -> None:
    """Set what the user has not set, and end Prefect's background threads before the interpreter ends."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    atexit.register(_end_loops)  # before Prefect is imported, so that it runs after Prefect's own last words


def _end_loops() -> None:
    """Stop the threads of Prefect's event loops, which would outlive the interpreter.

    Their contexts hold the last flow, the flow its module, and that module DuckDB's types; nanobind, which DuckDB is
    bound with, would report each of them as leaked. Prefect has no public way to end them.
    """
    threads = sys.modules.get("prefect._internal.concurrency.threads")
    for name in _LOOPS:
        loop = getattr(threads, name, None)
        if loop is not None:
            loop.shutdown()
            loop.thread.join(_LOOP_END_S)


class Server:
    """A server in a process of its own, for as long as this process lives.

    It is out of the reach of the terminal's Ctrl-C, so that a flow that is interrupted can still say so.

    Args:
        schedules: whether it also runs deployments on time, which takes more of the machine.
    """

    def __init__(self, *, schedules: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve_requests; serve_requests()"],
            stdin=subprocess.PIPE,  # the parent pipe: it is closed when this process ends, however it ends
            stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT, **(_WITH_SCHEDULES if schedules else _WITHOUT_SCHEDULES)},
            cwd=Path(__file__).parents[2],
            start_new_session=True,
            text=True,
        )
        self._address: str | None = None

    def wait(self) -> str:
        """The address of its API, once it answers.

        Raises:
            TrajnoteError: if it does not start.
        """
        if self._address is None:
            self._address = self._find()
        return self._address

    def _find(self) -> str:
        port = self._process.stdout.readline().strip() if self._process.stdout else ""
        address = f"http://127.0.0.1:{port}/api"
        try:
            with urlopen(f"{address}/health", timeout=_START_S):
                return address
        except (URLError, OSError, ValueError) as error:
            raise TrajnoteError(
                f"Prefect's server did not start: {error}.",
                "Set PREFECT_API_URL to a running server, or try `prefect server start`.",
            ) from error


def start_server(*, schedules: bool = False, needed: bool = True, answer_s: float = _ANSWER_S) -> Server | None:
    """Start a server, unless the user's settings name one.

    Args:
        schedules: as for `Server`.
        needed: whether the command cannot run without it; then the user's own is first asked whether it answers.
        answer_s: seconds that the user's own has for one answer.

    Raises:
        RemoteFailed: if the user's own does not answer.
    """
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if url and needed:
        _check_server(url, answer_s)
    return None if url else Server(schedules=schedules)


def _check_server(url: str, answer_s: float) -> None:
    """Ask a server for what a flow needs of it: its database, with the user's credentials."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    for tries_left in reversed(range(_TRIES)):
        try:
            with (
                temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
                get_client(httpx_settings={"timeout": answer_s}, sync_client=True) as client,
            ):
                client.read_flows(limit=1)
            return
        except Exception as error:  # whatever the client makes of an answer that is not Prefect's
            if not tries_left:
                raise _no_answer(url, error, answer_s) from error
            time.sleep(min(_PAUSE_S, answer_s))


def _no_answer(url: str, error: Exception, answer_s: float = _ANSWER_S) -> RemoteFailed:
    """One line about a server that does not answer as it should; its address without credentials."""
    if isinstance(error, httpx.HTTPStatusError):
        what = f"answers with {error.response.status_code}"
    elif isinstance(error, httpx.TimeoutException):
        what = f"does not answer within {answer_s:g} s"
    elif isinstance(error, httpx.TransportError):
        what = f"cannot be reached ({type(error).__name__})"
    else:
        what = f"does not answer as Prefect's API does ({type(error).__name__})"
    return RemoteFailed(
        f"The Prefect server at {_without_credentials(url)}, which PREFECT_API_URL names, {what}.",
        "Start it with `prefect server start`, correct the address and its credentials, or unset PREFECT_API_URL: "
        "trajnote then starts a server of its own.",
    )


def _without_credentials(url: str) -> str:
    try:
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:
        return "an address that cannot be read"


@contextmanager
def served(server: Server | None) -> Generator[None]:
    """Have the flows inside this block report to a server, once it answers; to the user's own when None.

    Raises:
        RemoteFailed: if it stops answering.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = server.wait() if server else PREFECT_API_URL.value()
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            yield
    except httpx.HTTPError as error:
        raise _no_answer(str(url), error) from error


def serve_requests() -> None:
    """Be the server: say the port at once, answer when all is loaded, end with the standard input."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    os.environ["PREFECT_UI_API_URL"] = f"http://127.0.0.1:{port}/api"  # what its pages ask
    pages = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser() / "trajnote-pages"
    os.environ.setdefault("PREFECT_UI_STATIC_DIRECTORY", str(pages))  # it would write them beside its own code
    print(port, flush=True)
    threading.Thread(target=_hang_on, daemon=True).start()

    import uvicorn

    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[listening])


def _hang_on() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
