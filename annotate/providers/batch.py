"""Anthropic's Message Batches: one method for each of its verbs, and for each error what it says about the batch.

It keeps nothing, decides nothing and repeats only what reads: creating a batch is never repeated here, because the API
knows no idempotency key.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import anthropic
import httpx2
from anthropic.types.messages import MessageBatch

from storage.errors import BadInput, ProviderFailed

from ..prompting import Request
from .anthropic import (
    ANTHROPIC_URL,
    UNREADABLE,
    attempt,
    connect,
    find_cloud,
    fingerprint,
    hide_key,
    learn_limit,
    mark_prefix,
    never_began,
    own_words,
    pause_after,
    read_key,
)

MOST_BYTES = 256_000_000
RESULTS_KEPT_DAYS = 29
NOTHING_CREATED = (400, 401, 402, 403, 404, 413, 422, 429)
PAGE = 100
_TIMEOUT_S = 600.0
"""Seconds of silence after which a call counts as lost."""
_ATTEMPTS = 6
"""How often something is read while the server is busy or cannot be reached."""
_MOST_PAGES = 1_000
_ORGANISATION = "anthropic-organization-id"
_NAME = re.compile(r"[\w.:-]{1,200}")


class ServerBusyError(ProviderFailed):
    """The server is busy or out of reach; the same command succeeds later."""


class NothingCreatedError(Exception):
    """The server has certainly not created a batch.

    Args:
        problem: what it said.
        pause_s: seconds to wait before it makes sense to try again; None if that makes no sense.
    """

    def __init__(self, problem: str, pause_s: float | None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.pause_s = pause_s


class OutcomeUnknownError(Exception):
    """The server may have created the batch, or not."""


class NotThereError(Exception):
    """The server does not show a batch or its results now; that may pass."""


class BrokenOffError(Exception):
    """The results stopped before their end."""


@dataclass(frozen=True)
class RemoteBatch:
    """A batch as the server sees it."""

    remote_id: str
    ended: bool
    requests: int
    counts: dict[str, int]
    created_at: datetime
    ended_at: datetime | None
    vanished: bool  # its results are not kept any more
    results_url: str | None


class BatchServer:
    """A server with Message Batches.

    Args:
        base_url: Anthropic's own when None.
        sleep: waits between attempts; tests pass their own.

    Raises:
        BadInput: if a cloud is named, whose client has no batches.
        Prerequisite: if Anthropic is to be asked and there is no key.
    """

    def __init__(self, base_url: str | None = None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        if (cloud := find_cloud(base_url)) is not None:
            raise BadInput(
                f"Message Batches are not available through {cloud}: the SDK's client for it has none.",
                "Use --provider anthropic there, which asks one request at a time.",
            )
        self._key = read_key(base_url)
        self.base_url = (base_url or ANTHROPIC_URL).rstrip("/")
        is_plain = self.base_url.startswith("http://")  # no certificates are needed, and they take a while to load
        self.account = fingerprint("key", self.base_url, self._key.get_secret_value())
        self.organisation: str | None = None  # a hash of its name, once the server has said it
        self._http = anthropic.DefaultHttpxClient(
            follow_redirects=False,
            timeout=_TIMEOUT_S,
            verify=not is_plain,
            event_hooks={"response": [self._note_organisation]},
        )
        self._client = connect(self._key, self.base_url, _TIMEOUT_S, self._http)
        self._limits: dict[str, int | None] = {}
        self.sleep = sleep

    def output_limit(self, model: str) -> int | None:
        """The longest reply that the server allows a model, asked once; None if it does not say.

        Raises:
            ProviderFailed: if nobody answers within seconds.
        """
        if model not in self._limits:
            self._limits[model] = learn_limit(self._client, model)
        return self._limits[model]

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def _note_organisation(self, response: httpx2.Response) -> None:
        named = response.headers.get(_ORGANISATION)
        if named:
            self.organisation = fingerprint("organisation", self.base_url, named)

    def now(self) -> datetime:
        """The server's clock; ours if it does not tell."""
        listed = self.ask_list(lambda: self._client.messages.batches.with_raw_response.list(limit=1))
        try:
            return parsedate_to_datetime(listed.headers["date"]).astimezone(UTC)
        except (KeyError, ValueError, TypeError):
            return datetime.now(UTC)

    def create(self, requests: Sequence[Request]) -> RemoteBatch:
        """Create a batch; sent once and never again.

        Raises:
            NothingCreatedError: if there is certainly no batch.
            OutcomeUnknownError: if there may be one.
        """
        body: Any = [{"custom_id": r.request_id, "params": mark_prefix(r.sent, "1h")} for r in requests]
        try:
            return _remote(self._client.messages.batches.create(requests=body))
        except anthropic.APIStatusError as error:
            problem = self._said(error)
            if error.status_code in NOTHING_CREATED:
                raise NothingCreatedError(
                    problem, pause_after(error, 1) if error.status_code == 429 else None
                ) from None
            raise OutcomeUnknownError(problem) from None
        except anthropic.AnthropicError as error:
            if never_began(error):
                raise NothingCreatedError(self._said(error), pause_after(error, 1)) from None
            raise OutcomeUnknownError(self._said(error)) from None
        except UNREADABLE:
            raise OutcomeUnknownError("the server's answer is not about a batch") from None

    def newer_than(self, marker: datetime) -> list[RemoteBatch]:
        """Batches created at or after a time of the server's clock, the newest first.

        It ends whatever the server does: at a page that brings nothing new too, since some servers ignore the cursor.
        A list that is not in this order is read to its end, and an entry that is no batch is left out.
        """
        found: dict[str, RemoteBatch] = {}
        after: str | None = None
        for _ in range(_MOST_PAGES):
            listed, has_more = self._list(after)
            fresh = [batch for batch in listed if batch.remote_id not in found]
            found |= {batch.remote_id: batch for batch in fresh}
            times = [batch.created_at for batch in listed]
            is_older = times == sorted(times, reverse=True) and bool(times) and times[-1] < marker
            if not fresh or not has_more or is_older:
                break
            after = listed[-1].remote_id
        return [batch for batch in found.values() if batch.created_at >= marker]

    def retrieve(self, remote_id: str) -> RemoteBatch:
        """A batch as it is now.

        Raises:
            NotThereError: if the server does not know it now.
        """
        return self._read(lambda: _remote(self._client.messages.batches.retrieve(remote_id)))

    def results(self, batch: RemoteBatch) -> Iterator[str]:
        """The lines of a batch's results, as they come, once from their beginning.

        Raises:
            NotThereError: if there are none now.
            BrokenOffError: if the connection ends before they do.
        """
        url = self._results_url(batch)
        headers = {**self._client.auth_headers, "anthropic-version": "2023-06-01"}
        try:
            with self._http.stream("GET", url, headers=headers) as response:
                if response.status_code != 200:
                    raise NotThereError(f"results of {batch.remote_id}: status {response.status_code}")
                yield from (hide_key(self._key, line) for line in _lines(response.iter_bytes()) if line.strip())
        except httpx2.HTTPError as error:
            raise BrokenOffError(f"results of {batch.remote_id}: {type(error).__name__}") from error
        except (httpx2.InvalidURL, ValueError) as error:
            raise NotThereError(f"results of {batch.remote_id}: their URL is invalid") from error

    def _results_url(self, batch: RemoteBatch) -> str:
        """Where the results are, at this server and nowhere else: the key goes to no other host."""
        own = f"{self.base_url}/v1/messages/batches/{batch.remote_id}/results"
        named = urljoin(own, batch.results_url or own)
        here, there = urlsplit(self.base_url), urlsplit(named)
        return named if (there.scheme, there.netloc) == (here.scheme, here.netloc) else own

    def _list(self, after: str | None) -> tuple[list[RemoteBatch], bool]:
        """A page of batches, and whether there are more."""

        def ask() -> tuple[list[RemoteBatch], bool]:
            page = self._client.messages.batches.list(limit=PAGE, after_id=after or anthropic.omit)
            return [*_remotes(page.data)], bool(page.has_more)

        return self.ask_list(ask)

    def ask_list(self, ask: Callable[[], Any]) -> Any:
        """What a question about the list of batches gives.

        Raises:
            ProviderFailed: if the server has no such list.
        """
        try:
            return self._read(ask)
        except NotThereError as error:
            raise ProviderFailed(
                f"{self.base_url} has no Message Batches: {error}.", "Use --provider anthropic for single calls."
            ) from error

    def _read(self, ask: Callable[[], Any]) -> Any:
        """Ask for something that changes nothing, again while the server is busy or out of reach."""
        try:
            return attempt(_ATTEMPTS, _may_pass, self.sleep)(ask)
        except anthropic.NotFoundError as error:
            raise NotThereError(self._said(error)) from None
        except anthropic.AnthropicError as error:
            problem = f"The server did not answer: {self._said(error)}."
            if _may_pass(error):
                raise ServerBusyError(problem, "Run the same command again later; nothing was lost.") from None
            raise ProviderFailed(problem, "Check the key and --base-url.") from None
        except UNREADABLE:
            raise ProviderFailed("The server's answer is not about batches.", "Check --base-url.") from None

    def _said(self, error: Exception) -> str:
        """What a server said, without the key; the error itself, which may have it, is never chained."""
        return own_words(self._key, error)


def _remotes(entries: Iterable[MessageBatch]) -> Iterator[RemoteBatch]:
    """Those entries of a list that are batches."""
    for entry in entries:
        with suppress(*UNREADABLE):
            yield _remote(entry)


def _remote(batch: MessageBatch) -> RemoteBatch:
    """What a server says about a batch.

    Raises:
        ValueError, AttributeError, TypeError: if it says something else.
    """
    if not _NAME.fullmatch(batch.id):
        raise ValueError("a batch needs a name")
    counts = batch.request_counts.model_dump()
    return RemoteBatch(
        remote_id=batch.id,
        ended=batch.processing_status == "ended",
        requests=sum(int(count) for count in counts.values() if isinstance(count, int)),
        counts=counts,
        created_at=_utc(batch.created_at),
        ended_at=_utc(batch.ended_at) if batch.ended_at else None,
        vanished=batch.archived_at is not None,
        results_url=batch.results_url,
    )


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _lines(pieces: Iterator[bytes]) -> Iterator[str]:
    """Whole lines, broken at line feeds only; bytes that are no text are replaced."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
    yield rest.decode("utf-8", "replace")


def _may_pass(error: BaseException) -> bool:
    """Whether the server is busy, or out of reach."""
    if isinstance(error, anthropic.APIStatusError):
        return error.status_code == 429 or error.status_code >= 500
    return isinstance(error, anthropic.APIConnectionError)
