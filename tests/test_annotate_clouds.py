"""Claude on Bedrock and on Vertex through the SDK's own clients, against a loopback server; secrets stay secret."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import anthropic
import pytest
from test_annotate_anthropic import Server, request

from annotate.costs import Tokens, price
from annotate.parsing.replies import read_message
from annotate.providers.anthropic import CLOUDS, AnthropicProvider
from annotate.providers.batch import BatchServer
from storage.errors import BadInput, Prerequisite, ProviderFailed

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def spoken(reply: Any) -> str:
    return read_message(reply.raw).text


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setenv("ANTHROPIC_BEDROCK_BASE_URL", made.url)
    monkeypatch.setenv("ANTHROPIC_VERTEX_BASE_URL", made.url)
    for name in ("ANTHROPIC_API_KEY", "AWS_BEARER_TOKEN_BEDROCK", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE0123456789")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_bedrock_is_asked_through_its_client_with_a_signature_and_no_key(server: Server) -> None:
    pytest.importorskip("boto3")
    reply = next(iter(AnthropicProvider("bedrock").answer([request("how?")])))
    assert reply.error is None
    assert spoken(reply) == "hello"
    assert server.headers[0]["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE")
    assert "/eu-west-1/bedrock/" in server.headers[0]["authorization"]
    assert SECRET not in str((server.headers, server.bodies, reply))
    next(iter(AnthropicProvider("bedrock:us-east-2").answer([request("how?")])))
    assert "/us-east-2/bedrock/" in server.headers[1]["authorization"]


def test_vertex_is_asked_through_its_client(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    made = anthropic.AnthropicVertex

    def with_token(**options: Any) -> Any:
        return made(access_token="ya29.example-0123456789", project_id="my-project", **options)

    monkeypatch.setitem(sys.modules, "google.auth", ModuleType("google.auth"))
    monkeypatch.setattr(anthropic, "AnthropicVertex", with_token)
    reply = next(iter(AnthropicProvider("vertex:europe-west1").answer([request("how?")])))
    assert spoken(reply) == "hello"
    assert server.headers[0]["authorization"] == "Bearer ya29.example-0123456789"
    assert "ya29" not in str(reply)
    monkeypatch.delenv("CLOUD_ML_REGION", raising=False)
    with pytest.raises(Prerequisite, match="--base-url vertex:REGION"):
        list(AnthropicProvider("vertex").answer([request("how?")]))


def test_without_its_package_or_credentials_a_cloud_says_what_is_missing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")

    def without_credentials(*_: object) -> None:
        raise RuntimeError(f"could not resolve credentials from session {SECRET}")

    monkeypatch.setattr("botocore.session.Session.get_credentials", without_credentials)
    with pytest.raises(ProviderFailed, match=r"credentials of bedrock cannot be used: could not .* session \*\*\*\."):
        list(AnthropicProvider("bedrock").answer([request("how?")]))
    monkeypatch.setitem(CLOUDS, "bedrock", "no_such_package")  # type: ignore[arg-type]
    with pytest.raises(Prerequisite, match=r"pip install 'trajnote\[bedrock\]'"):
        AnthropicProvider("bedrock")


def test_secrets_that_a_cloud_repeats_are_hidden(server: Server) -> None:
    pytest.importorskip("boto3")
    server.text = f"your key is {SECRET} of AKIDEXAMPLE0123456789"
    reply = next(iter(AnthropicProvider("bedrock").answer([request("how?")])))
    assert "your key is *** of ***" in spoken(reply)
    assert SECRET not in str(reply)


@pytest.mark.parametrize("cloud", ["bedrock", "vertex:us-east5"])
def test_a_cloud_has_no_message_batches_and_says_so(cloud: str) -> None:
    with pytest.raises(BadInput, match=r"Batches are not available through (bedrock|vertex).*--provider anthropic"):
        BatchServer(cloud)


def test_prices_are_those_of_the_clouds_own_names() -> None:
    million = Tokens(input=1_000_000)
    assert price("us.anthropic.claude-sonnet-4-5-20250929-v1:0", million) == pytest.approx(3.3)
    assert price("global.anthropic.claude-opus-4-6-v1", million) == pytest.approx(5.0)
    assert price("claude-haiku-4-5@20251001", million) == price("claude-haiku-4-5", million) == pytest.approx(1.0)
    assert price("anthropic.claude-haiku-5-5-turbo", million) is None
