"""Prefect's settings for runs from the command line, wherever it is called; the user's own settings win.

Prefect reads `[tool.prefect]` of `pyproject.toml` only in the project's folder. These are the same settings as
environment variables, to be set before Prefect is first imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

DEFAULTS: Mapping[str, str] = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # errors reach the terminal as one line of our own
}


def quieten_prefect() -> None:
    """Set what the user has not set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
