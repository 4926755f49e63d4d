"""Telling people: failures and promotions go to one of Prefect's own blocks, loaded by name.

Its address and secrets stay in the block. A notice that cannot be delivered changes nothing but a note.
"""

from __future__ import annotations

import inspect
from typing import Any

from prefect.blocks.core import Block
from prefect.utilities.asyncutils import run_coro_as_sync

from .night import Night


def notify(block: str | None, subject: str, body: str) -> str | None:
    """Send a notice through a block with `notify` (Slack, Teams, e-mail, ...) or `call` (Webhook).

    Args:
        block: `block-type/name`; nothing is sent when None.
        subject: one line.
        body: the text.

    Returns:
        Why it could not be delivered, without the block's address; None if it was, or nothing was to be sent.
    """
    if block is None:
        return None
    try:
        loaded: Any = _wait(Block.load(block))
        if hasattr(loaded, "notify"):
            _wait(loaded.notify(body, subject))
            return None
        if not hasattr(loaded, "call"):
            return f"nobody was told: the block {block} can neither notify nor call"
        answer = _wait(loaded.call({"subject": subject, "text": f"{subject}\n{body}"}))
        status = getattr(answer, "status_code", 200)
        return None if status < 400 else f"nobody was told: {block} was answered with {status}"
    except Exception as error:  # whatever a block of any kind raises; its text may hold the address
        return f"nobody was told: the block {block} failed with {type(error).__name__}"


def tell_promotion(block: str | None, night: Night) -> str | None:
    """Send a notice if a night has promoted a policy; returns as `notify`."""
    if not night.promoted:
        return None
    return notify(block, f"trajnote {night.deployment}: {night.policy_id} is in force", "\n".join(night.verdicts))


def tell_warnings(block: str | None, night: Night) -> str | None:
    """Send a notice of what a night warns of, if there is anything; returns as `notify`."""
    if not night.warnings:
        return None
    return notify(block, f"trajnote {night.deployment} warns", "\n".join(night.warnings))


def tell_failure(block: str | None, deployment: str, error: Exception) -> str | None:
    """Send a notice of a failure; returns as `notify`."""
    return notify(block, f"trajnote {deployment} failed", f"{error}" or type(error).__name__)


def _wait(value: Any) -> Any:
    return run_coro_as_sync(value) if inspect.iscoroutine(value) else value
