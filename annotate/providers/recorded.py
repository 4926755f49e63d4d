"""Answers of a real model that were recorded earlier, found by the id of the request: no key, no network, no cost."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from dataclasses import replace
from pathlib import Path

from storage.errors import BadInput

from ..prompting import Request
from .answers import read_answers
from .protocol import Reply

EXPORT_COMMAND = "trajnote annotate --provider file --export requests.jsonl"


class RecordedProvider:
    """Replays recorded answers.

    Args:
        path: a file of answers as in `answers.py` (`.jsonl`, or `.jsonl.zst`), or a folder of such files.
        export_command: the command that exports requests, for the message when an answer is missing.

    Raises:
        BadInput: if there is no such file, or a line of it is not an answer.
    """

    name = "recorded"
    recorded = True
    paid = False

    def __init__(self, path: Path, export_command: str = EXPORT_COMMAND) -> None:
        self._path = path
        self._export_command = export_command
        self._answers = read_answers(_answer_files(path))

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

    def says(self, request_id: str) -> str | None:
        """The raw reply to a request, if there is one."""
        answer = self._answers.get(request_id)
        return answer.reply.raw if answer else None

    def late(self) -> list[Reply]:
        """None: nothing is under way."""
        return []


def _answer_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.endswith((".jsonl", ".jsonl.zst")))
    if not files:
        raise BadInput(f"The folder {path} holds no .jsonl or .jsonl.zst file.", "Name the file of recorded answers.")
    return files
