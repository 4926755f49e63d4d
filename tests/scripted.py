"""A provider that answers by a function, and raw replies read without a ledger."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable

from annotate.cards.cards import Card
from annotate.parsing.replies import ParsedReply, find_in_reply, read_labels
from annotate.parsing.rules import read_rule_reply
from annotate.prompting import Kind
from annotate.prompting.requests import Request
from annotate.providers.protocol import Provider, Reply


class ScriptedProvider(Provider):
    """Answers with whatever a function returns.

    Args:
        script: from a request to the raw reply; None leaves the request unanswered, an exception passes through.
    """

    name = "scripted"

    def __init__(self, script: Callable[[Request], str | None]) -> None:
        self._script = script
        self.asked: list[str] = []

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """One reply after the other."""
        for request in requests:
            self.asked.append(request.request_id)
            raw = self._script(request)
            if raw is not None:
                yield Reply(request.request_id, raw)


def read_reply(raw: str, kind: Kind, card: Card, steps: Collection[int]) -> ParsedReply:
    return read_labels(find_in_reply(raw, kind), kind, card, steps)


def read_rules(raw: str, card: Card) -> ParsedReply:
    return read_rule_reply(find_in_reply(raw, "rules"), "rules", card)
