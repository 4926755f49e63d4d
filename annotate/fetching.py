"""Results out of Message Batches: how far they are, and what came back, each item once.

Raw results are on the disk before anything reads them; small transactions enter them. Killed at any instant, the next
call goes on where this one was. What the replies say becomes labels in `digest.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice

from storage.errors import CatalogLocked
from storage.responses import append_responses
from storage.store import Store

from . import batches
from .batch_config import BatchConfig
from .batches import Batch
from .digest import digest
from .providers.batch import RESULTS_KEPT_DAYS, BatchServer, BrokenOffError, NotThereError, RemoteBatch
from .records import BATCH, Landed, RawReply
from .recovery import recover
from .settling import find_shipped, owned_run, read_ids, reconcile

WARN_DAYS = 7
"""Days before a server throws results away, from which on that is said."""
CHUNK = 50
"""Results that land with one touch of the disk and are entered in one transaction."""


@dataclass(frozen=True)
class Polled:
    """One batch as the server sees it now."""

    batch_id: str
    run_id: str
    remote_id: str
    remote: RemoteBatch | None  # None while the server does not show it
    warning: str | None

    @property
    def ended(self) -> bool:
        """Whether results can be fetched."""
        return self.remote is not None and self.remote.ended

    @property
    def ended_at(self) -> datetime | None:
        """When the server had finished it."""
        return self.remote.ended_at if self.remote else None


@dataclass
class Ingested:
    """What an ingest has done."""

    batches: int = 0  # finished with
    answered: int = 0  # requests that got their reply
    returned: int = 0  # requests that came back without one: errored, canceled or expired
    under_way: int = 0  # batches that are not finished with
    read: int = 0  # replies that became labels and rejections
    warnings: list[str] = field(default_factory=list)


def poll(store: Store, server: BatchServer, config: BatchConfig) -> tuple[list[Polled], list[str]]:
    """Ask the server how far the batches of all runs are; unknown ones are settled first.

    Returns:
        The batches, and what remains unknown, in words.

    Raises:
        ProviderFailed: if the server does not answer.
    """
    recover(store, config.attempts)
    unknown = reconcile(store, server, config.grace_s)
    return [_look(store, server, batch) for batch in find_shipped(store, server, ["submitted"])], unknown


def ingest(store: Store, server: BatchServer, config: BatchConfig) -> Ingested:
    """Fetch the results of ended batches, of all runs, and enter replies and labels.

    Raises:
        ProviderFailed: if the server does not answer.
    """
    polled, unknown = poll(store, server, config)
    done = Ingested(warnings=[*unknown, *(found.warning for found in polled if found.warning)])
    for found in polled:
        if found.remote is None or not (found.ended or found.remote.vanished):
            continue
        try:
            with owned_run(store, found.run_id):
                _ingest_batch(store, server, config, found, done)
        except CatalogLocked:
            done.warnings.append(f"{found.batch_id} is left to the process that works on {found.run_id}")
    done.read = digest(store)
    done.under_way = len(find_shipped(store, server, ["intent", "submitted"]))
    return done


def _look(store: Store, server: BatchServer, batch: Batch) -> Polled:
    remote_id = batch.remote_id or ""
    try:
        remote = server.retrieve(remote_id)
    except NotThereError as error:
        said = f"{batch.batch_id} is not shown by the server now: {error}"
        return Polled(batch.batch_id, batch.run_id, remote_id, None, said)
    warning = _warn(batch.batch_id, remote, server.now()) if remote.ended else None
    return Polled(batch.batch_id, batch.run_id, remote_id, remote, warning)


def _warn(batch_id: str, remote: RemoteBatch, now: datetime) -> str | None:
    vanishes = remote.created_at + timedelta(days=RESULTS_KEPT_DAYS)
    if remote.vanished:
        return f"{batch_id}: the server has thrown its results away, {RESULTS_KEPT_DAYS} days after it was made"
    if vanishes - now > timedelta(days=WARN_DAYS):
        return None
    return f"{batch_id}: its results vanish on {vanishes:%Y-%m-%d %H:%M} UTC; `trajnote annotate ingest` fetches them"


def _ingest_batch(store: Store, server: BatchServer, config: BatchConfig, found: Polled, done: Ingested) -> None:
    with store.catalog.read() as con:
        outcomes = batches.item_outcomes(con, found.batch_id)
    waiting = {request_id for request_id, outcome in outcomes.items() if outcome is None}
    if found.remote is None or found.remote.vanished:
        with store.catalog.write() as con:
            batches.end_items(con, found.batch_id, "lost", "its results were thrown away unread", failed=True)
            batches.close_batch(con, found.batch_id, "abandoned", "its results were thrown away unread")
        return
    lines = ((key, line) for key, line in read_ids(server.results(found.remote)) if key in waiting)
    try:
        while waiting and (chunk := list(islice(lines, CHUNK))):
            waiting -= {request_id for request_id, _ in chunk}
            _take(store, found, dict(chunk), config.attempts, done, is_last=not waiting)
    except (NotThereError, BrokenOffError) as error:
        done.warnings.append(f"{found.batch_id}: {error}; the next ingest goes on")
        return
    if waiting:
        done.warnings.append(f"{found.batch_id}: {len(waiting)} of its requests have no result yet")
        return
    if not any(outcome is None for outcome in outcomes.values()):  # killed after its last result was entered
        with store.catalog.write() as con:
            batches.close_batch(con, found.batch_id, "ingested", None, found.ended_at)
    done.batches += 1


def _take(store: Store, found: Polled, lines: dict[str, str], attempts: int, done: Ingested, *, is_last: bool) -> None:
    """Land some results, then enter them; the batch is finished with the last of them."""
    landed = _land(store, found, [_record(found, request_id, line) for request_id, line in lines.items()])
    with store.catalog.write() as con:
        taken = batches.take_landed(con, found.batch_id, landed, attempts)
        if is_last:
            batches.close_batch(con, found.batch_id, "ingested", None, found.ended_at)
    answered = sum(bool(reply.record.message) for reply in taken)
    done.answered += answered
    done.returned += len(taken) - answered


def _land(store: Store, found: Polled, records: Sequence[RawReply]) -> list[Landed]:
    places = append_responses(store, found.run_id, [record.model_dump(mode="json") for record in records])
    return [Landed(file, line, record) for (file, line), record in zip(places, records, strict=True)]


def _record(found: Polled, request_id: str, line: str) -> RawReply:
    return RawReply(
        request_id=request_id,
        provider=BATCH,
        recorded=False,
        received_at=datetime.now(UTC).isoformat(),
        provenance={"remote_id": found.remote_id},
        raw=line.encode("utf-8", "replace").decode(),
        batch_id=found.batch_id,
    )
