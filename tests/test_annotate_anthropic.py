"""The Messages API through a loopback server: what is sent, what is repeated, and that the key stays secret."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from annotate.parsing.replies import read_message
from annotate.prompting.requests import Request, request_id_of
from annotate.providers.anthropic import AnthropicProvider, Credentials
from storage.errors import Prerequisite, ProviderFailed

KEY = "sk-test-0123456789abcdef"


class Server:
    """Answers POSTs by a script: each entry is a status and headers, or "drop"; then always 200."""

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, str]] | str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.text = "hello"
        self.busy = 0
        self.most_busy = 0
        self.hold: threading.Event | None = None
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    server.bodies.append(body)
                    server.headers.append({k.lower(): v for k, v in self.headers.items()})
                    server.busy += 1
                    server.most_busy = max(server.most_busy, server.busy)
                    step = server.script.pop(0) if server.script else (200, {})
                if server.hold is not None and len(server.bodies) > 1:
                    server.hold.wait(5)
                self._reply(step)
                with server.lock:
                    server.busy -= 1

            def _reply(self, step: tuple[int, dict[str, str]] | str) -> None:
                if isinstance(step, str):
                    self.connection.close()
                    return
                status, headers = step
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                content = json.dumps(server.message() if status == 200 else server.error(status)).encode()
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler

    def message(self) -> dict[str, Any]:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "local",
            "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": self.text}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 7, "output_tokens": 3},
        }

    def error(self, status: int) -> dict[str, Any]:
        return {"type": "error", "error": {"type": "some_error", "message": f"no {status} for key {KEY}"}}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def request(text: str) -> Request:
    params = {"model": "m", "max_tokens": 10, "system": "shared", "messages": [{"role": "user", "content": text}]}
    return Request(request_id_of(params), "mark", params)


def provider(server: Server, pauses: list[float] | None = None, **options: Any) -> AnthropicProvider:
    return AnthropicProvider(server.url, sleep=(pauses if pauses is not None else []).append, **options)


def test_a_request_is_sent_once_with_its_prefix_marked_for_the_cache(server: Server) -> None:
    (reply,) = provider(server).answer([request("one")])
    assert reply.error is None
    assert reply.raw is not None
    message = read_message(reply.raw)
    assert (message.text, message.model, message.usage) == ("hello", "local", {"input_tokens": 7, "output_tokens": 3})
    assert server.bodies == [
        {
            "model": "m",
            "max_tokens": 10,
            "system": [{"type": "text", "text": "shared", "cache_control": {"type": "ephemeral"}}],
            "messages": [{"role": "user", "content": "one"}],
        }
    ]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps(reply.provenance)


def test_many_requests_are_asked_side_by_side_but_no_more_than_allowed(server: Server) -> None:
    asked = [request(str(i)) for i in range(20)]
    replies = list(provider(server, concurrency=3).answer(asked))
    assert Counter(reply.request_id for reply in replies) == Counter(r.request_id for r in asked)
    assert len(server.bodies) == 20
    assert server.most_busy <= 3


@pytest.mark.parametrize("status", [429, 529])
def test_a_busy_server_is_asked_again_after_the_time_it_names(server: Server, status: int) -> None:
    server.script = [(status, {"retry-after": "7"}), (status, {"retry-after": "999"}), (status, {})]
    pauses: list[float] = []
    (reply,) = provider(server, pauses).answer([request("one")])
    assert reply.raw is not None
    assert pauses[:2] == [7, 120]
    assert 4 <= pauses[2] <= 6
    assert len(server.bodies) == 4


def test_a_server_that_stays_busy_leaves_the_request_open(server: Server) -> None:
    server.script = [(529, {})] * 3
    (reply,) = provider(server, attempts=3).answer([request("one")])
    assert reply.raw is None
    assert reply.final is False
    assert reply.error is not None
    assert reply.error.startswith("busy (529) 3 times")


@pytest.mark.parametrize("step", [(500, {}), (503, {}), "drop"])
def test_an_unknown_outcome_is_not_repeated(server: Server, step: Any) -> None:
    server.script = [step]
    (reply,) = provider(server).answer([request("one")])
    assert len(server.bodies) == 1
    assert reply.raw is None
    assert reply.final is False
    assert reply.error is not None
    assert reply.error.startswith("outcome unknown, it may have been billed")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_fails_alone(server: Server, status: int) -> None:
    server.script = [(200, {}), (status, {})]
    replies = list(provider(server, concurrency=1).answer([request("one"), request("two"), request("three")]))
    assert [reply.final for reply in replies] == [False, True, False]
    assert replies[2].raw is not None


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refused_key_or_model_stops_everything(server: Server, status: int) -> None:
    server.script = [(status, {})]
    with pytest.raises(ProviderFailed) as caught:
        list(provider(server).answer([request("one"), request("two")]))
    assert len(server.bodies) == 1
    assert KEY not in str(caught.value)


def test_an_unreachable_server_is_tried_again_and_then_named() -> None:
    pauses: list[float] = []
    unreachable = AnthropicProvider("http://127.0.0.1:9", attempts=3, sleep=pauses.append)
    with pytest.raises(ProviderFailed, match="cannot be reached"):
        list(unreachable.answer([request("one")]))
    assert len(pauses) == 2


@pytest.mark.slow
def test_a_server_that_takes_the_first_request_and_is_silent_gets_no_other(server: Server) -> None:
    server.bodies.append({})  # from the second on the server holds its replies back
    server.hold = threading.Event()
    silent = provider(server, timeout_s=0.5)
    replies = silent.answer([request("one"), request("two"), request("three")])
    first = next(replies)
    assert (first.raw, first.unknown) == (None, True)
    with pytest.raises(ProviderFailed, match="took a request and did not answer it within"):
        next(replies)
    server.hold.set()
    assert len(server.bodies) == 2


def test_replies_under_way_when_the_caller_gives_up_are_kept(server: Server) -> None:
    asked = [request(str(i)) for i in range(10)]
    asking = provider(server, concurrency=3)
    with closing(asking.answer(asked)) as replies:
        seen = [next(replies), next(replies)]
    late = asking.late()
    assert len(seen) + len(late) == len(server.bodies) < 10
    assert len({reply.request_id for reply in (*seen, *late)}) == len(server.bodies)
    assert asking.late() == []


def test_redirects_are_not_followed_with_the_key(server: Server) -> None:
    server.script = [(307, {"location": server.url + "/elsewhere"})]
    (reply,) = provider(server).answer([request("one")])
    assert reply.raw is None
    assert len(server.bodies) == 1


def test_without_a_key_anthropic_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(Prerequisite, match="ANTHROPIC_API_KEY"):
        AnthropicProvider()


def test_a_server_of_ones_own_needs_no_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", " ")
    (reply,) = provider(server).answer([request("one")])
    assert reply.raw is not None


@pytest.mark.slow
def test_the_key_shows_neither_in_settings_nor_in_replies(server: Server) -> None:
    server.script = [(400, {})]
    server.text = f"your key is {KEY}"
    replies = list(provider(server).answer([request("one"), request("two")]))
    assert KEY not in repr(Credentials())
    assert KEY not in repr(replies)
    assert KEY not in repr(provider(server).__dict__)
