"""Who answers without a server: a file for anybody, or answers recorded earlier.

Exported questions are requests of Anthropic's Message Batches, so they can be sent. A line of answers is one of
- a result line of Anthropic's Message Batches: `{"custom_id": ID, "result": {"type": "succeeded", "message": {...}}}`,
- a short form: `{"request_id": ID, "text": "..."}`, `{"request_id": ID, "reply": {"assessment": ..., "labels": ...}}`
  or `{"request_id": ID, "message": {...}}`, where `custom_id` may stand for `request_id`, and all other fields (model,
  date, ...) are kept as provenance.

A file of them is checked as a whole. What an answer says is not looked at here.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storage.disk import read_lines, write_whole
from storage.errors import BadInput, LeftOutWarning

from ..parsing import clean_text, read_object
from ..prompting import Request
from .protocol import Provider, Reply

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
    return _read_line(read_object(text))


def parse_result(text: str) -> Reply | None:
    """One line of a batch's results as a message or an error; None for a line that names no request."""
    try:
        line = read_object(text)
    except ValueError:
        return None
    if not isinstance(line.get("custom_id"), str):
        return None
    try:
        return replace(_read_line(line), request_id=line["custom_id"])
    except ValueError as error:
        return Reply(line["custom_id"], None, f"unknown: {error}")


def _read_line(line: Mapping[str, Any]) -> Reply:
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
    raise ValueError("its result is not one of succeeded (with a message), errored, canceled and expired")


def _plain(value: Any) -> str | float | bool | None:
    """A piece of provenance that any table can hold."""
    if isinstance(value, bool | int | float) or value is None:
        return value
    return clean_text(value if isinstance(value, str) else _dump(value), 1000)


def _dump(value: Any) -> str:
    """JSON with every unusual character escaped, so that it can be stored whatever it is."""
    return json.dumps(value)


def text_message(text: str, model: str | None = "scripted") -> str:
    """A Messages API reply with one text block, as JSON."""
    blocks = [{"type": "text", "text": text}]
    return json.dumps({"type": "message", "model": model, "content": blocks, "stop_reason": "end_turn"})


EXPORT_COMMAND = "trajnote annotate --provider file --export requests.jsonl"


class _AnswersInFiles(Provider):
    """Answers that somebody has written down.

    Args:
        path: that was named.
        files: of answers as in `answers.py`.
    """

    def __init__(self, path: Path, files: Iterable[Path]) -> None:
        self._path = path
        self._answers = read_answers(files)

    def says(self, request_id: str) -> str | None:
        """The raw reply to a request, if there is one."""
        answer = self._answers.get(request_id)
        return answer.reply.raw if answer else None


class RecordedProvider(_AnswersInFiles):
    """Replays recorded answers.

    Args:
        path: a file of answers as in `answers.py` (`.jsonl`, or `.jsonl.zst`), or a folder of such files.
        export_command: the command that exports requests, for the message when an answer is missing.

    Raises:
        BadInput: if there is no such file, or a line of it is not an answer.
    """

    name = "recorded"
    recorded = True

    def __init__(self, path: Path, export_command: str = EXPORT_COMMAND) -> None:
        super().__init__(path, _answer_files(path))
        self._export_command = export_command

    def prepare(self, known: Collection[str], pending: Collection[str], *, complete: bool) -> None:
        """Refuse requests that have no recorded answer.

        Raises:
            BadInput: naming the first of them and the command that exports them.
        """
        missing = [request_id for request_id in pending if request_id not in self._answers]
        if missing:
            raise BadInput(
                f"{self._path} has no answer to {len(missing)} of {len(pending)} requests, the first being "
                f"{missing[0]}: the data, the prompt, the card, the model or an option differs from the recording.",
                f"Export them with `{self._export_command}` and the same dataset and options, have a model answer "
                "them, and add the answers.",
            )

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """The recorded answers."""
        requests = list(requests)
        ids = [request.request_id for request in requests]
        self.prepare(ids, ids, complete=False)
        for request in requests:
            reply = self._answers[request.request_id].reply
            yield replace(reply, provenance={"recorded": True, **reply.provenance})


def _answer_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.endswith((".jsonl", ".jsonl.zst")))
    if not files:
        raise BadInput(f"The folder {path} holds no .jsonl or .jsonl.zst file.", "Name the file of recorded answers.")
    return files


def export_requests(path: Path, requests: Iterable[Request]) -> int:
    """Write requests as JSON Lines `{"custom_id": ..., "params": {...}}`; the file is whole or absent.

    Returns:
        How many there are.
    """
    lines = [f'{{"custom_id":{json.dumps(request.request_id)},"params":{request.body}}}\n' for request in requests]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(lines).encode())
    return len(lines)


class FileProvider(_AnswersInFiles):
    """Answers that somebody collected in a file; questions without one stay open.

    Args:
        path: JSON Lines as in `answers.py`.

    Raises:
        BadInput: if the file cannot be read, or a line of it is not an answer.
    """

    name = "file"

    def __init__(self, path: Path) -> None:
        super().__init__(path, [path])

    def prepare(self, known: Collection[str], pending: Collection[str], *, complete: bool) -> None:
        """Refuse answers to questions that this run does not ask, and warn of those without a line.

        Raises:
            BadInput: naming them; not when a second stage may still ask them.
        """
        unknown = [f"{a.place}: {key}" for key, a in self._answers.items() if key not in known]
        if unknown and complete:
            raise BadInput(
                f"{self._path} answers {len(unknown)} requests that this run does not ask: {join_some(unknown)}.",
                "Use the dataset, model and options that the requests were exported with; nothing was read in.",
            )
        if missing := sorted(key for key in pending if key not in self._answers):
            warnings.warn(
                f"{self._path} has no line for {len(missing)} requests: {join_some(missing)}. They stay open; the same "
                "command with --export FILE instead of --answers writes them.",
                LeftOutWarning,
                stacklevel=2,
            )

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """The answers that the file has."""
        for request in requests:
            if request.request_id in self._answers:
                yield self._answers[request.request_id].reply
