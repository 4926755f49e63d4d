"""A Prefect server that does not answer as Prefect does is one line, soon, and no word of its credentials."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from soak import every

from flows.runtime.prefect_server import quieten_prefect
from storage.errors import RemoteFailed

quieten_prefect()

from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402

from flows.runtime.prefect_server import served, start_server  # noqa: E402


@contextmanager
def answering(status: int | None, body: str = "", kind: str = "application/json") -> Generator[str]:
    """A server that answers everything alike; with no status it never answers."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if status is None:
                over.wait(60)
                return
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST  # noqa: N815 -- the name is http.server's

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://user:s3cret@127.0.0.1:{server.server_port}/api"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    every(
        [
            (None, "", "", "does not answer within 0.2 s"),
            (500, "boom", "text/plain", "answers with 500"),
            (401, "{}", "application/json", "answers with 401"),
            (404, "<html>not here</html>", "text/html", "answers with 404"),
            (200, "<html>welcome</html>", "text/html", "does not answer as Prefect's API does"),
            (200, '{"detail": "other"}', "application/json", "does not answer as Prefect's API does"),
        ],
        3,
    ),
)
def test_a_server_that_answers_otherwise_is_one_line(status: int | None, body: str, kind: str, said: str) -> None:
    with answering(status, body, kind) as url, temporary_settings({PREFECT_API_URL: url}):
        with pytest.raises(RemoteFailed) as refused:
            start_server(answer_s=0.2)
        assert start_server(needed=False) is None
    assert str(refused.value).startswith("The Prefect server at http://127.0.0.1:")
    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert "unset PREFECT_API_URL" in refused.value.hint


@pytest.mark.slow
def test_nobody_at_the_address_is_one_line_of_a_command_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows import cli

    settings = tmp_path / "trajnote.toml"
    settings.write_text('[deployments.a]\ndatasets = ["x"]\ncron = "* * * * *"\n')
    monkeypatch.chdir(tmp_path)
    pipeline = ["pipeline", "--env", "CartPole-v1", "--policy", "random"]
    for words in (["serve", "--settings", str(settings)], pipeline):
        monkeypatch.setattr("sys.argv", ["trajnote", *words])
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(SystemExit) as left:
            cli.main()
        (line,) = capsys.readouterr().err.splitlines()
        assert left.value.code == 9
        assert line.startswith(
            "error: The Prefect server at http://127.0.0.1:9/api, which PREFECT_API_URL names, cannot"
        )
    assert list(tmp_path.iterdir()) == [settings]


def test_a_server_that_stops_answering_meanwhile_is_one_line_too() -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(RemoteFailed, match=r"cannot be reached \(ConnectError\)"),
        served(None),
    ):
        raise httpx.ConnectError("All connection attempts failed")
