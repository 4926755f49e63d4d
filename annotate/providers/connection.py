"""How a server that speaks Anthropic's API is reached: the key, the client, what its errors mean. It asks nothing."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal
from urllib.parse import urlsplit

import anthropic
import httpx2
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from storage.errors import BadInput, Prerequisite, ProviderFailed

from ..parsing import clean_text

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
            "ANTHROPIC_API_KEY has a blank, a line break or another character that no key has.", "Set it anew."
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


def _connect_cloud(cloud: str, region: str | None, timeout_s: float) -> anthropic.Anthropic:
    """The SDK's own client of a cloud, whose part that asks messages is that of `anthropic.Anthropic`.

    Raises:
        Prerequisite: if it knows no region.
    """
    options: dict[str, Any] = {
        "max_retries": 0,
        "timeout": patience(timeout_s),
        "open_telemetry": False,
        "http_client": anthropic.DefaultHttpxClient(follow_redirects=False),
    }
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
    if (cloud := find_cloud(base_url)) is not None:
        return _connect_cloud(cloud, (base_url or "").partition(":")[2] or None, timeout_s)
    is_plain = (base_url or "").startswith("http://")  # no certificates are needed, and they take a while to load
    return anthropic.Anthropic(
        api_key=key.get_secret_value(),
        base_url=base_url,
        max_retries=0,
        timeout=patience(timeout_s),
        open_telemetry=False,
        http_client=http or anthropic.DefaultHttpxClient(follow_redirects=False, verify=not is_plain),
    )


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
    said = inner.get("message") if isinstance(inner, dict) else inner
    plain = said if isinstance(said, str) and said.strip() else getattr(error, "message", None) or str(error)
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
        said = "it does not answer" if isinstance(error, anthropic.APITimeoutError) else str(error.__cause__ or error)
        raise ProviderFailed(
            f"The server {client.base_url} cannot be reached: {clean_text(said, 200)}.",
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
