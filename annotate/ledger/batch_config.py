"""How requests travel in Message Batches: sizes, numbers and patience. It sends nothing and loads quickly."""

from __future__ import annotations

from pydantic import Field

from storage.schema import Frozen

MOST_REQUESTS = 100_000
"""Requests in one batch that Anthropic takes."""
MOST_ATTEMPTS = 5
"""How often a batch may return a request without a reply before it counts as failed."""


class BatchConfig(Frozen):
    """How requests travel in Message Batches."""

    size: int = Field(default=1_000, ge=1, le=MOST_REQUESTS, description="requests in a batch, at most")
    in_flight: int = Field(default=4, ge=1, le=100, description="batches of a run under way at once")
    grace_s: float = Field(
        default=180.0, ge=0, description="seconds that a lost batch has to show up on the server's list; 120 or more"
    )
    attempts: int = Field(default=MOST_ATTEMPTS, ge=1, description="how often a request may come back unanswered")
    retry_failed: bool = Field(default=False, description="ask again what was refused or came back too often")
