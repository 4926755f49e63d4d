"""The text of a model's message, and the JSON in that text, however much surrounds it or is missing from it.

It judges no label. Everything here is bounded in time and memory whatever the reply is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from storage.disk import UnreadableError, check_depth, decode_json

MAX_TEXT = 1_000_000
"""Characters of a reply's text that are looked at; an honest one has a few thousand."""
MAX_RAW = 4_000
"""Characters of a rejected piece that are kept beside its reason; the whole reply stays in the raw file."""
_MAX_STARTS = 200
_MAX_DIGITS = 4_300  # as Python reads them; a number that is too large is refused with its label
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")
"""Control characters, and those that break lines, turn text around or are never seen."""
_DECODER = json.JSONDecoder()

Entry = Any


class ReplyProblem(NamedTuple):
    """Why a reply, or a part of it, is not usable."""

    reason: str  # a short code
    detail: str


@dataclass(frozen=True)
class Message:
    """What a model sent, as far as it can be understood."""

    text: str
    model: str | None = None
    stop_reason: str | None = None
    usage: Mapping[str, int] | None = None
    trouble: ReplyProblem | None = None


_LIMIT = ReplyProblem("max_tokens", "the reply was cut at the limit of its tokens; raise it with --max-tokens")
_CUT = {
    "max_tokens": _LIMIT,
    "length": _LIMIT,  # as servers that speak other APIs too call it
    "model_context_window_exceeded": ReplyProblem(
        "context_window", "request and reply fill the model's context; fewer --rows or --labels make them smaller"
    ),
    "pause_turn": ReplyProblem("pause_turn", "the model paused before its end"),
}
"""Stop reasons of a reply that does not end where its model wanted to."""


class Entries(NamedTuple):
    """The entries found in a text: labels, or steps."""

    entries: Sequence[Entry]
    assessment: str
    trouble: ReplyProblem | None
    whole: Mapping[str, Any] = MappingProxyType({})  # the object that holds the list; empty where it is broken


class Found(NamedTuple):
    """What a reply was searched for."""

    raw: str  # as it came
    message: Message
    entries: Entries
    problem: ReplyProblem | None  # why the reply holds no answer, whatever else is in it; None if it holds one


def find_answer(raw: str, key: str, body: Mapping[str, Any] | None = None) -> Found:
    """Find the list under `key` in a reply. A reply that was refused, cut or holds no such list is no answer.

    Args:
        raw: as it came; it may be anything.
        key: `labels`, `steps`, `rules` or `terms`.
        body: its JSON, where that was parsed already.
    """
    message = _read_body(_parse(raw) if body is None else body)
    if message.trouble and message.trouble.reason != "too_long":
        return Found(raw, message, Entries([], "", None), message.trouble)
    entries = find_entries(message.text, key)
    is_answer = bool(entries.entries) or entries.trouble is None
    return Found(raw, message, entries, None if is_answer else message.trouble or entries.trouble)


def read_message(raw: str) -> Message:
    """Read the JSON of a Messages API reply.

    Args:
        raw: as it came; it may be anything.

    Returns:
        The text of its text blocks, and the input of its tools as JSON text (thinking comes first and is passed over),
        with what kept it from being complete.
    """
    return _read_body(_parse(raw))


def _read_body(body: Any) -> Message:
    if not isinstance(body, Mapping):
        return Message("", trouble=ReplyProblem("not_a_message", "the reply is not a JSON object"))
    error = body.get("error")
    if error is not None:
        return Message("", trouble=ReplyProblem("error_reply", clean_text(_error_text(error), 300)))
    stop_reason = body.get("stop_reason")
    text = "".join(_texts(body.get("content")))
    return Message(
        text=text[:MAX_TEXT],
        model=_string(body.get("model")),
        stop_reason=_string(stop_reason),
        usage=_usage(body.get("usage")),
        trouble=_stop_trouble(stop_reason, text),
    )


def find_entries(text: str, key: str) -> Entries:
    """Find the object that holds a list under `key`.

    Prose and code fences around it are passed over; of several objects the last one counts, as a model's final word. If
    none is complete, the complete entries of a broken one are taken, and the trouble says so; of one that is cut, none.
    """
    objects = list(_objects_with(text, key))
    if not objects:
        return _entries_of_broken_text(text, key)
    found = objects[-1]
    assessment = found.get("assessment")
    said = clean_text(assessment, 4000) if isinstance(assessment, str) else ""
    if not isinstance(found[key], list):
        return Entries([], said, ReplyProblem("wrong_type", f"{key} is not a list"))
    return Entries(found[key], said, None, found)


def clean_text(text: str, limit: int) -> str:
    """Text that any terminal, database and page can hold: no control characters, nothing hidden, no lone surrogates."""
    text = _CONTROL.sub(" ", text[: 4 * limit]).encode("utf-8", "replace").decode("utf-8").strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _parse(text: str) -> Any:
    try:
        return decode_json(text)
    except UnreadableError:
        return None


def _error_text(error: Any) -> str:
    """An error in its own words where it has some."""
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return f"{error.get('type', 'error')}: {error['message']}"
    return error if isinstance(error, str) and error.strip() else json.dumps(error)


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            continue
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            yield block["text"]
        elif block.get("type") == "tool_use" and isinstance(block.get("input"), dict) and block["input"]:
            yield f"\n{json.dumps(block['input'])}"


def _stop_trouble(stop_reason: Any, text: str) -> ReplyProblem | None:
    if stop_reason == "refusal":
        return ReplyProblem("refusal", clean_text(text, 500) or "the model refused")
    if isinstance(stop_reason, str) and stop_reason in _CUT:
        return _CUT[stop_reason]
    if len(text) > MAX_TEXT:
        return ReplyProblem("too_long", f"the text has {len(text)} characters, {MAX_TEXT} are read")
    if not text.strip():
        return ReplyProblem("no_text", "the reply has no text")
    return None


def _usage(usage: Any) -> Mapping[str, int] | None:
    if not isinstance(usage, dict):
        return None
    return {k: v for k, v in usage.items() if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**53}


def _string(value: Any) -> str | None:
    return clean_text(value, 200) if isinstance(value, str) else None


def _objects_with(text: str, key: str) -> Iterator[dict[str, Any]]:
    """JSON objects in a text that have the key, in order, looking no further than some hundred braces."""
    position = text.find("{")
    for _ in range(_MAX_STARTS):
        if position < 0:
            return
        value, end = _decode(text, position)
        if isinstance(value, dict) and key in value:
            yield value
        position = text.find("{", end if value is not None else position + 1)


def _entries_of_broken_text(text: str, key: str) -> Entries:
    start = re.search(rf'"{key}"\s*:\s*\[', text)
    if start is None:
        return Entries([], "", ReplyProblem("no_json", f"the text holds no JSON object with {key}"))
    entries: list[Entry] = []
    position, end = start.end(), start.end()
    while (position := text.find("{", position)) >= 0:
        value, position = _decode(text, position)
        if value is None:
            break
        entries.append(value)
        end = position
    if not entries or "]" not in text[end:]:
        return Entries([], "", ReplyProblem("cut_json", f"the JSON is cut after {len(entries)} complete {key}"))
    return Entries(entries, "", ReplyProblem("cut_json", f"the JSON is broken after {len(entries)} complete {key}"))


def _decode(text: str, position: int) -> tuple[Any, int]:
    """The JSON value at a position and where it ends; None where there is none."""
    try:
        value, end = _DECODER.raw_decode(text, position)
        check_depth(value, most_digits=_MAX_DIGITS)
    except (ValueError, RecursionError):
        return None, position
    return value, end
