"""The Messages API, one call for each request, at Anthropic or at any server that speaks it (`base_url`).

Retries are decided here, not in the SDK: only what certainly did not start a
call is repeated. It keeps no replies and knows no catalog.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice

import anthropic
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from storage.errors import ProviderFailed

from ..prompting import MOST_UNSTREAMED_TOKENS, Request
from .connection import (
    BUSY,
    HOPELESS,
    REFUSED,
    Credentials,
    connect,
    find_cloud,
    hide_key,
    learn_limit,
    mark_prefix,
    never_began,
    own_words,
    patience,
    pause_after,
    read_key,
)
from .protocol import Reply

__all__ = ["AnthropicProvider", "Credentials"]


_SILENCE = "did not answer"
_SECONDS_PER_TOKEN = 600 / MOST_UNSTREAMED_TOKENS


class AnthropicProvider:
    """Asks a server, several requests at a time.

    Args:
        base_url: a compatible server (Ollama, vLLM, llama.cpp, LiteLLM), or a cloud as in `connection.find_cloud`;
            Anthropic's own when None.
        concurrency: calls under way at the same time.
        attempts: how often a request is sent while the server says that it is busy or cannot be reached.
        timeout_s: seconds to wait for one reply.
        sleep: waits between attempts; tests pass their own.

    Raises:
        Prerequisite: if Anthropic is to be asked and there is no key.
    """

    name = "anthropic"
    recorded = False
    paid = True

    def __init__(
        self,
        base_url: str | None = None,
        *,
        concurrency: int = 4,
        attempts: int = 6,
        timeout_s: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._key = read_key(base_url)
        self._base_url = base_url
        self._concurrency = concurrency
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._late: list[Reply] = []
        self.keep: Callable[[Reply], None] = _keep_nothing

    def prepare(self, known: Collection[str], pending: Collection[str], *, complete: bool) -> None:
        """A server says itself what it refuses."""

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """Replies in the order in which they arrive; a request is taken from `requests` when it can go at once.

        The first request goes alone: it shows whether the server accepts the key, and fills the cache of the shared
        prompt for the others.

        Raises:
            ProviderFailed: if the server refuses the key or the model, or cannot be reached.
        """
        with self._connect() as client:
            stream = iter(requests)
            for request in islice(stream, 1):
                try:
                    reply = self._ask_and_keep(client, request)
                except ProviderFailed as error:
                    self._late.append(Reply(request.request_id, None, error.problem))
                    raise
                yield reply
                if reply.error is not None and reply.error.endswith(_SILENCE):
                    raise ProviderFailed(
                        f"The server took a request and {_SILENCE} it within {self._timeout_s:g} s.",
                        "It may have been billed. Check the server; the same command asks again.",
                    )
            yield from self._ask_side_by_side(client, stream)

    def late(self) -> list[Reply]:
        """Replies that were under way when the iterator was given up."""
        late, self._late = self._late, []
        return late

    def output_limit(self, model: str) -> int | None:
        """The longest reply that the server allows a model; None if it does not say.

        Raises:
            ProviderFailed: if nobody answers within seconds.
        """
        with self._connect() as client:
            return learn_limit(client, model)

    def count_tokens(self, requests: Iterable[Request]) -> list[int]:
        """Input tokens of requests, counted by the server, which asks nothing for it.

        Raises:
            ProviderFailed: if the server does not count.
        """
        asked = ("model", "system", "messages", "output_config")
        try:
            with self._connect() as client:
                return [
                    client.messages.count_tokens(**{k: v for k, v in request.params.items() if k in asked}).input_tokens
                    for request in requests
                ]
        except anthropic.AnthropicError as error:
            said = own_words(self._key, error)
            raise ProviderFailed(f"The server did not count tokens: {said}.", "Leave --count away.") from None

    def _connect(self) -> anthropic.Anthropic:
        return connect(self._key, self._base_url, self._timeout_s)

    def _ask_side_by_side(self, client: anthropic.Anthropic, requests: Iterator[Request]) -> Generator[Reply]:
        """Never more under way than `concurrency`, so that giving up loses little."""
        running: dict[Future[Reply], Request] = {}
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="annotate") as pool:
            try:
                while True:
                    for request in islice(requests, self._concurrency - len(running)):
                        running[pool.submit(self._ask_and_keep, client, request)] = request
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        reply = future.result()
                        del running[future]
                        yield reply
            finally:
                self._late += [_outcome(future, request) for future, request in running.items()]

    def _ask_and_keep(self, client: anthropic.Anthropic, request: Request) -> Reply:
        reply = self._ask(client, request)
        with suppress(Exception):  # the reply is landed again when it is taken, and the error is raised there
            self.keep(reply)
        return reply

    def _ask(self, client: anthropic.Anthropic, request: Request) -> Reply:
        attempts = Retrying(
            retry=retry_if_exception(never_began),
            wait=_pause,
            stop=stop_after_attempt(self._attempts),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return attempts(self._call, client, request)
        except anthropic.APIError as error:
            return self._explain(request, error)
        except Exception as error:  # of the libraries that find a cloud's credentials
            if (cloud := find_cloud(self._base_url)) is None:
                raise
            raise ProviderFailed(
                f"The credentials of {cloud} cannot be used: {own_words(self._key, error)}.",
                "Set them up as the cloud's own tools need them.",
            ) from None

    def _call(self, client: anthropic.Anthropic, request: Request) -> Reply:
        wait_s = max(self._timeout_s, _SECONDS_PER_TOKEN * int(request.sent.get("max_tokens", 0)))
        response = client.messages.with_raw_response.create(**mark_prefix(request.sent, "5m"), timeout=patience(wait_s))
        provenance = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "base_url": str(client.base_url)}
        return Reply(request.request_id, self._hide_key(response.text()), provenance=provenance)

    def _explain(self, request: Request, error: anthropic.APIError) -> Reply:
        """What an error means for the request, or for all of them; it is not chained, since it may quote the key."""
        status = error.status_code if isinstance(error, anthropic.APIStatusError) else None
        said = _SILENCE if isinstance(error, anthropic.APITimeoutError) else own_words(self._key, error)
        if status in HOPELESS:
            raise ProviderFailed(
                f"The server refused: {said}.", "Check the key, the model's name and --base-url."
            ) from None
        if status is None and never_began(error):
            raise ProviderFailed(
                f"The server cannot be reached: {said}.", "Check --base-url and the network; run again."
            ) from None
        if status in REFUSED:
            return Reply(request.request_id, None, f"refused ({status}): {said}", final=True)
        if status in BUSY:
            return Reply(request.request_id, None, f"busy ({status}) {self._attempts} times: {said}")
        return Reply(request.request_id, None, f"outcome unknown, it may have been billed: {said}", unknown=True)

    def _hide_key(self, text: str) -> str:
        return hide_key(self._key, text)


def _keep_nothing(reply: Reply) -> None:
    """Without a ledger there is nobody to keep a reply for."""


def _outcome(future: Future[Reply], request: Request) -> Reply:
    """What became of a call that was under way when its reply was not waited for any more."""
    error = future.exception()
    if error is None:
        return future.result()
    said = error.problem if isinstance(error, ProviderFailed) else type(error).__name__
    return Reply(request.request_id, None, said, unknown=not isinstance(error, ProviderFailed))


def _pause(state: RetryCallState) -> float:
    return pause_after(state.outcome.exception() if state.outcome else None, state.attempt_number)
