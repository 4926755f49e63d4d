"""The one small protocol behind which language models stand. A new provider is one file with one class.

A provider touches neither catalog nor store: it takes requests and yields what came back, in any order; the ledger is
the only one who writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..prompting import Request


@dataclass(frozen=True)
class Reply:
    """What came back for one request: a raw message, or an error."""

    request_id: str
    raw: str | None  # the message as it came, JSON of the Messages API if all went well; None with an error
    error: str | None = None
    final: bool = False  # of an error: asking the same again cannot help
    unknown: bool = False  # of an error: the server may have answered all the same, and may bill it
    provenance: Mapping[str, Any] = field(default_factory=dict)  # who answered, when, from where
    body: Mapping[str, Any] | None = field(default=None, compare=False)  # the message, where it was parsed already


class Provider(Protocol):
    """Answers requests. A class that derives from it only says what it does otherwise."""

    name: str
    recorded: bool = False
    """Whether the answers were given earlier, so that nothing is paid for now."""
    paid: bool = False
    """Whether each request may cost money: it is then entered before it is sent, held against the budget, and never
    asked by two commands at once."""

    def prepare(self, known: Collection[str], pending: Collection[str], *, complete: bool) -> None:
        """Refuse what cannot work, before anything is written.

        Args:
            known: ids of all requests of the run, as far as they are known.
            pending: those of them that `answer` will be called with.
            complete: false if more requests will follow from the answers to these.
        """

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """Yield at most one reply for each request; one that gets none stays pending.

        A provider that is paid takes a request from `requests` only when it sends it.
        """
        ...


@runtime_checkable
class Threaded(Protocol):
    """A provider whose replies arrive in threads of its own."""

    keep: Callable[[Reply], None]
    """Called with each reply in the thread that received it, so that it is on the disk whatever the others do."""


@runtime_checkable
class Late(Protocol):
    """A provider to which replies may come after the iterator of `answer` was given up."""

    def late(self) -> list[Reply]:
        """Those replies, once; they are paid for, so they are kept."""
        ...


@runtime_checkable
class Limited(Protocol):
    """A provider whose server can say how long the replies of a model may be."""

    def output_limit(self, model: str) -> int | None:
        """The longest reply that is allowed; None if the server does not say.

        Raises:
            ProviderFailed: if nobody answers within seconds.
        """
        ...


@runtime_checkable
class Written(Protocol):
    """A provider whose answers stand somewhere and may be corrected there."""

    def says(self, request_id: str) -> str | None:
        """The raw reply to a request, if there is one."""
        ...
