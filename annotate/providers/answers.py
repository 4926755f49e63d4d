"""Answers in JSON Lines: the forms a line may have, and a file of them read and checked as a whole.

A line is one of
- a result line of Anthropic's Message Batches: `{"custom_id": ID, "result": {"type": "succeeded", "message": {...}}}`,
- a short form: `{"request_id": ID, "text": "..."}`, `{"request_id": ID, "reply": {"assessment": ..., "labels": ...}}`
  or `{"request_id": ID, "message": {...}}`, where `custom_id` may stand for `request_id`, and all other fields (model,
  date, ...) are kept as provenance.

What an answer says is not looked at here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storage.disk import UnreadableError, decode_json, read_lines
from storage.errors import BadInput

from ..parsing import clean_text
from .protocol import Reply
from .scripted import text_message

_CONTENT = ("text", "reply", "message", "result")
_SHOWN = 8


@dataclass(frozen=True)
class AnswerLine:
    """A reply and where it stands."""

    place: str  # file and line, for messages
    reply: Reply


def read_answers(paths: Iterable[Path]) -> dict[str, AnswerLine]:
    """All answers of some files by request id; equal lines count once.

    Args:
        paths: JSON Lines, packed with zstd where the name ends in `.zst`.

    Raises:
        BadInput: listing every line that is not an answer, or answers a request a second time in another way.
    """
    answers: dict[str, AnswerLine] = {}
    problems: list[str] = []
    for path in paths:
        for number, text in read_lines(path):
            place = f"{path.name} line {number}"
            try:
                reply = parse_answer(text)
            except ValueError as error:
                problems.append(f"{place}: {error}")
                continue
            known = answers.setdefault(reply.request_id, AnswerLine(place, reply))
            if (known.reply.raw, known.reply.error) != (reply.raw, reply.error):
                problems.append(f"{place}: {reply.request_id} is answered differently in {known.place}")
    if problems:
        raise BadInput(
            f"{len(problems)} line{'s' * (len(problems) > 1)} cannot be used: {join_some(problems)}.",
            "Correct or remove them; nothing was read in.",
        )
    return answers


def parse_answer(text: str) -> Reply:
    """One line as a reply.

    Raises:
        ValueError: saying what is wrong with it.
    """
    try:
        line = decode_json(text)
    except UnreadableError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    return _read_line(line)


def parse_result(text: str) -> Reply | None:
    """One line of a batch's results as a message or an error; None for a line that names no request."""
    try:
        line = decode_json(text)
    except UnreadableError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
        return None
    try:
        return replace(_read_line(line), request_id=line["custom_id"])
    except ValueError as error:
        return Reply(line["custom_id"], None, f"unknown: {error}")


def _read_line(line: Any) -> Reply:
    if not isinstance(line, dict):
        raise ValueError("it is not a JSON object")
    request_id = line.get("request_id", line.get("custom_id"))
    if not isinstance(request_id, str) or not request_id:
        raise ValueError("it has no request_id or custom_id")
    given = [key for key in _CONTENT if key in line]
    if len(given) != 1:
        raise ValueError(f"it needs exactly one of {', '.join(_CONTENT)}; it has {', '.join(given) or 'none'}")
    hidden = {"request_id", "custom_id", given[0]}
    provenance = {clean_text(key, 60): _plain(value) for key, value in line.items() if key not in hidden}
    return _reply(request_id, given[0], line[given[0]], provenance)


def join_some(items: list[str]) -> str:
    """The first few of a list of problems, and how many more there are."""
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more


def _reply(request_id: str, form: str, content: Any, provenance: Mapping[str, Any]) -> Reply:
    if form == "result":
        return _batch_result(request_id, content, provenance)
    if form == "message":
        if not isinstance(content, dict):
            raise ValueError("its message is not an object")
        return Reply(request_id, _dump(content), provenance=provenance, body=content)
    if form == "text" and not isinstance(content, str):
        raise ValueError("its text is not a string")
    text = content if form == "text" else _dump(content)
    model = provenance.get("model")
    return Reply(request_id, text_message(text, model if isinstance(model, str) else None), provenance=provenance)


def _batch_result(request_id: str, result: Any, provenance: Mapping[str, Any]) -> Reply:
    kind = result.get("type") if isinstance(result, dict) else None
    if kind == "succeeded" and isinstance(result.get("message"), dict):
        return Reply(request_id, _dump(result["message"]), provenance=provenance, body=result["message"])
    if kind in ("errored", "canceled", "expired"):
        detail = _dump(result.get("error", {}))
        return Reply(
            request_id, None, f"{kind} {detail}"[:1000], final="invalid_request" in detail, provenance=provenance
        )
    raise ValueError("its result is none of succeeded (with a message), errored, canceled and expired")


def _plain(value: Any) -> str | float | bool | None:
    """A piece of provenance that any table can hold."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    return clean_text(value if isinstance(value, str) else _dump(value), 1000)


def _dump(value: Any) -> str:
    """JSON with every unusual character escaped, so that it can be stored whatever it is."""
    return json.dumps(value)
