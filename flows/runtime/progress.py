"""How long work reports its progress: one call, however it is shown."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


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
