"""What the ledger speaks of: a run, a raw reply on the disk, how far a request is, and what a run came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from storage.ledger import BATCH, State
from storage.schema import Frozen

from ..costs import Tokens
from ..providers import Reply, parse_answer
from .batch_config import MOST_ATTEMPTS


@dataclass(frozen=True)
class Run:
    """One annotation run: what was asked about a dataset, of which model, in which words."""

    run_id: str
    dataset_id: str
    model: str
    prompt_version: str
    card_sha256: str
    config: Mapping[str, Any]
    first_action: int = 0  # the environment's value of the card's first discrete action


@dataclass(frozen=True)
class StoredReply:
    """A raw reply that is on the disk."""

    file: str  # relative to the store
    line: int
    record: RawReply


class RawReply(Frozen):
    """One line of a file of raw replies."""

    request_id: str
    provider: str
    recorded: bool
    received_at: str  # ISO 8601, UTC
    provenance: Mapping[str, Any]
    raw: str  # exactly as it came: a message, or a line of a batch's results
    batch_id: str | None = None  # the catalog's, of a request that was entered before it was sent

    @property
    def is_result_line(self) -> bool:
        """Whether the raw text is a line of a batch's results."""
        return self.provider == BATCH

    @property
    def message(self) -> str:
        """The model's message; empty if the reply is an error."""
        if not self.is_result_line:
            return self.raw
        try:
            return parse_answer(self.raw).raw or ""
        except ValueError:
            return ""


class Note(Frozen):
    """What is known about requests under way while the catalog cannot be written; the next command enters it."""

    batch_id: str
    remote_id: str | None = None  # the server has created the batch under this name
    created_at: datetime | None = None
    refused: str | None = None  # the server has created nothing, and why
    sent: tuple[str, ...] | None = None  # of single calls: those that were made, all others were not
    failures: tuple[Reply, ...] = ()  # of those: how they ended without a message


@dataclass(frozen=True)
class RequestStatus:
    """How far a request is."""

    state: State
    error: str | None
    attempts: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it may be asked now: it is not under way, and was not asked in vain too often."""
        return self.state == "pending" or (self.state == "failed" and self.attempts < MOST_ATTEMPTS)


@dataclass(frozen=True)
class Totals:
    """What a run has brought and cost."""

    labels: int
    rejections: int
    tokens: Tokens
    cost_usd: float
    rules: int = 0
    estimated_usd: float | None = None  # what the answered requests were expected to cost when they were sent
