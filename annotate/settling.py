"""Batches of which nobody knows whether the server has them: adopted from its list, or given up after a grace period.

A batch is adopted only if it was made after ours was sent, is not known, has as many requests, has ended, and its
results name exactly our requests. Nothing is created here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from storage.errors import CatalogLocked
from storage.files import owned
from storage.store import Store

from . import batches
from .batches import Batch
from .providers.batch import BatchServer, BrokenOffError, NotThereError, RemoteBatch

SLACK = timedelta(minutes=5)
"""How much a server's clocks may differ among themselves."""


@contextmanager
def owned_run(store: Store, run_id: str) -> Generator[None]:
    """Be the only process that works on a run.

    Raises:
        CatalogLocked: if another one does.
    """
    folder = store.responses_dir(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    with owned(folder, f"the answers of {run_id}"):
        yield


def find_shipped(store: Store, server: BatchServer, states: Collection[str]) -> list[Batch]:
    """The batches that were sent to a server, in some states."""
    with store.catalog.read() as con:
        return [batch for batch in batches.find_batches(con, states) if batch.base_url == server.base_url]


def reconcile(store: Store, server: BatchServer, grace_s: float) -> list[str]:
    """Settle all batches whose outcome is unknown; those of a run that another process works on are left to it.

    Args:
        store: holds the ledger.
        server: where they were sent.
        grace_s: seconds of the server's clock that a batch has to show up, from the first time it is missed.

    Returns:
        What remains unknown, in words.
    """
    remaining: list[str | None] = []
    for batch in find_shipped(store, server, ["intent"]):
        try:
            with owned_run(store, batch.run_id):
                remaining.append(_settle(store, server, batch.batch_id, timedelta(seconds=grace_s)))
        except CatalogLocked:
            remaining.append(f"{batch.batch_id} belongs to a run that another process works on")
    return [said for said in remaining if said]


def read_ids(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The request that each line of results names, and the line; lines that name none are left out."""
    for line in lines:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict) and isinstance(content.get("custom_id"), str):
            yield content["custom_id"], line


def _settle(store: Store, server: BatchServer, batch_id: str, grace: timedelta) -> str | None:
    """Adopt one batch, or abandon it, or say what keeps it unknown."""
    batch = next((batch for batch in find_shipped(store, server, ["intent"]) if batch.batch_id == batch_id), None)
    if batch is None:
        return None
    now = server.now()
    unsure_since = batch.unsure_since or now
    with store.catalog.write() as con:
        batches.mark_unsure(con, batch_id, now)
    adopted, is_waiting = _adopt(store, server, batch, now)
    if adopted:
        return None
    if is_waiting:
        return f"{batch_id} may be a batch that the server has not finished; it is settled when that has ended"
    if now - unsure_since < grace:
        return f"{batch_id} is not on the server's list; it is given up after {grace.total_seconds():g} s"
    with store.catalog.write() as con:
        batches.end_items(con, batch_id, "released", None)
        batches.close_batch(con, batch_id, "abandoned", "the server never had it")
    return None


def _adopt(store: Store, server: BatchServer, batch: Batch, now: datetime) -> tuple[bool, bool]:
    """Whether a batch of the server is ours, and if not, whether one of them may still turn out to be."""
    with store.catalog.read() as con:
        known = batches.known_remotes(con)
        items = set(batches.item_outcomes(con, batch.batch_id))
    is_waiting = False
    for remote in server.newer_than((batch.marker or now) - SLACK):
        if remote.remote_id in known or remote.requests != len(items) or remote.vanished:
            continue
        found = _request_ids(server, remote) if remote.ended else None
        if found == items:
            with store.catalog.write() as con:
                batches.mark_submitted(con, batch.batch_id, remote.remote_id, remote.created_at)
            return True, False
        is_waiting = is_waiting or found is None
    return False, is_waiting


def _request_ids(server: BatchServer, remote: RemoteBatch) -> set[str] | None:
    """The requests of an ended batch; None if they cannot be read now, or not all of them."""
    try:
        found = {request_id for request_id, _ in read_ids(server.results(remote))}
    except (NotThereError, BrokenOffError):
        return None
    return found if len(found) >= remote.requests else None  # results may end early without any error
