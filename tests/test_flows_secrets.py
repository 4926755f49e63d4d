"""The key stays secret: no output, log, error, file of the store or page of the catalog has it, whatever goes wrong."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import zstandard
from soak import SOAK, every
from store_state import lend

from annotate.prompting.requests import Request
from annotate.providers.anthropic import AnthropicProvider
from annotate.providers.batch import BatchServer
from flows.cli import main
from flows.runtime.prefect_server import Server
from storage.datasets import adopt_dataset
from storage.ledger.runs import read_frames
from storage.store import Store

KEY = "sk-ant-api03-S3cr3t-0123456789_abcdefghijkl"
EXAMPLE = Path(__file__).parents[1] / "examples" / "cartpole"
STATUSES = (400, 401, 403, 404, 409, 413, 429, 500, 529) if SOAK else (401, 500)
SYNCHRONOUS = (*map(str, STATUSES), "plain", "broken", "reply", "refusal", "redirect", "drop", "error_200", "headers")
BATCHED = ("results", "errored", "cut_results", "401", "404", "429", "redirect", "500", "broken", "drop")


class EchoServer:
    """Answers as its `behaviour` says, and repeats the caller's key wherever there is room for text."""

    def __init__(self) -> None:
        self.behaviour = "reply"
        self.keys: list[str] = []
        self.custom_ids: list[str] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def message(self) -> dict[str, Any]:
        """A reply with labels about step 0 and about a step that does not exist."""
        label = {
            "rationale": f"the key is {KEY}",
            "suggested_action": "push_left",
            "implicit_reward": 0.5,
            "confidence": 0.5,
            "critical": True,
        }
        labels = [label | {"step": 0}, label | {"step": 10**6}, label | {"step": 0, "suggested_action": KEY}]
        return {
            "id": f"msg_{KEY}",
            "type": "message",
            "role": "assistant",
            "model": f"model-{KEY}",
            "content": [
                {"type": "thinking", "thinking": KEY, "signature": KEY},
                {"type": "text", "text": json.dumps({"assessment": KEY, "labels": labels})},
            ],
            "stop_reason": "refusal" if self.behaviour == "refusal" else "end_turn",
            "usage": {"input_tokens": 5, "output_tokens": 5},
        }

    def batch(self) -> dict[str, Any]:
        """A batch that has ended already."""
        counts = {"processing": 0, "succeeded": len(self.custom_ids), "errored": 0, "canceled": 0, "expired": 0}
        return {
            "id": "msgbatch_1",
            "type": "message_batch",
            "processing_status": "ended",
            "request_counts": counts,
            "created_at": "2099-01-01T00:00:00Z",
            "ended_at": "2099-01-01T00:00:01Z",
            "expires_at": "2099-01-02T00:00:00Z",
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"http://elsewhere.invalid/{KEY}",
        }

    def results(self) -> str:
        """One line for each request; the last one is broken off where the behaviour says so."""
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": f"no: {KEY}"}}
        result: dict[str, Any] = {"type": "succeeded", "message": self.message()}
        if self.behaviour == "errored":
            result = {"type": "errored", "error": error}
        text = "\n".join(json.dumps({"custom_id": name, "result": result}) for name in self.custom_ids) + "\n"
        return text[:-30] if self.behaviour == "cut_results" else text


def _handler(server: EchoServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.custom_ids = [each["custom_id"] for each in body.get("requests", [])] or server.custom_ids
            self._answer(server.batch() if "batches" in self.path else server.message())

        def do_GET(self) -> None:
            if self.path.endswith("/results"):
                self._send(200, server.results())
            elif "limit=" in self.path:
                self._answer({"data": [], "has_more": False, "first_id": None, "last_id": None})
            else:
                self._answer(server.batch())

        def _answer(self, good: dict[str, Any]) -> None:
            server.keys.append(f"{self.headers.get('x-api-key')} {self.headers.get('authorization')} {self.path}")
            error = json.dumps(
                {"type": "error", "error": {"type": "authentication_error", "message": f"bad key {KEY}"}}
            )
            if server.behaviour == "drop":
                self.wfile.write(f"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{KEY}".encode())
                self.connection.close()
                return
            answers = {
                "plain": (500, f"x-api-key={KEY}"),
                "broken": (200, json.dumps(good)[:-20]),
                "error_200": (200, error),
                "redirect": (302, KEY),
            }
            usual = (int(server.behaviour), error) if server.behaviour.isdigit() else (200, json.dumps(good))
            status, text = answers.get(server.behaviour, usual)
            self._send(status, text, {"location": f"{server.url}/elsewhere/{KEY}"} if status == 302 else None)

        def _send(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            told = {"content-type": "application/json", "request-id": KEY, "x-echo": KEY, "retry-after": "0"}
            for name, value in {**told, "content-length": str(len(text.encode())), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

    return Handler


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    made = EchoServer()
    yield made
    made.http.shutdown()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the CartPole example."""
    made = Store.create(tmp_path_factory.mktemp("template") / "store")
    adopt_dataset(made, EXAMPLE / "rollouts")
    return made.root


@pytest.fixture
def poles(template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that store, the key in the environment, and no waiting between attempts."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")
    for asker in (AnthropicProvider, BatchServer):
        defaults = asker.__init__.__kwdefaults__
        monkeypatch.setitem(defaults, "sleep", lambda seconds: None)  # pyright: ignore[reportArgumentType]
        monkeypatch.setitem(defaults, "attempts", 2)  # pyright: ignore[reportArgumentType]
    return lend(template)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command as a terminal does; only its own errors may end it."""
    monkeypatch.setattr(sys, "argv", ["trajnote", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


def forms_of(secret: str) -> list[bytes]:
    """The secret as it may be hidden in a file."""
    plain = secret.encode()
    return [
        plain,
        base64.b64encode(plain)[:-4],
        quote(secret).encode(),
        secret.encode("utf-16-le"),
        plain.hex().encode(),
    ]


def leaks_of(root: Path) -> list[str]:
    """Where in a folder the key is: in files, in packed lines, in rows of the catalog."""
    found = [str(path) for path in root.rglob("*") if path.is_file() and _holds(path.read_bytes())]
    for path in root.rglob("*.zst"):
        found += [f"{path} unpacked" for line in read_frames(path).lines if line is not None and _holds(line)]
    if (root / "catalog.duckdb").exists():
        found += [f"table {name}" for name, text in _dump(Store.open(root)) if _holds(text.encode())]
    return found


def _holds(content: bytes) -> bool:
    return any(form in content for form in forms_of(KEY))


def _dump(store: Store) -> Iterator[tuple[str, str]]:
    with store.catalog.read() as con:
        for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall():
            yield name, str(con.execute(f'SELECT * FROM "{name}"').fetchall())


def check_printed(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> str:
    """No leak in what was printed and logged since the last check; returns what was printed."""
    printed = "".join(capfd.readouterr())
    for form in forms_of(KEY):
        assert form.decode("latin-1") not in printed
        assert form.decode("latin-1") not in caplog.text
    assert "Traceback" not in printed
    return printed


def check_secret(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, root: Path) -> str:
    """No leak anywhere; returns what was printed."""
    printed = check_printed(capfd, caplog)
    assert leaks_of(root) == []
    return printed


@pytest.mark.slow
def test_single_calls_that_go_wrong_keep_the_key(
    server: EchoServer,
    poles: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    for rows, behaviour in enumerate(SYNCHRONOUS, start=24):  # other rows are other requests, so each of them is asked
        server.behaviour, server.keys = behaviour, []
        place = ("--store", str(poles), "--base-url", server.url)
        code = command(monkeypatch, "annotate", "run", *place, "--limit", "2", "--rows", str(rows))
        assert any(KEY in sent for sent in server.keys), behaviour  # it was really sent there
        assert not any("/elsewhere" in sent for sent in server.keys)
        printed = check_printed(capfd, caplog)
        assert code == (0 if behaviour in ("reply", "headers") else 6), printed
    assert leaks_of(poles) == []


@pytest.mark.slow
def test_batches_that_go_wrong_keep_the_key(
    server: EchoServer,
    poles: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    place = ("--store", str(poles), "--base-url", server.url)
    for rows, behaviour in enumerate(BATCHED, start=24):
        server.behaviour, server.keys = behaviour, []
        command(monkeypatch, "annotate", "submit", *place, "--limit", "2", "--rows", str(rows))
        command(monkeypatch, "annotate", "ingest", *place)
        assert any(KEY in sent for sent in server.keys), behaviour
        check_printed(capfd, caplog)
    assert leaks_of(poles) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "base_url",
    [
        "http://127.0.0.1:1",
        "not a url",
        "ftp://127.0.0.1",
    ],
)
def test_a_server_that_is_not_there_keeps_the_key(
    base_url: str,
    poles: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    for verb in ("run", "submit"):
        command(monkeypatch, "annotate", verb, "--store", str(poles), "--base-url", base_url, "--limit", "1")
    check_secret(capfd, caplog, poles)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoiled", every([f"{KEY}\n{KEY}", f"{KEY}\u00fc", f"{KEY}\r\nx-other: 1", f"  {KEY}  ", f"{KEY}\x07"], 2)
)
def test_a_key_that_no_header_can_hold_is_not_printed(
    spoiled: str,
    server: EchoServer,
    poles: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("ANTHROPIC_API_KEY", spoiled)
    server.behaviour = "401"
    for verb in ("run", "submit"):
        command(monkeypatch, "annotate", verb, "--store", str(poles), "--base-url", server.url, "--limit", "1")
    check_secret(capfd, caplog, poles)


@pytest.mark.slow
@pytest.mark.parametrize("place", [f"somebody:{KEY}@127.0.0.1:9", f"127.0.0.1:9/{KEY}"])
def test_a_url_with_a_secret_in_it_is_refused_without_repeating_it(
    place: str,
    poles: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for verb in ("run", "submit"):
        code = command(monkeypatch, "annotate", verb, "--store", str(poles), "--base-url", f"http://{place}")
        assert code == 2
    printed = check_secret(capfd, caplog, poles)
    assert printed.count("would be kept with the answers") == 2


@pytest.mark.parametrize("behaviour", ["401", "500", "413", "broken", "drop"])
def test_the_traceback_of_a_failure_is_without_the_key(behaviour: str, server: EchoServer, poles: Path) -> None:
    server.behaviour = behaviour
    request = Request("r_1", "mark", {"model": "m", "max_tokens": 9, "system": "s", "messages": []})
    single, batches = AnthropicProvider(server.url), BatchServer(server.url)
    calls = (
        lambda: list(single.answer([request])),
        lambda: batches.create([request]),
        lambda: batches.retrieve("msgbatch_1"),
        lambda: batches.newer_than(datetime(2020, 1, 1, tzinfo=UTC)),
    )
    failures = 0
    for call in calls:
        try:
            told = str(call())
        except Exception as error:
            told = "".join(traceback.format_exception(error))
            failures += 1
        assert not _holds(told.encode())
    assert failures >= 2


@pytest.mark.slow
def test_a_flow_that_fails_leaves_no_key_with_prefect(
    server: EchoServer, poles: Path, tmp_path: Path, prefect_server: tuple[Server, Path]
) -> None:
    server.behaviour = "401"
    reported_to, there = prefect_server
    here = tmp_path / "prefect"
    script = (
        "from pathlib import Path; from flows.deployment.prefect_flows import label_flow\n"
        "from flows.labelling.annotation import LabelConfig\n"
        f"label_flow('cartpole-v1-f83dbaf4abde', LabelConfig(base_url={server.url!r}, limit=1), Path({str(poles)!r}))"
    )
    settings = {
        "PREFECT_HOME": str(here),
        "PREFECT_API_URL": reported_to.wait(),
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "ANTHROPIC_LOG": "info",
        "DO_NOT_TRACK": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode != 0
    assert "The server refused" in ended.stderr
    assert [line for line in (ended.stdout + ended.stderr).splitlines() if _holds(line.encode())] == []
    assert any(b"The server refused" in path.read_bytes() for path in there.glob("prefect.db*"))
    assert leaks_of(there) + leaks_of(here) == []
    assert leaks_of(poles) == []


@pytest.mark.slow
def test_the_search_finds_a_key_that_was_leaked(template: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(template, tmp_path / "store"))
    assert leaks_of(root) == []
    (root / "responses" / "a_1").mkdir(parents=True)
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(f'{{"raw": "{KEY}"}}\n'.encode())
    (root / "responses" / "a_1" / "00000.jsonl.zst").write_bytes(packed)
    with Store.open(root).catalog.write() as con:
        con.execute("INSERT INTO annotation_runs (run_id, dataset_id, provider) VALUES ('a_1', 'd', ?)", [KEY])
    assert {leak.rsplit("/")[-1] for leak in leaks_of(root)} >= {"00000.jsonl.zst unpacked", "table annotation_runs"}
