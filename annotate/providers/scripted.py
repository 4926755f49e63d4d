"""A function in the place of a language model, for tests and trials."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Iterable

from ..prompting import Request
from .protocol import Reply


def text_message(text: str, model: str | None = "scripted") -> str:
    """A Messages API reply with one text block, as JSON."""
    blocks = [{"type": "text", "text": text}]
    return json.dumps({"type": "message", "model": model, "content": blocks, "stop_reason": "end_turn"})


class ScriptedProvider:
    """Answers with whatever a function returns.

    Args:
        script: from a request to the raw reply; None leaves the request unanswered, an exception passes through.
    """

    name = "scripted"
    recorded = False
    paid = False

    def __init__(self, script: Callable[[Request], str | None]) -> None:
        self._script = script
        self.asked: list[str] = []

    def prepare(self, known: Collection[str], pending: Collection[str], *, complete: bool) -> None:
        """Anything can be answered."""

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """One reply after the other."""
        for request in requests:
            self.asked.append(request.request_id)
            raw = self._script(request)
            if raw is not None:
                yield Reply(request.request_id, raw)

    def late(self) -> list[Reply]:
        """None: nothing is under way."""
        return []
