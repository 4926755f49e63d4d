"""The Messages API, one call for each request, at Anthropic or at any server that speaks it (`base_url`).

How such a server is reached (the key, the client, what its errors mean) is for the batches of `batch.py` too. Retries
are decided here, not in the SDK: only what certainly did not start a call is repeated. No replies are kept here, and no
catalog is known.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from itertools import islice
from typing import Any, Literal
from urllib.parse import urlsplit

import anthropic
import httpx2
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from storage.errors import BadInput, Prerequisite, ProviderFailed

from ..parsing import clean_text
from ..prompting import MOST_UNSTREAMED_TOKENS, Request
from .protocol import Provider, Reply

ANTHROPIC_URL = "https://api.anthropic.com"
HOPELESS = (401, 402, 403, 404)
"""Statuses that every other request would get too."""
BUSY = (429, 529)
REFUSED = (400, 413, 422)
_LONGEST_WAIT_S = 120.0
_CONNECT_S = 5.0
QUICK_S = 15.0
UNREADABLE = (ValueError, AttributeError, TypeError, RecursionError)
"""What an answer raises that is no JSON, or JSON of something else."""


CLOUDS: Mapping[str, str] = {"bedrock": "boto3", "vertex": "google.auth"}
"""Clouds that the SDK has clients for, by their word in place of a URL, and the package that each needs."""
_SECRETS = ("AWS_BEARER_TOKEN_BEDROCK", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


class Credentials(BaseSettings):
    """The key, from the environment and from nowhere else; it prints as stars."""

    model_config = SettingsConfigDict(frozen=True)

    key: SecretStr | None = Field(default=None, validation_alias="ANTHROPIC_API_KEY")


def find_cloud(base_url: str | None) -> str | None:
    """The cloud that `bedrock`, `bedrock:REGION`, `vertex` or `vertex:REGION` names; None for a URL."""
    word = (base_url or "").partition(":")[0]
    return word if word in CLOUDS and "//" not in (base_url or "") else None


def read_key(base_url: str | None) -> SecretStr:
    """The key; a server of one's own may need none.

    Raises:
        Prerequisite: if Anthropic is to be asked and there is no key, or the key is no key.
        BadInput: if the server's URL is none, or holds a secret.
    """
    if (cloud := find_cloud(base_url)) is not None:
        return _read_cloud_secrets(cloud)
    key = Credentials().key
    secret = key.get_secret_value().strip() if key is not None else ""
    if base_url is not None:
        _check_url(base_url, secret)
    if not secret.isascii() or any(character <= " " or character == "\x7f" for character in secret):
        raise Prerequisite(
            "ANTHROPIC_API_KEY has a space, a line break or another character that no key has.", "Set it again."
        )
    if secret:
        return SecretStr(secret)
    if base_url is None:
        raise Prerequisite(
            "Anthropic's API needs a key, and ANTHROPIC_API_KEY is empty.",
            "Set ANTHROPIC_API_KEY, or use --provider recorded, --provider file, or --base-url with your own server.",
        )
    return SecretStr("none")


def _read_cloud_secrets(cloud: str) -> SecretStr:
    """What must not be shown, one a line; the SDK's client finds its credentials itself.

    Raises:
        Prerequisite: if the client's package is not installed.
    """
    try:
        import_module(CLOUDS[cloud])
    except ImportError as error:
        raise Prerequisite(
            f"Claude on {cloud} needs the package {CLOUDS[cloud]}.", f"pip install 'trajnote[{cloud}]'"
        ) from error
    return SecretStr("\n".join(filter(None, (os.environ.get(name) for name in _SECRETS))) or "none")


def _connect_cloud(cloud: str, region: str | None, **options: Any) -> anthropic.Anthropic:
    """The SDK's own client of a cloud, whose part that asks messages is that of `anthropic.Anthropic`.

    Raises:
        Prerequisite: if it knows no region.
    """
    sdk: Any = anthropic
    try:
        return (
            sdk.AnthropicBedrock(aws_region=region, **options)
            if cloud == "bedrock"
            else sdk.AnthropicVertex(region=region or anthropic.NOT_GIVEN, **options)
        )
    except (ValueError, anthropic.AnthropicError) as error:
        raise Prerequisite(
            f"The region of {cloud} is not known: {clean_text(str(error), 200).rstrip('.')}.",
            f"Name it, as in --base-url {cloud}:REGION.",
        ) from None


def _check_url(base_url: str, secret: str) -> None:
    """A server's URL is kept with its answers and stands in messages, so nothing secret may be in it."""
    try:
        parts = urlsplit(base_url)
        reachable = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        reachable, parts = False, urlsplit("")
    if parts.username or parts.password or parts.query or (secret and secret in base_url):
        raise BadInput(
            "The server's URL holds a name, a password, a query or the key, and would be kept with the answers.",
            "Give the plain URL with --base-url, and the key in ANTHROPIC_API_KEY.",
        )
    if not reachable:
        raise BadInput(f"{base_url!r} is not the URL of a server.", "An example is http://127.0.0.1:11434.")


def connect(
    key: SecretStr, base_url: str | None, timeout_s: float, http: httpx2.Client | None = None
) -> anthropic.Anthropic:
    """A client that repeats nothing by itself and follows no redirect, for a redirect would carry the key away."""
    is_plain = (base_url or "").startswith("http://")  # no certificates are needed, and they take a while to load
    options: dict[str, Any] = {
        "max_retries": 0,
        "timeout": patience(timeout_s),
        "open_telemetry": False,
        "http_client": http or anthropic.DefaultHttpxClient(follow_redirects=False, verify=not is_plain),
    }
    if (cloud := find_cloud(base_url)) is not None:
        return _connect_cloud(cloud, (base_url or "").partition(":")[2] or None, **options)
    return anthropic.Anthropic(api_key=key.get_secret_value(), base_url=base_url, **options)


def fingerprint(kind: str, base_url: str, secret: str) -> str:
    """A name for what must not be written down: equal for equal secrets at one server, and nobody can turn it back."""
    return hashlib.sha256(f"trajnote {kind} at {base_url.rstrip('/')}: {secret}".encode()).hexdigest()[:16]


def patience(silence_s: float) -> httpx2.Timeout:
    """Seconds of silence that are borne; a server that is there lets one in much sooner."""
    return httpx2.Timeout(silence_s, connect=_CONNECT_S)


def hide_key(key: SecretStr, text: str) -> str:
    """The text without the key, which a server may repeat in its errors."""
    for secret in key.get_secret_value().split("\n"):
        text = text.replace(secret, "***") if len(secret) >= 8 else text
    return text


def own_words(key: SecretStr, error: Exception) -> str:
    """What a server said, in its own sentence where its answer has one; a bounded line without the key."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else None
    message = inner.get("message") if isinstance(inner, dict) else inner
    plain = message if isinstance(message, str) and message.strip() else getattr(error, "message", None) or str(error)
    return clean_text(hide_key(key, str(plain)), 300).rstrip(".") or type(error).__name__


def learn_limit(client: anthropic.Anthropic, model: str) -> int | None:
    """The longest reply that a server allows a model, None if it does not say; it shows that there is a server, too.

    Raises:
        ProviderFailed: if nobody answers within seconds.
    """
    if not hasattr(client, "models"):
        return None  # the clouds' clients do not ask for models
    quick = client.with_options(timeout=patience(QUICK_S))
    try:
        limit = quick.models.retrieve(model).max_tokens
    except anthropic.APIConnectionError as error:
        reason = "it does not answer" if isinstance(error, anthropic.APITimeoutError) else str(error.__cause__ or error)
        raise ProviderFailed(
            f"The server {client.base_url} cannot be reached: {clean_text(reason, 200)}.",
            "Check --base-url and the network; nothing was sent.",
        ) from None
    except (anthropic.AnthropicError, *UNREADABLE):
        return None
    return limit if isinstance(limit, int) and not isinstance(limit, bool) and 256 <= limit <= 2**20 else None


def mark_prefix(params: Mapping[str, Any], ttl: Literal["5m", "1h"]) -> dict[str, Any]:
    """The request with its shared prefix marked for the provider's cache; that changes the bill, not the answer."""
    control = {"type": "ephemeral"} | ({"ttl": ttl} if ttl != "5m" else {})
    return {**params, "system": [{"type": "text", "text": params["system"], "cache_control": control}]}


def never_began(error: BaseException) -> bool:
    """Whether the server certainly did not start to answer, so that asking again cannot be billed twice."""
    if isinstance(error, anthropic.APIStatusError):
        return error.status_code in BUSY
    return isinstance(error, anthropic.APIConnectionError) and isinstance(
        error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout
    )


def pause_after(error: BaseException | None, attempt: int) -> float:
    """Seconds to wait before the next attempt: what the server asks for, else 1, 2, 4 ... and a random part."""
    asked = error.response.headers.get("retry-after") if isinstance(error, anthropic.APIStatusError) else None
    try:
        wait_s = float(asked or "")
    except ValueError:
        wait_s = 2.0 ** (attempt - 1) * random.uniform(1, 1.5)
    return min(max(wait_s, 0.0), _LONGEST_WAIT_S)


def attempt(times: int, may_pass: Callable[[BaseException], bool], sleep: Callable[[float], None]) -> Retrying:
    """Calls a function, again while what it raises may pass; then its last error is raised.

    Args:
        times: at most.
        may_pass: whether it makes sense to try again after an error.
        sleep: waits as `pause_after` says.
    """

    def wait_s(state: RetryCallState) -> float:
        return pause_after(state.outcome.exception() if state.outcome else None, state.attempt_number)

    stop = stop_after_attempt(times)
    return Retrying(retry=retry_if_exception(may_pass), wait=wait_s, stop=stop, sleep=sleep, reraise=True)


_SILENCE = "did not answer"
_SECONDS_PER_TOKEN = 600 / MOST_UNSTREAMED_TOKENS


class AnthropicProvider(Provider):
    """Asks a server, several requests at a time.

    Args:
        base_url: a compatible server (Ollama, vLLM, llama.cpp, LiteLLM), or a cloud as in `find_cloud`;
            Anthropic's own when None.
        concurrency: calls under way at the same time.
        attempts: how often a request is sent while the server says that it is busy or cannot be reached.
        timeout_s: seconds to wait for one reply.
        sleep: waits between attempts; tests pass their own.

    Raises:
        Prerequisite: if Anthropic is to be asked and there is no key.
    """

    name = "anthropic"
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
        self.keep: Callable[[Reply], None] = lambda _: None  # a ledger puts its own function here

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
            message = own_words(self._key, error)
            raise ProviderFailed(f"The server did not count tokens: {message}.", "Leave --count out.") from None

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
        try:
            return attempt(self._attempts, never_began, self._sleep)(self._call, client, request)
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
        return Reply(request.request_id, hide_key(self._key, response.text()), provenance=provenance)

    def _explain(self, request: Request, error: anthropic.APIError) -> Reply:
        """What an error means for the request, or for all of them; it is not chained, since it may quote the key."""
        status = error.status_code if isinstance(error, anthropic.APIStatusError) else None
        message = _SILENCE if isinstance(error, anthropic.APITimeoutError) else own_words(self._key, error)
        if status in HOPELESS:
            raise ProviderFailed(
                f"The server refused: {message}.", "Check the key, the model's name and --base-url."
            ) from None
        if status is None and never_began(error):
            raise ProviderFailed(
                f"The server cannot be reached: {message}.", "Check --base-url and the network; run again."
            ) from None
        if status in REFUSED:
            return Reply(request.request_id, None, f"refused ({status}): {message}", final=True)
        if status in BUSY:
            return Reply(request.request_id, None, f"busy ({status}) {self._attempts} times: {message}")
        return Reply(request.request_id, None, f"outcome unknown, it may have been billed: {message}", unknown=True)


def _outcome(future: Future[Reply], request: Request) -> Reply:
    """What became of a call that was under way when its reply was not waited for any more."""
    error = future.exception()
    if error is None:
        return future.result()
    message = error.problem if isinstance(error, ProviderFailed) else type(error).__name__
    return Reply(request.request_id, None, message, unknown=not isinstance(error, ProviderFailed))
