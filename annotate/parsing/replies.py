"""From a raw reply to labels and rejections: whatever breaks a rule is kept with its reason, the rest still counts.

First the text of a model's message, and the JSON in that text, however much surrounds it or is missing from it; then
its labels. A reply is hostile until proven otherwise: nothing in it raises, nothing is corrected or clipped, nothing is
carried out, and everything is bounded in time and memory. What becomes of labels is in `ledger/readings.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from storage.disk import UnreadableError, check_depth, decode_json
from storage.formulas import Term

from ..cards import Card
from ..prompting import Kind, label_vector

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
    problem: ReplyProblem | None = None


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
    problem: ReplyProblem | None
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
    if message.problem and message.problem.reason != "too_long":
        return Found(raw, message, Entries([], "", None), message.problem)
    entries = find_entries(message.text, key)
    is_answer = bool(entries.entries) or entries.problem is None
    return Found(raw, message, entries, None if is_answer else message.problem or entries.problem)


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
        return Message("", problem=ReplyProblem("not_a_message", "the reply is not a JSON object"))
    error = body.get("error")
    if error is not None:
        return Message("", problem=ReplyProblem("error_reply", clean_text(_error_text(error), 300)))
    stop_reason = body.get("stop_reason")
    text = "".join(_texts(body.get("content")))
    return Message(
        text=text[:MAX_TEXT],
        model=_string(body.get("model")),
        stop_reason=_string(stop_reason),
        usage=_usage(body.get("usage")),
        problem=_stop_problem(stop_reason, text),
    )


def find_entries(text: str, key: str) -> Entries:
    """Find the object that holds a list under `key`.

    Prose and code fences around it are passed over; of several objects the last one counts, as a model's final word. If
    none is complete, the complete entries of a broken one are taken, and the problem says so; of one that is cut, none.
    """
    objects = list(_objects_with(text, key))
    if not objects:
        return _entries_of_broken_text(text, key)
    found = objects[-1]
    assessment = found.get("assessment")
    words = clean_text(assessment, 4000) if isinstance(assessment, str) else ""
    if not isinstance(found[key], list):
        return Entries([], words, ReplyProblem("wrong_type", f"{key} is not a list"))
    return Entries(found[key], words, None, found)


def clean_text(text: str, limit: int) -> str:
    """Text that any terminal, database and page can hold: no control characters, nothing hidden, no lone surrogates."""
    text = _CONTROL.sub(" ", text[: 4 * limit]).encode("utf-8", "replace").decode("utf-8").strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in a line of a file.

    Raises:
        ValueError: saying what it is instead.
    """
    try:
        value = decode_json(text)
    except UnreadableError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


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


def _stop_problem(stop_reason: Any, text: str) -> ReplyProblem | None:
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


MAX_ENTRIES = 2_000
"""Entries of one reply that are looked at; far more than a table has rows."""


@dataclass(frozen=True)
class Label:
    """What a reply says about one step, with every rule kept."""

    step: int
    rationale: str
    action: tuple[float, ...] | None  # an index into the card's list, or a number for each dimension; None in stage one
    action_label: str | None
    implicit_reward: float | None
    confidence: float | None
    critical: bool


@dataclass(frozen=True)
class ProposedRule:
    """What a reply says about all steps that meet a condition, with every rule kept."""

    position: int  # of the entry in the reply
    predicate: str  # canonical
    rationale: str
    action: tuple[float | None, ...]  # an index into the card's list, or a number for each dimension; None: as logged
    action_label: str
    confidence: float
    formulas: tuple[str | None, ...] | None = None  # canonical, in place of a number, for each dimension
    critical: bool | None = None


@dataclass(frozen=True)
class ParsedReply:
    """Everything that was understood of one reply."""

    message: Message
    assessment: str
    labels: tuple[Label, ...]
    refused: tuple[Refused, ...]
    rules: tuple[ProposedRule, ...] = ()  # only where rules were asked for
    terms: tuple[Term, ...] = ()  # named expressions, where rules or a study were asked for
    potential: str | None = None  # canonical, where rules were asked for
    is_answer: bool = True  # false: the reply holds none, and the request stays open


def find_in_reply(raw: str, kind: Kind, body: Mapping[str, Any] | None = None) -> Found:
    """The entries of a reply to some kind of request, or why it holds no answer; see `find_answer`."""
    return find_answer(raw, {"identify": "steps", "rules": "rules", "study": "terms"}.get(kind, "labels"), body)


def read_nothing(found: Found) -> ParsedReply | None:
    """The reading of a reply that holds no answer; None for one that holds one."""
    if found.problem is None:
        return None
    return ParsedReply(
        found.message, "", (), (refuse_reply(found.problem, found.message.text or found.raw),), is_answer=False
    )


def read_labels(reply: Found, kind: Kind, card: Card, steps: Collection[int]) -> ParsedReply:
    """Validate the entries of a reply.

    Args:
        reply: from `find_in_reply`.
        kind: what was asked.
        card: the legal actions.
        steps: the steps that the request showed; a label may name no other.

    Returns:
        The labels that keep every rule, at most one for each step, and what was refused. It never raises.
    """
    if (nothing := read_nothing(reply)) is not None:
        return nothing
    labels: dict[int, Label] = {}

    def take(_: int, entry: Entry) -> None:
        label = _read_entry(entry, kind, card, steps)
        if label.step in labels:
            raise BrokenError("duplicate_step", f"step {label.step} has a label already")
        labels[label.step] = label

    refused = [*refuse_whole(reply), *take_each(reply, MAX_ENTRIES, take)]
    return ParsedReply(reply.message, reply.entries.assessment, tuple(labels.values()), tuple(refused))


def refuse_whole(reply: Found) -> list[Refused]:
    """What is wrong with the reply as a whole, the first problem only; its entries may be sound."""
    problems = (reply.message.problem, reply.entries.problem)
    return [refuse_reply(problem, reply.message.text) for problem in problems if problem][:1]


def take_each(reply: Found, most: int, take: Callable[[int, Entry], None]) -> list[Refused]:
    """Take the entries of a reply one by one.

    Args:
        reply: whose entries.
        most: how many are read.
        take: called with position and entry; raises BrokenError for one that breaks a rule.

    Returns:
        The refused ones, and one refusal more where there are too many.
    """
    entries, refused = reply.entries.entries, list[Refused]()
    for position, entry in enumerate(entries[:most]):
        try:
            take(position, entry)
        except BrokenError as broken:
            refused.append(refuse_entry(position, entry, broken.problem))
    if len(entries) > most:
        problem = ReplyProblem("too_many", f"{len(entries)} entries, {most} are read")
        refused.append(refuse_reply(problem, reply.message.text))
    return refused


def _read_entry(entry: Entry, kind: Kind, card: Card, steps: Collection[int]) -> Label:
    if not isinstance(entry, dict):
        raise BrokenError("wrong_type", f"a {type(entry).__name__} in place of an object")
    step = _read_step(entry, steps)
    rationale = read_rationale(entry)
    if kind == "identify":
        return Label(step, rationale, None, None, None, None, critical=True)
    action, action_label = read_action(read_field(entry, "suggested_action"), card)
    critical = read_field(entry, "critical")
    if not isinstance(critical, bool):
        raise BrokenError("wrong_type", f"critical is {show(critical)}; true or false is allowed")
    return Label(
        step,
        rationale,
        action,
        action_label,
        implicit_reward=read_number(entry, "implicit_reward", -1, 1),
        confidence=read_number(entry, "confidence", 0, 1),
        critical=critical,
    )


def _read_step(entry: Mapping[str, Any], steps: Collection[int]) -> int:
    step = read_field(entry, "step")
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    if isinstance(step, bool) or not isinstance(step, int):
        raise BrokenError("wrong_type", f"step is {show(step)}; the number of a row is allowed")
    if step not in steps:
        raise BrokenError("unknown_step", f"step {show(step)} has no row in the request's table")
    return step


def read_action(action: object, card: Card) -> tuple[tuple[float, ...], str]:
    """A legal action: an index into the card's list, or a number for each dimension, and its name."""
    if card.is_discrete:
        if not isinstance(action, str) or action not in card.action_names:
            raise BrokenError("illegal_action", f"{show(action)} is none of {', '.join(card.action_names)}")
        return (float(card.action_names.index(action)),), action
    if not isinstance(action, dict) or set(action) != set(card.action_names):
        raise BrokenError(
            "illegal_action", f"{show(action)} does not give {', '.join(card.action_names)} and nothing else"
        )
    values = tuple(
        read_number(action, dimension.name, dimension.low, dimension.high, "illegal_action")
        for dimension in card.actions
    )
    return values, label_vector(card.action_names, values, [a.decimals for a in card.actions])


MAX_RATIONALE = 1_000
"""Characters of a rationale that are kept; the prompt asks for one sentence."""


@dataclass(frozen=True)
class Refused:
    """A piece of a reply that breaks a rule."""

    position: int  # of the entry in the reply; -1 for the reply itself
    step: int | None
    reason: str
    detail: str
    raw: str


class BrokenError(Exception):
    """A rule is broken; carries the problem to where the entry is known."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.problem = ReplyProblem(reason, detail)


def refuse_reply(problem: ReplyProblem, raw: str) -> Refused:
    """A reply as a whole that breaks a rule."""
    return Refused(-1, None, problem.reason, problem.detail, clean_text(raw, MAX_RAW))


def refuse_entry(position: int, entry: Entry, problem: ReplyProblem) -> Refused:
    """An entry that breaks a rule."""
    try:
        raw = json.dumps(entry, ensure_ascii=False)
    except (ValueError, RecursionError):
        raw = "not printable"
    return Refused(position, _step_if_any(entry), *problem, clean_text(raw, MAX_RAW))


def _step_if_any(entry: Entry) -> int | None:
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**31 else None


def read_rationale(entry: Mapping[str, Any]) -> str:
    """Its reason, as text that anything can hold."""
    rationale = read_field(entry, "rationale")
    if not isinstance(rationale, str):
        raise BrokenError("wrong_type", f"rationale is {show(rationale)}; text is allowed")
    return clean_text(rationale, MAX_RATIONALE)


def read_number(
    entry: Mapping[str, Any], name: str, low: float | None, high: float | None, reason: str = "out_of_range"
) -> float:
    """A finite number within its bounds."""
    value = read_field(entry, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BrokenError("wrong_type", f"{name} is {show(value)}; a number is allowed")
    if isinstance(value, float) and not math.isfinite(value):
        raise BrokenError("not_finite", f"{name} is {value}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise BrokenError(reason, f"{name} is {show(value)}; {low} to {high} is allowed")
    try:
        return float(value)
    except OverflowError:
        raise BrokenError("not_finite", f"{name} has {len(str(abs(value)))} digits") from None


def read_field(entry: Mapping[str, Any], name: str) -> object:
    """A field that has to be there."""
    if name not in entry:
        raise BrokenError("missing_field", f"{name} is missing")
    return entry[name]


def show(value: object) -> str:
    """A value as a message quotes it."""
    try:
        return clean_text(json.dumps(value, ensure_ascii=False), 120)
    except (ValueError, RecursionError, TypeError):
        return f"a {type(value).__name__}"
