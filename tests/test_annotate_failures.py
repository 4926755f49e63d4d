"""What a server does in place of an answer: it counts as none, is said and asked again, and nothing is lost by it."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from anthropic_server import KEY, AnthropicServer
from soak import every
from test_flows_sending import CARD

from annotate.cards.cards import load_card
from annotate.costs import Tokens, price
from annotate.ledger.ledger import MOST_ATTEMPTS
from annotate.prompting.requests import DEFAULT_MAX_TOKENS, MOST_UNSTREAMED_TOKENS, AnnotateConfig
from annotate.runs.plan import plan_run
from flows import cli
from flows.reporting.status import draw, look
from storage.store import Store

Message = dict[str, Any]


class Desk:
    """A store with four episodes, a card, a server, and the command line in this process."""

    def __init__(self, store: Store, server: AnthropicServer, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.server, self.capsys, self.monkeypatch = store, server, capsys, monkeypatch
        self.card = store.root.parent / "card.toml"
        self.card.write_text(CARD)
        self.said = ""

    def call(self, *words: str) -> int:
        """The exit code of a command; what it said on standard error is in `said`."""
        self.monkeypatch.setattr(sys, "argv", ["trajnote", *words, "--store", str(self.store.root), "--json"])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        printed = self.capsys.readouterr()
        self.said = printed.err.strip().splitlines()[-1] if printed.err.strip() else ""
        self.out = json.loads(printed.out.splitlines()[-1]) if printed.out.strip() else {}
        return int(leaving.value.code or 0)

    def ask(self, *more: str, url: str | None = None, model: str = "qwen3") -> int:
        asked = ["--card", str(self.card), "--model", model, "--labels", "1", "--rows", "4"]
        server = [] if "file" in more else ["--base-url", url or self.server.url]
        return self.call("annotate", "run", *asked, *server, *more)

    def count(self, what: str, table: str) -> dict[Any, int]:
        return dict(self.rows(f"SELECT {what}, count(*) FROM {table} GROUP BY 1 ORDER BY 1"))

    def rows(self, sql: str) -> list[Any]:
        with self.store.catalog.read() as con:
            return con.execute(sql).fetchall()


@pytest.fixture
def desk(
    toy_store: Callable[[Sequence[int]], Store], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    server = AnthropicServer().start()
    yield Desk(toy_store([4] * 4), server, capsys, monkeypatch)
    server.stop()


def with_text(change: Callable[[str], str], **fields: Any) -> Callable[[Message], Message]:
    def shape(message: Message) -> Message:
        text = change(message["content"][0]["text"])
        return message | {"content": [{"type": "text", "text": text}]} | fields

    return shape


def with_blocks(*blocks: Message, **fields: Any) -> Callable[[Message], Message]:
    return lambda message: message | {"content": list(blocks)} | fields


THINKING = {"type": "thinking", "thinking": 'hm {"labels": []}', "signature": ""}
NO_ANSWERS: dict[str, tuple[Callable[[Message], object], str, int]] = {
    "an error": (
        lambda _: {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}},
        "error_reply: overloaded_error: busy",
        2,
    ),
    "a page of a proxy": (lambda _: b"<html>502 Bad Gateway</html>", "not_a_message", 2),
    "nothing": (lambda _: b"", "not_a_message", 2),
    "a list": (lambda _: [], "not_a_message", 2),
    "thinking only": (with_blocks(THINKING), "no_text", 2),
    "no content": (with_blocks(), "no_text", 2),
    "another tool": (with_blocks({"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}), "no_json", 2),
    "prose": (with_text(lambda _: "I cannot say."), "no_json", 2),
    "single quotes": (with_text(lambda text: text.replace('"', "'")), "no_json", 2),
    "a pause": (with_text(lambda _: "Let me", stop_reason="pause_turn"), "pause_turn", 2),
    "cut": (with_text(lambda text: text[: len(text) * 2 // 3]), "cut_json", 2),
    "cut by the cap": (with_text(lambda text: text[:-9], stop_reason="max_tokens"), "max_tokens", 1),
    "empty by the cap": (with_blocks(stop_reason="max_tokens"), "max_tokens", 1),
    "a full context": (with_blocks(stop_reason="model_context_window_exceeded"), "context_window", 1),
    "a refusal": (with_text(lambda text: text, stop_reason="refusal"), "refusal", 1),
}


def by_request(shapes: Sequence[Callable[[Message], object]]) -> Callable[[Message], object]:
    """A shape for each request, the same one whenever it is asked."""
    given: dict[str, Callable[[Message], object]] = {}
    turn = threading.Lock()

    def shape(message: Message) -> object:
        with turn:
            given.setdefault(message["id"], shapes[min(len(given), len(shapes) - 1)])
        return given[message["id"]](message)

    return shape


@pytest.mark.parametrize("names", every([tuple(NO_ANSWERS)[at::4] for at in range(4)], 2), ids=", ".join)
@pytest.mark.slow
def test_what_holds_no_answer_is_kept_said_and_asked_again(desk: Desk, names: tuple[str, ...]) -> None:
    shapes, reasons, times = zip(*(NO_ANSWERS[name] for name in names), strict=True)
    desk.server.shape = by_request(shapes)
    limit = ("--limit", str(len(names)))
    assert desk.ask(*limit) == 6
    assert f"{len(names)} of {len(names)} requests have no answer: " in desk.said
    assert any(f"{reasons.count(reason)} times {reason}" in desk.said for reason in reasons)
    expected = (0, 0, len(names), False)
    assert (desk.out["labels"], desk.out["answered"], desk.out["pending"], desk.out["done"]) == expected
    assert len(desk.server.bodies) == sum(times)  # a second time in the same command, where that may help
    assert desk.count("state", "requests") == {"pending": len(names)}
    assert desk.count("state", "annotation_runs") == {"failed": 1}
    assert desk.count("state", "batches").keys() == {"ingested"}
    problems = [problem for (problem,) in desk.rows("SELECT problem FROM responses ORDER BY problem")]
    said = sorted(reason for reason, often in zip(reasons, times, strict=True) for _ in range(often))
    assert all(problem.startswith(reason) for problem, reason in zip(problems, said, strict=True)), problems
    desk.server.shape = lambda message: message
    assert desk.ask(*limit) == 0
    assert (desk.out["labels"], desk.out["answered"], desk.out["done"]) == (len(names), len(names), True)
    assert desk.count("state", "annotation_runs") == {"done": 1}


ANSWERS: dict[str, Callable[[Message], object]] = {
    "a tool": lambda message: (
        message
        | {
            "content": [
                {"type": "tool_use", "id": "t", "name": "f", "input": json.loads(message["content"][0]["text"])}
            ]
        }
        | {"stop_reason": "tool_use"}
    ),
    "thinking in the text": with_text(lambda text: f'<think>\nIt could be {{"labels": []}}.\n</think>\n\n{text}'),
    "a fence": with_text(lambda text: f"Here you go:\n```json\n{text}\n```\nHope it helps!"),
    "a draft first": with_text(lambda text: f"Draft: {text}\n\nFinal answer: {text}"),
    "a trailing comma": with_text(lambda text: text.replace("]}", ",]}")),
    "another name of an unpriced model": lambda message: message | {"model": "qwen3:8b-q4_K_M"},
    "no name": lambda message: {key: value for key, value in message.items() if key != "model"},
    "no usage": lambda message: message | {"usage": None},
    "usage of nothing": lambda message: message | {"usage": {"input_tokens": 0, "output_tokens": 0}},
}


@pytest.mark.slow
def test_an_answer_in_an_unusual_form_is_read(desk: Desk) -> None:
    desk.server.shape = by_request(list(ANSWERS.values()))
    assert desk.ask("--samples", "3") == 0
    assert (desk.out["labels"], desk.out["done"], len(desk.server.bodies)) == (12, True, 12)


REFUSALS = [
    (400, "thinking is not supported by this model", 4, "refused (400): thinking is not supported by this model"),
    (400, "stream must be true", 4, "Requests are sent without streaming"),
    (413, "too large", 4, "Ask for less in each request: fewer --rows, --labels"),
    (401, f"invalid x-api-key {KEY}", 1, "The server refused: invalid x-api-key ***."),
    (500, "oops", 4, "4 times outcome unknown, it may have been billed: oops"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("status", "sentence", "sent", "said"), every(REFUSALS, 3))
def test_a_server_that_refuses_everything_is_quoted(
    desk: Desk, status: int, sentence: str, sent: int, said: str
) -> None:
    desk.server.refusal = (status, {"type": "error", "error": {"type": "some_error", "message": sentence}})
    assert desk.ask() == 6
    assert said in desk.said
    assert KEY not in desk.said
    assert len(desk.server.bodies) == sent
    assert desk.rows("SELECT count(*) FROM requests WHERE state = 'in_batch'") == [(0,)]
    assert desk.count("state", "annotation_runs") == {"failed": 1}
    assert "failed: " in shown(desk.store)
    desk.server.refusal = None
    assert desk.ask() == 0
    assert desk.out["labels"] == 4


def shown(store: Store) -> str:
    """What `trajnote watch` draws, as plain text."""
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(draw(look(store)))
    return console.export_text()


@pytest.mark.slow
def test_what_was_answered_beside_refusals_is_kept(desk: Desk) -> None:
    desk.server.plan_fault("message", "", "error_400", "", "error_400")
    assert desk.ask("--concurrency", "1") == 6
    assert (desk.out["labels"], desk.out["answered"], desk.out["failed"]) == (2, 2, 2)
    assert "2 of 4 requests have no answer: 2 times refused (400)" in desk.said
    assert desk.ask() == 0
    assert (desk.out["labels"], desk.out["reused"], desk.out["answered"]) == (4, 2, 2)


@pytest.mark.parametrize("kind", every(["refuses connections", "unknown host", "not HTTP", "silent", "not TLS"], 3))
@pytest.mark.slow
def test_a_dead_server_is_named_in_seconds_and_its_run_is_closed(
    desk: Desk, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotate.providers.anthropic.QUICK_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if kind == "not HTTP":
            threading.Thread(target=_greet, args=(listening,), daemon=True).start()
        url = {
            "refuses connections": "http://127.0.0.1:9",
            "unknown host": "http://nowhere.invalid",
            "not TLS": desk.server.url.replace("http", "https"),
        }.get(kind, f"http://127.0.0.1:{port}")
        started = time.monotonic()
        assert desk.ask(url=url) == 6
        assert time.monotonic() - started < 60  # not requests times attempts times timeouts
    assert f"The server {url}" in desk.said
    assert "cannot be reached" in desk.said
    assert desk.count("state", "requests") == {"pending": 4}
    assert desk.count("state", "annotation_runs") == {"failed": 1}
    assert desk.rows("SELECT under_way_usd + lost_usd FROM spending") == [(0.0,)]
    assert desk.ask() == 0


def _greet(listening: socket.socket) -> None:
    while True:
        try:
            connection, _ = listening.accept()
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.close()
        except OSError:
            return


@pytest.mark.slow
def test_a_done_run_needs_no_server(desk: Desk) -> None:
    assert desk.ask() == 0
    assert desk.ask(url="http://127.0.0.1:9") == 0
    assert desk.out["was_done"] is True


@pytest.mark.slow
def test_many_requests_in_vain_end_the_command(desk: Desk) -> None:
    desk.server.shape = lambda _: b"<html>"
    assert desk.ask("--samples", "20", "--concurrency", "1") == 6
    assert "no further request is sent: 10 requests in a row brought no answer" in desk.said
    assert len(desk.server.bodies) == 10


@pytest.mark.slow
def test_a_request_that_is_never_answered_fails_and_retry_asks_it_anew(desk: Desk) -> None:
    desk.server.shape = with_text(lambda _: "no")
    for _ in range(MOST_ATTEMPTS):
        assert desk.ask() == 6
    assert desk.count("state", "requests") == {"failed": 4}
    assert len(desk.server.bodies) == 4 * MOST_ATTEMPTS
    assert "`trajnote annotate retry` asks again those" in desk.said
    desk.server.shape = lambda message: message
    assert desk.call("annotate", "retry", "--base-url", desk.server.url) == 0
    assert (desk.out["labels"], desk.out["done"]) == (4, True)


@pytest.mark.slow
def test_retry_asks_only_those_whose_reply_left_no_label(desk: Desk) -> None:
    texts = iter([None, '{"labels": []}', '{"labels": [{"step": 99}]}', None])
    desk.server.shape = with_text(lambda text: next(texts) or text)
    assert desk.ask("--concurrency", "1") == 0
    assert (desk.out["labels"], desk.out["rejections"], desk.out["done"]) == (2, 1, True)
    desk.server.shape = lambda message: message
    assert desk.call("annotate", "retry", desk.out["run_id"][:6], "--base-url", desk.server.url) == 0
    assert (desk.out["labels"], desk.out["rejections"], desk.out["asked"], desk.out["done"]) == (4, 1, 2, True)
    assert desk.rows("SELECT count(*) FROM responses") == [(6,)]
    assert desk.call("annotate", "retry", "--base-url", desk.server.url) == 0
    assert len(desk.server.bodies) == 6


@pytest.mark.slow
def test_results_of_a_batch_that_hold_no_answer_go_into_the_next_one(desk: Desk) -> None:
    blank = iter([True, True, False, False])
    desk.server.shape = lambda message: with_blocks()(message) if next(blank, False) else message
    assert desk.ask("--provider", "batch", model="claude-haiku-4-5") == 0
    assert (desk.out["labels"], desk.out["done"]) == (4, True)
    assert [len(made.custom_ids) for made in desk.server.batches.values()] == [4, 2]


@pytest.mark.slow
def test_batches_without_answers_end(desk: Desk) -> None:
    desk.server.shape = with_blocks()
    assert desk.ask("--provider", "batch", model="claude-haiku-4-5") == 6
    assert "4 of 4 requests have no answer: 4 times no_text" in desk.said
    assert len(desk.server.batches) == MOST_ATTEMPTS
    desk.server.shape = lambda message: message
    assert desk.call("annotate", "retry", "--provider", "batch", "--base-url", desk.server.url) == 0
    assert desk.out["labels"] == 4


@pytest.mark.slow
def test_a_person_who_corrects_an_answers_file_is_heard(desk: Desk, tmp_path: Path) -> None:
    good = desk.server.text({})
    other = json.dumps(json.loads(good.replace('"right"', '"left"')))
    file = tmp_path / "answers.jsonl"
    requests = tmp_path / "requests.jsonl"
    assert desk.ask("--provider", "file", "--export", str(requests)) == 0
    ids = [json.loads(line)["custom_id"] for line in requests.read_text().splitlines()]

    def take(*texts: str) -> int:
        lines = [json.dumps({"request_id": key, "text": text}) for key, text in zip(ids, texts, strict=True)]
        file.write_text("\n".join(lines))
        return desk.ask("--provider", "file", "--answers", str(file))

    assert take(good, "I forgot", good, other) == 6
    assert (desk.out["labels"], desk.out["pending"]) == (3, 1)
    assert take(good, "I forgot", good, other) == 6  # equal lines change nothing
    assert desk.rows("SELECT count(*) FROM responses") == [(4,)]
    assert take(good, good, other, "no idea") == 0  # a correction that holds no answer leaves the earlier one
    assert (desk.out["labels"], desk.out["done"]) == (4, True)
    assert desk.count("suggested_label", "annotations") == {"left": 2, "right": 2}
    assert desk.rows("SELECT count(*) FROM responses") == [(7,)]
    assert take(good, good, good, "no idea") == 0  # back to what it said first
    assert desk.count("suggested_label", "annotations") == {"left": 1, "right": 3}
    assert desk.rows("SELECT count(DISTINCT annotation_id), count(*) FROM annotations") == [(4, 4)]
    assert take(good, good, good, "no idea") == 0
    assert desk.out["was_done"] is True


@pytest.mark.slow
def test_the_cap_on_a_reply_is_an_option_that_asks_nothing_twice(desk: Desk) -> None:
    assert desk.ask("--limit", "1") == 0
    assert desk.server.bodies[-1]["max_tokens"] == DEFAULT_MAX_TOKENS
    desk.server.limit = 8_000
    assert desk.ask("--limit", "2") == 0
    assert desk.server.bodies[-1]["max_tokens"] == 8_000
    desk.server.limit = 64_000
    assert desk.ask("--limit", "3") == 0
    assert desk.server.bodies[-1]["max_tokens"] == MOST_UNSTREAMED_TOKENS
    assert desk.ask("--max-tokens", "50000") == 0
    assert desk.server.bodies[-1]["max_tokens"] == 50_000
    assert len(desk.server.bodies) == 4
    assert desk.rows("SELECT DISTINCT body->>'max_tokens' FROM requests") == [(str(DEFAULT_MAX_TOKENS),)]


@pytest.mark.slow
def test_a_batch_is_capped_by_the_limit_of_the_model_and_the_budget_knows(desk: Desk) -> None:
    desk.server.limit = 64_000
    most = price("claude-haiku-4-5", Tokens(output=64_000), batch=True) or 0.0
    assert desk.ask("--provider", "batch", "--budget", f"{3 * most}", model="claude-haiku-4-5") == 0
    sizes = [len(made.custom_ids) for made in desk.server.batches.values()]
    assert sizes[0] == 2
    assert {made["params"]["max_tokens"] for body in desk.server.bodies for made in body["requests"]} == {64_000}


EXCESSES: dict[str, tuple[Callable[[Message], Message], str]] = {
    "a dearer model": (
        lambda message: message | {"model": "claude-opus-4-1"},
        "claude-opus-4-1 answered instead of claude-haiku-4-5",
    ),
    "more output": (
        lambda message: message | {"usage": {"input_tokens": 10, "output_tokens": 5_000_000}},
        "a reply was billed with",
    ),
    "more input": (
        lambda message: message | {"usage": {"input_tokens": 50_000_000, "output_tokens": 5}},
        "a reply was billed with",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", every(list(EXCESSES), 2))
def test_a_reply_that_costs_more_than_it_can_ends_the_command(desk: Desk, name: str) -> None:
    desk.server.shape, said = EXCESSES[name]
    assert desk.ask(model="claude-haiku-4-5") == 6
    assert said in desk.said
    assert len(desk.server.bodies) == 1  # the first one goes alone
    assert (desk.out["labels"], desk.out["pending"]) == (1, 3)


@pytest.mark.parametrize("name", every(list(EXCESSES), len(EXCESSES)))
@pytest.mark.slow
def test_a_batch_that_costs_more_than_it_can_is_the_last(desk: Desk, name: str) -> None:
    desk.server.shape, said = EXCESSES[name]
    sizes = ["--batch-size", "1", "--batches", "1"]
    assert desk.ask("--provider", "batch", *sizes, model="claude-haiku-4-5") == 6
    assert said in desk.said
    assert len(desk.server.batches) == 1
    assert "--provider anthropic" in desk.said
    desk.server.shape = lambda message: message
    assert desk.ask("--provider", "batch", *sizes, model="claude-haiku-4-5") == 6
    assert desk.ask("--provider", "anthropic", model="claude-haiku-4-5") == 0  # as the message says
    assert (desk.out["labels"], len(desk.server.batches)) == (4, 1)


@pytest.mark.slow
def test_the_worst_case_of_a_plan_is_that_of_the_longest_reply_it_allows(desk: Desk) -> None:
    plan = ["annotate", "plan", "--card", str(desk.card), "--model", "claude-haiku-4-5"]
    worst: dict[int, float] = {}
    for more in ([], ["--max-tokens", "12000"], ["--max-tokens", "30000"]):
        assert desk.call(*plan, *more) == 0
        worst.setdefault(desk.out["longest_reply"], desk.out["worst_usd"])
        assert worst[desk.out["longest_reply"]] == desk.out["worst_usd"]
    dearer = price("claude-haiku-4-5", Tokens(output=4 * 18_000)) or 0.0
    assert list(worst) == [DEFAULT_MAX_TOKENS, 30_000]
    assert worst[30_000] - worst[DEFAULT_MAX_TOKENS] == pytest.approx(dearer)


@pytest.mark.slow
def test_a_run_that_waits_for_lines_of_a_file_is_not_said_to_need_the_same_command_again(
    run: Callable[[list[str]], str], desk: Desk
) -> None:
    asked = ["annotate", "run", "--card", str(desk.card), "--model", "m", "--labels", "1", "--rows", "4"]
    asked += ["--provider", "file", "--store", str(desk.store.root)]
    requests, answers = desk.store.root.parent / "requests.jsonl", desk.store.root.parent / "answers.jsonl"
    run([*asked, "--export", str(requests)])
    ids = [json.loads(line)["custom_id"] for line in requests.read_text().splitlines()]
    reply = {"assessment": "fine", "labels": []}
    answers.write_text(json.dumps({"request_id": ids[0], "reply": reply}) + "\n")
    said = run([*asked, "--answers", str(answers)])
    assert "is open\n" in said
    assert "again" not in said


def test_the_episodes_that_fail_are_selected_on_the_command_line(desk: Desk) -> None:
    path = desk.store.root.parent / "requests.jsonl"
    asked = {}
    for method in ("first", "failing"):
        assert desk.ask("--provider", "file", "--limit", "1", "--choose", method, "--export", str(path)) == 0
        asked[method] = [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]
    returns = desk.rows("SELECT episode_id FROM episodes ORDER BY return_ LIMIT 1")
    config = AnnotateConfig(model="qwen3", windows=1, rows=4)
    plan = plan_run(desk.store, "d1", load_card(desk.card), config)
    worst = [q.request.request_id for q in plan.questions if (q.episode_id,) == returns[0]]
    assert returns[0] != (0,)
    assert asked["failing"] == worst != asked["first"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "is_known"),
    [
        ("claude-haiku-4-5", True),
        ("claude-haiku-4-5-20251001", True),
        ("claude-haiku-4-5@20251001", True),
        ("claude-3-5-haiku-latest", True),
        ("claude-sonnet-4-20250514", True),
        ("claude-opus-4-1-20250805", True),
        ("claude-opus-9", False),
        ("claude-opus-4-10", False),
        ("claude-opus-4-6-fast", False),
        ("claude-haiku-4-5-mycompany", False),
        ("claude-haiku-4-5x", False),
        ("claude-haiku-4-5-2025", False),
        ("qwen3", False),
    ],
)
def test_only_a_models_own_names_have_its_price(name: str, is_known: bool) -> None:
    assert (price(name, Tokens(input=1000)) is not None) == is_known


def test_a_budget_is_refused_for_a_name_that_only_looks_like_a_models(desk: Desk) -> None:
    assert desk.ask("--budget", "5", model="claude-haiku-4-5-mycompany") == 2
    assert "has no known list price" in desk.said
    assert desk.server.bodies == []
