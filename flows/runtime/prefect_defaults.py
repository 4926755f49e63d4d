"""Prefect's settings for runs from the command line, wherever it is called; the user's own settings win.

Prefect reads `[tool.prefect]` of `pyproject.toml` only in the project's folder. These are the same settings as
environment variables, to be set before Prefect is first imported.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping

DEFAULTS: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # errors reach the terminal as one line of our own
}


_LOOPS = ("_run_sync_loop", "_global_loop")
_LOOP_END_S = 5.0  # seconds; a loop that does not end holds up nobody for longer


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
