"""What a run has come to, and what to do about requests that have no answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from storage.errors import ProviderFailed

from ..ledger import GO_ON, NO_BATCH, Totals

_REASONS = 4
"""Reasons that a message names."""

_ADVICE = (
    ("413", "Ask for less in each request: fewer --rows, --labels or, for rules, --tables."),
    ("--max-tokens", "What is answered is kept: with a larger --max-tokens only the others are asked again."),
    ("stream", "Requests are sent without streaming: name a server, or a proxy before it, that answers in one piece."),
)
"""What to do about a reason, by a word that stands in it."""


def advise(errors: Iterable[str], failed: int, stopped: str | None = None) -> str:
    """What to do about requests without an answer."""
    if stopped and stopped.startswith(NO_BATCH):
        return GO_ON
    found = [advice for word, advice in _ADVICE if any(word in error for error in errors)]
    if found:
        return " ".join(found)
    again = " `trajnote annotate retry` asks those anew that have failed." if failed else ""
    return f"What is answered is kept; the same command asks the others again.{again}"


@dataclass(frozen=True)
class RunSummary:
    """What a run has come to."""

    run_id: str
    dataset_id: str
    model: str
    episodes: int
    was_done: bool  # there was nothing left to do
    done: bool
    reused: int  # requests that were answered before this command
    asked: int  # requests that went to the provider now
    answered: int  # of those, how many got a reply
    pending: int  # requests without a reply; the same command asks them again
    failed: int  # of those, how many were refused by the server
    errors: Counter[str]  # what was said about requests without a reply, and how often
    stopped: str | None  # why no further request was sent
    estimated_usd: float | None  # what the answered requests were expected to cost when they were sent
    totals: Totals  # labels, rejections, tokens and dollars of the whole run
    under_way: int = 0  # of those, how many are in batches
    is_halted: bool = False  # it was stopped by what the server did, not by the budget

    @property
    def failure(self) -> ProviderFailed | None:
        """Why labels are missing, where that is the server's doing; None if nothing is missing for such a reason."""
        if not self.errors and not self.is_halted:
            return None
        reasons = [f"{count} times {error}" for error, count in self.errors.most_common(_REASONS)]
        if len(self.errors) > _REASONS:
            reasons.append(f"and {len(self.errors) - _REASONS} other reasons")
        missing = f"{self.errors.total()} of {self.pending + self.reused + self.answered} requests have no answer"
        said = [f"{missing}: {'; '.join(reasons)}"] if reasons else []
        problem = "; ".join([self.stopped, *said] if self.is_halted and self.stopped else said)
        return ProviderFailed(f"{problem}.", advise(self.errors, self.failed, self.stopped))
