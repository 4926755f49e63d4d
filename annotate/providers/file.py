"""Questions out to a file, answers in from a file, for any model that anybody runs anywhere.

The exported lines are requests of Anthropic's Message Batches, so they can be sent as they are.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Generator, Iterable
from pathlib import Path

from storage.disk import write_whole
from storage.errors import BadInput, LeftOutWarning

from ..prompting import Request
from .answers import join_some, read_answers
from .protocol import Reply


def export_requests(path: Path, requests: Iterable[Request]) -> int:
    """Write requests as JSON Lines `{"custom_id": ..., "params": {...}}`; the file is whole or absent.

    Returns:
        How many there are.
    """
    lines = [f'{{"custom_id":{json.dumps(request.request_id)},"params":{request.body}}}\n' for request in requests]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(lines).encode())
    return len(lines)


class FileProvider:
    """Answers that somebody collected in a file; questions without one stay open.

    Args:
        path: JSON Lines as in `answers.py`.

    Raises:
        BadInput: if the file cannot be read, or a line of it is not an answer.
    """

    name = "file"
    recorded = False
    paid = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answers = read_answers([path])

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
                "command with --export FILE in place of --answers writes them.",
                LeftOutWarning,
                stacklevel=2,
            )

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """The answers that the file has."""
        for request in requests:
            if request.request_id in self._answers:
                yield self._answers[request.request_id].reply

    def says(self, request_id: str) -> str | None:
        """The raw reply to a request, if there is one."""
        answer = self._answers.get(request_id)
        return answer.reply.raw if answer else None

    def late(self) -> list[Reply]:
        """None: nothing is under way."""
        return []
