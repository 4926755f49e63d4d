"""The Messages API, one call for each request, at Anthropic or at any server that speaks it (`base_url`).

It is the only door to the anthropic SDK. Retries are decided here, not in the SDK: only what certainly did not start a
call is repeated. It keeps no replies and knows no catalog.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Any

import anthropic
import httpx2
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from storage.errors import Prerequisite, ProviderFailed

from ..messages import clean_text
from ..requests import Request
from .protocol import Reply

_HOPELESS = (401, 402, 403, 404)
_BUSY = (429, 529)
_REFUSED = (400, 413, 422)
_LONGEST_WAIT_S = 120.0


class Credentials(BaseSettings):
    """The key, from the environment and from nowhere else; it prints as stars."""

    model_config = SettingsConfigDict(frozen=True)

    key: SecretStr | None = Field(default=None, validation_alias="ANTHROPIC_API_KEY")


class AnthropicProvider:
    """Asks a server, several requests at a time.

    Args:
        base_url: a compatible server (Ollama, vLLM, llama.cpp, LiteLLM); Anthropic's own when None.
        concurrency: calls under way at the same time.
        attempts: how often a request is sent while the server says that it is busy or cannot be reached.
        timeout_s: seconds to wait for one reply.
        sleep: waits between attempts; tests pass their own.

    Raises:
        Prerequisite: if Anthropic is to be asked and there is no key.
    """

    name = "anthropic"
    recorded = False

    def __init__(
        self,
        base_url: str | None = None,
        *,
        concurrency: int = 4,
        attempts: int = 6,
        timeout_s: float = 600.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._key = _read_key(base_url)
        self._base_url = base_url
        self._concurrency = concurrency
        self._attempts = attempts
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._late: list[Reply] = []

    def prepare(self, known: Collection[str], pending: Collection[str], *, complete: bool) -> None:
        """A server says itself what it refuses."""

    def answer(self, requests: Sequence[Request]) -> Generator[Reply]:
        """Replies in the order in which they arrive.

        The first request goes alone: it shows whether the server accepts the key, and fills the cache of the shared
        prompt for the others.

        Raises:
            ProviderFailed: if the server refuses the key or the model, or cannot be reached.
        """
        with self._connect() as client:
            for request in requests[:1]:
                yield self._ask(client, request)
            yield from self._ask_side_by_side(client, requests[1:])

    def late(self) -> list[Reply]:
        """Replies that were under way when the iterator was given up."""
        late, self._late = self._late, []
        return late

    def _connect(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(
            api_key=self._key.get_secret_value(),
            base_url=self._base_url,
            max_retries=0,
            timeout=self._timeout_s,
            open_telemetry=False,
            http_client=anthropic.DefaultHttpxClient(follow_redirects=False),
        )

    def _ask_side_by_side(self, client: anthropic.Anthropic, requests: Sequence[Request]) -> Generator[Reply]:
        """Never more under way than `concurrency`, so that giving up loses little."""
        waiting = list(reversed(requests))
        running: set[Future[Reply]] = set()
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="annotate") as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < self._concurrency:
                        running.add(pool.submit(self._ask, client, waiting.pop()))
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        running.remove(future)
                        yield future.result()
            finally:
                self._late += [future.result() for future in running if future.exception() is None]

    def _ask(self, client: anthropic.Anthropic, request: Request) -> Reply:
        attempts = Retrying(
            retry=retry_if_exception(_never_began),
            wait=_pause,
            stop=stop_after_attempt(self._attempts),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return attempts(self._call, client, request)
        except anthropic.APIError as error:
            return self._explain(request, error)

    def _call(self, client: anthropic.Anthropic, request: Request) -> Reply:
        response = client.messages.with_raw_response.create(**_for_sending(request.params))
        provenance = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "base_url": str(client.base_url)}
        return Reply(request.request_id, self._hide_key(response.text()), provenance=provenance)

    def _explain(self, request: Request, error: anthropic.APIError) -> Reply:
        """What an error means for the request, or for all of them."""
        status = error.status_code if isinstance(error, anthropic.APIStatusError) else None
        said = self._hide_key(clean_text(error.message, 500))
        if status in _HOPELESS:
            raise ProviderFailed(f"The server refused: {said}.", "Check the key, the model's name and --base-url.")
        if status is None and _never_began(error):
            raise ProviderFailed(
                f"The server cannot be reached: {said}.", "Check --base-url and the network; run again."
            )
        if status in _REFUSED:
            return Reply(request.request_id, None, f"refused ({status}): {said}", final=True)
        if status in _BUSY:
            return Reply(request.request_id, None, f"busy ({status}) {self._attempts} times: {said}")
        return Reply(request.request_id, None, f"outcome unknown, it may have been billed: {said}")

    def _hide_key(self, text: str) -> str:
        key = self._key.get_secret_value()
        return text.replace(key, "***") if len(key) >= 8 else text


def _read_key(base_url: str | None) -> SecretStr:
    key = Credentials().key
    if key is not None and key.get_secret_value().strip():
        return SecretStr(key.get_secret_value().strip())
    if base_url is None:
        raise Prerequisite(
            "There is no key for Anthropic's API.",
            "Set ANTHROPIC_API_KEY, or use --provider recorded, --provider file, or --base-url with your own server.",
        )
    return SecretStr("none")


def _for_sending(params: Mapping[str, Any]) -> dict[str, Any]:
    """The request with its shared prefix marked for the provider's cache; that changes the bill, not the answer."""
    system = [{"type": "text", "text": params["system"], "cache_control": {"type": "ephemeral"}}]
    return {**params, "system": system}


def _never_began(error: BaseException) -> bool:
    """Whether the server certainly did not start to answer, so that asking again cannot be billed twice."""
    if isinstance(error, anthropic.APIStatusError):
        return error.status_code in _BUSY
    return isinstance(error, anthropic.APIConnectionError) and isinstance(
        error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout
    )


def _pause(state: RetryCallState) -> float:
    """As long as the server asks for, otherwise 1, 2, 4 ... seconds and a random part."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("retry-after") if isinstance(error, anthropic.APIStatusError) else None
    try:
        wait_s = float(asked or "")
    except ValueError:
        wait_s = 2.0 ** (state.attempt_number - 1) * random.uniform(1, 1.5)
    return min(max(wait_s, 0.0), _LONGEST_WAIT_S)
