"""A loopback server that speaks Messages and Message Batches and keeps its own books of what it made, billed and sent.

It fails on request: by name, in order (`plan_fault`), or by chance with a seed (`chances`). A program of its own too:

    python tests/anthropic_server.py SEED SKEW_S CHANCE LAG_S    # prints its port; GET /books shows the books
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "sk-test-0123456789abcdef"
FAULTS = {
    "create": (
        "lost_reply",
        "error_500_after",
        "error_500_before",
        "reset_before",
        "error_429",
        "error_529_before",
        "no_id",
        "null_id",
        "html",
    ),
    "list": ("error_429", "error_529", "reset"),
    "retrieve": ("error_404", "error_500", "reset"),
    "results": ("error_404", "error_500", "cut", "cut_clean", "contradict", "foreign"),
    "message": ("error_429", "error_529", "lost_reply", "error_400"),
}
"""What can go wrong where; `after`, `lost_reply` and what has no name come after the work was done and billed."""
WITHOUT_NAME = ("no_id", "null_id", "html")


@dataclass
class MadeBatch:
    """A batch as the server has it."""

    remote_id: str
    custom_ids: list[str]
    params: dict[str, Any]
    created_at: float  # seconds of the server's clock
    ends_at: float
    outcomes: dict[str, str] = field(default_factory=dict)
    archived: bool = False
    workspace: str = ""
    lag_s: float = 0.0  # how long it is not on the list


def answer_text(step: int = 1) -> str:
    """A valid reply about a toy episode."""
    label = {
        "step": step,
        "rationale": "because",
        "suggested_action": "right",
        "implicit_reward": -0.5,
        "confidence": 0.75,
        "critical": True,
    }
    return json.dumps({"assessment": "fine", "labels": [label]})


class AnthropicServer:
    """The server: the seed of what happens by chance, how far its clock is ahead, how many seconds a batch takes."""

    def __init__(self, seed: int = 0, skew_s: float = 0.0, work_s: tuple[float, float] = (0.0, 0.0)) -> None:
        self.random = random.Random(seed)
        self.skew_s = skew_s
        self.work_s = work_s
        self.chances: dict[str, float] = {}  # kind of call -> chance that something goes wrong
        self.item_chances: dict[str, float] = {}  # errored, expired, canceled -> chance
        self.planned: dict[str, list[str]] = {}
        self.item_plan: list[str] = []  # outcomes of the next items
        self.ignores_after_id = False
        self.results_host: str | None = None
        self.page: int | None = None
        self.workspaces: dict[str, str] = {}  # key -> workspace; a key that is not there has one of its own
        self.organisations: dict[str, str] = {}  # key -> the organisation that the server names
        self.date_ahead_s = 0.0  # how far the Date of a reply is ahead of what batches say
        self.list_lag_s = 0.0  # how long a batch is not on the list
        self.late: tuple[float, float] = (0.0, 0.0)  # chance that one is on the list later still, by so many seconds
        self.broken: set[str] = set()  # batches of which nothing can be known: status 500
        self.output_tokens = 120
        self.shape: Callable[[dict[str, Any]], object] = lambda message: message  # what becomes of a message
        self.refusal: tuple[int, dict[str, Any]] | None = None  # status and body in place of a message
        self.limit: int | None = None  # of the tokens of a reply, as the list of models has it
        self.text: Callable[[dict[str, Any]], str] = lambda _: answer_text()
        self.batches: dict[str, MadeBatch] = {}
        self.billed: Counter[str] = Counter()  # request -> how often it was answered for money
        self.billed_tokens = Counter[str]()
        self.calls: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.bodies: list[Any] = []
        self.lock = threading.RLock()
        self.creating = 0
        self.idle = threading.Condition(self.lock)
        self.http = _Quiet(("127.0.0.1", 0), _Handler)
        self.http.owner = self
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def start(self) -> AnthropicServer:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def now(self) -> float:
        return time.time() + self.skew_s

    def plan_fault(self, call: str, *faults: str) -> None:
        self.planned.setdefault(call, []).extend(faults)

    def fault_of(self, call: str) -> str:
        with self.lock:
            self.calls[call] += 1
            fault = ""
            if self.planned.get(call):
                fault = self.planned[call].pop(0)
            elif self.random.random() < self.chances.get(call, 0.0):
                fault = self.random.choice(FAULTS[call])
            if fault:
                self.happened[f"{call} {fault}"] += 1
            return fault

    def workspace_of(self, key: str) -> str:
        return self.workspaces.get(key, key)

    def create(self, requests: list[dict[str, Any]], key: str = KEY) -> MadeBatch:
        with self.lock:
            ids = [request["custom_id"] for request in requests]
            now = self.now()
            made = MadeBatch(
                f"msgbatch_{len(self.batches):06d}{self.random.getrandbits(40):010x}",
                ids,
                {request["custom_id"]: request["params"] for request in requests},
                now,
                now + self.random.uniform(*self.work_s),
                workspace=self.workspace_of(key),
                lag_s=self.late[1] if self.random.random() < self.late[0] else 0.0,
            )
            self.batches[made.remote_id] = made
            return made

    def settle(self, made: MadeBatch) -> None:
        """Answer a batch whose time has come; what succeeds is billed, now and once."""
        with self.lock:
            if made.outcomes or self.now() < made.ends_at:
                return
            for request_id in made.custom_ids:
                outcome = self.item_plan.pop(0) if self.item_plan else self._chance_outcome()
                made.outcomes[request_id] = outcome
                if outcome == "succeeded":
                    self.bill(request_id, made.params[request_id])

    def bill(self, request_id: str, params: dict[str, Any]) -> None:
        with self.lock:
            self.billed[request_id] += 1
            self.billed_tokens["input"] += self.usage(params)["input_tokens"]
            self.billed_tokens["output"] += self.output_tokens

    def usage(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"input_tokens": len(json.dumps(params)) // 4, "output_tokens": self.output_tokens}

    def message(self, params: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": "msg_" + hashlib.sha256(json.dumps(params).encode()).hexdigest()[:16],
            "type": "message",
            "role": "assistant",
            "model": params["model"],
            "content": [{"type": "text", "text": self.text(params)}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": self.usage(params),
        }

    def describe(self, made: MadeBatch) -> dict[str, Any]:
        self.settle(made)
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        counts |= Counter(made.outcomes.values()) if made.outcomes else {"processing": len(made.custom_ids)}
        host = self.results_host or self.url
        ended = bool(made.outcomes)
        return {
            "id": made.remote_id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "created_at": _iso(made.created_at),
            "expires_at": _iso(made.created_at + 86400),
            "ended_at": _iso(made.ends_at) if ended else None,
            "archived_at": _iso(made.created_at) if made.archived else None,
            "cancel_initiated_at": None,
            "results_url": f"{host}/v1/messages/batches/{made.remote_id}/results" if ended else None,
        }

    def shown_to(self, key: str) -> dict[str, MadeBatch]:
        return {name: made for name, made in self.batches.items() if made.workspace == self.workspace_of(key)}

    def listed(self, limit: int, after_id: str | None, key: str = KEY) -> dict[str, Any]:
        with self.idle:
            self.idle.wait_for(lambda: self.creating == 0, 5)
            there = [
                made
                for made in self.shown_to(key).values()
                if made.created_at + self.list_lag_s + made.lag_s <= self.now()
            ]
            newest = sorted(there, key=lambda made: (made.created_at, made.remote_id), reverse=True)
            ids = [made.remote_id for made in newest]
            start = ids.index(after_id) + 1 if after_id in ids and not self.ignores_after_id else 0
            limit = min(limit, self.page or limit)
            page = newest[start : start + limit]
            return {
                "data": [self.describe(made) for made in page],
                "has_more": len(newest) > start + limit,
                "first_id": page[0].remote_id if page else None,
                "last_id": page[-1].remote_id if page else None,
            }

    def result_lines(self, made: MadeBatch, fault: str = "") -> list[str]:
        self.settle(made)
        lines = [json.dumps({"custom_id": key, "result": self._result(made, key)}) for key in made.custom_ids]
        if fault == "contradict":
            answered = [key for key, outcome in made.outcomes.items() if outcome == "succeeded"]
            lines += [json.dumps({"custom_id": key, "result": {"type": "expired"}}) for key in answered]
        if fault == "foreign":
            lines.append(json.dumps({"custom_id": "nobody-asked", "result": {"type": "expired"}}))
        self.random.shuffle(lines)
        return lines

    def books(self) -> dict[str, Any]:
        with self.lock:
            for made in self.batches.values():
                made.ends_at = min(made.ends_at, self.now())
                self.settle(made)
            return {
                "batches": {key: made.outcomes for key, made in self.batches.items()},
                "late": sorted({name for made in self.batches.values() if made.lag_s for name in made.custom_ids}),
                "billed": self.billed,
                "billed_tokens": self.billed_tokens,
                "calls": self.calls,
                "happened": self.happened,
            }

    def _result(self, made: MadeBatch, request_id: str) -> dict[str, Any]:
        outcome = made.outcomes[request_id]
        if outcome == "succeeded":
            return {"type": "succeeded", "message": self.shape(self.message(made.params[request_id]))}
        if outcome in ("errored", "invalid"):
            kind = "invalid_request_error" if outcome == "invalid" else "api_error"
            return {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": "no"}}}
        return {"type": outcome}

    def _chance_outcome(self) -> str:
        chance = self.random.random()
        for outcome, share in self.item_chances.items():
            if chance < share:
                return outcome
            chance -= share
        return "succeeded"


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: AnthropicServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Quiet
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body of a reply waits 40 ms for the receipt of its head

    def log_message(self, *args: object) -> None:
        """Nothing."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(self.server.owner.now() + self.server.owner.date_ahead_s, usegmt=True)

    @property
    def key(self) -> str:
        return self.headers.get("x-api-key") or self.headers.get("authorization", "").removeprefix("Bearer ")

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        if path.endswith("/v1/messages/batches"):
            with self.server.owner.lock:
                self.server.owner.creating += 1
            try:
                self._create()
            finally:
                with self.server.owner.idle:
                    self.server.owner.creating -= 1
                    self.server.owner.idle.notify_all()
        elif path.endswith("/count_tokens"):
            self._send(200, {"input_tokens": len(json.dumps(self._body())) // 4})
        elif path.endswith("/v1/messages"):
            self._message()
        else:
            self._error(404)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        names = parts.path.strip("/").split("/")
        if parts.path == "/books":
            self._send(200, self.server.owner.books())
        elif names[-2:-1] == ["models"] and self.server.owner.limit:
            self._send(200, {"id": names[-1], "type": "model", "max_tokens": self.server.owner.limit})
        elif names[-1] == "batches":
            query = parse_qs(parts.query)
            after = query.get("after_id", [None])[0]
            if not self._fail(self.server.owner.fault_of("list")):
                self._send(200, self.server.owner.listed(int(query.get("limit", ["20"])[0]), after, self.key))
        elif set(names) & self.server.owner.broken:
            self._error(500)
        elif names[-1] == "results" and names[-2] in self.server.owner.shown_to(self.key):
            self._results(names[-2])
        elif names[-1] in self.server.owner.shown_to(self.key):
            if not self._fail(self.server.owner.fault_of("retrieve")):
                self._send(200, self.server.owner.describe(self.server.owner.batches[names[-1]]))
        else:
            self._error(404)

    def _create(self) -> None:
        body = self._body()
        fault = self.server.owner.fault_of("create")
        if fault in ("error_429", "error_400"):
            self._error(int(fault[-3:]))
        elif fault.endswith("_before"):
            self._fail(fault.removesuffix("_before"))
        else:
            self.server.owner.bodies.append(body)
            made = self.server.owner.create(body["requests"], self.key)
            if fault == "twice":
                self.server.owner.create(body["requests"], self.key)
            if fault in ("lost_reply", "twice"):
                self._drop()
            elif fault in WITHOUT_NAME:
                self._send_without_name(fault, self.server.owner.describe(made))
            elif fault:
                self._error(500)
            else:
                self._send(200, self.server.owner.describe(made))

    def _send_without_name(self, fault: str, said: dict[str, Any]) -> None:
        if fault == "html":
            self._send_bytes(200, b"<html>bad gateway</html>", {"content-type": "text/html"})
        else:
            self._send(200, said | {"id": None} if fault == "null_id" else {k: v for k, v in said.items() if k != "id"})

    def _message(self) -> None:
        body = self._body()
        if self.server.owner.refusal is not None:
            self.server.owner.bodies.append(body)
            self._send(*self.server.owner.refusal)
            return
        fault = self.server.owner.fault_of("message")
        if fault.startswith("error"):
            self._error(int(fault[6:]))
            return
        self.server.owner.bodies.append(body)
        self.server.owner.bill(json.dumps(body["messages"]), body)
        if fault == "lost_reply":
            self._drop()
        else:
            self._send(200, self.server.owner.shape(self.server.owner.message(body)))

    def _results(self, remote_id: str) -> None:
        fault = self.server.owner.fault_of("results")
        if fault.startswith("error"):
            self._fail(fault)
            return
        lines = self.server.owner.result_lines(self.server.owner.batches[remote_id], fault)
        content = "".join(line + "\n" for line in lines).encode()
        keep = len(content) * 2 // 3
        self.send_response(200)
        if fault == "cut_clean":
            self.close_connection = True
            self.send_header("connection", "close")
        else:
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:keep])
        if fault == "cut":
            self._drop()
        elif fault != "cut_clean":
            self.wfile.write(content[keep:])

    def _fail(self, fault: str) -> bool:
        if fault == "reset":
            self._drop()
        elif fault.startswith("error_"):
            self._error(int(fault.split("_")[1]))
        return bool(fault)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["content-length"])))

    def _error(self, status: int) -> None:
        said = {"type": "error", "error": {"type": "some_error", "message": f"no {status} for key {KEY}"}}
        self._send(status, said, {"retry-after": "0.02"} if status >= 429 else {})

    def _send(self, status: int, said: object, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(
            status,
            said if isinstance(said, bytes) else json.dumps(said).encode(),
            {"content-type": "application/json", **(headers or {})},
        )

    def _send_bytes(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        organisation = self.server.owner.organisations.get(self.key)
        if organisation:
            headers = {**headers, "anthropic-organization-id": organisation}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def main(seed: int, skew_s: float, late: tuple[float, float]) -> None:
    """Serve until killed, with everything going wrong by chance, and a Date that is an hour ahead of its batches."""
    server = AnthropicServer(seed, skew_s, work_s=(0.0, 0.15))
    server.chances = {"create": 0.35, "list": 0.05, "retrieve": 0.1, "results": 0.25, "message": 0.1}
    server.date_ahead_s, server.list_lag_s, server.late = 3600.0, 0.5, late
    server.item_chances = {"errored": 0.06, "expired": 0.06, "canceled": 0.06}
    print(server.http.server_port, flush=True)
    server.http.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), (float(sys.argv[3]), float(sys.argv[4])))
