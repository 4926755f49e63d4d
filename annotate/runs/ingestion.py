"""Results out of Message Batches: how far they are, and what came back, each item once.

Raw results are on the disk before anything reads them; small transactions enter them. Killed at any instant, the next
call goes on where this one was. What the replies say becomes labels in `ledger/readings.py`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from storage.errors import ProviderFailed
from storage.ledger import (
    Batch,
    close_batch,
    end_items,
    find_batches,
    item_outcomes,
    reasons_unanswered,
)
from storage.store import Store

from ..ledger import (
    GO_ON,
    BatchConfig,
    StoredReply,
    add_what_is_kept,
    digest,
    enter_landed,
    explain_dear_reply,
    land,
    read_whole,
    recover,
)
from ..parsing import clean_text
from ..providers import (
    RESULTS_KEPT_DAYS,
    BatchServer,
    BrokenOffError,
    NotThereError,
    RemoteBatch,
    ServerBusyError,
    parse_result,
)
from .reconcile import find_shipped, if_free, is_from_here, reconcile, tell_elsewhere

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
    failure: str | None = None  # why nothing is known of it

    @property
    def ended(self) -> bool:
        """Whether results can be fetched."""
        return self.remote is not None and self.remote.ended


@dataclass
class Ingested:
    """What an ingest has done."""

    batches: int = 0  # finished with
    answered: int = 0  # requests that got their reply
    returned: int = 0  # requests that came back without one: errored, canceled or expired
    under_way: int = 0  # batches that are not finished with
    reasons: Counter[str] = field(default_factory=Counter[str])  # of those, and how often
    read: int = 0  # replies that became labels and rejections
    warnings: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # batches and runs that could not be handled, and why
    problem: Exception | None = None  # why replies that landed could not be entered
    unentered: int = 0  # those replies


def poll(store: Store, server: BatchServer, config: BatchConfig) -> tuple[list[Polled], list[str]]:
    """Ask the server how far the batches of all runs are; unknown ones are settled first.

    Returns:
        The batches, and what remains unknown, in words.

    Raises:
        ProviderFailed: if the server does not answer at all; what it says of one batch stops no other one.
    """
    recover(store, config.attempts)
    unknown = reconcile(store, server, config.grace_s)
    with store.catalog.read() as con:
        shipped = find_batches(con, ["intent", "submitted"])
    unknown += [tell_elsewhere(server, batch) for batch in shipped if batch.base_url != server.base_url]
    return [_look(store, server, batch) for batch in find_shipped(store, server, ["submitted"])], unknown


def ingest(store: Store, server: BatchServer, config: BatchConfig, *, chunk: int = CHUNK) -> Ingested:
    """Fetch the results of ended batches, of all runs, and enter replies and labels.

    Args:
        store: holds the ledger.
        server: where the batches are.
        config: how often a request may come back without a reply, and how long a lost batch is waited for.
        chunk: results that are entered in one transaction.

    Raises:
        ProviderFailed: if the server does not answer at all; what fails about one batch is in `failed`.
        CatalogLocked: if another process holds the catalog for long; what was fetched is on the disk, and the next
            command enters it.
    """
    polled, unknown = poll(store, server, config)
    done = Ingested(
        warnings=[*unknown, *(found.warning for found in polled if found.warning)],
        failed=[found.failure for found in polled if found.failure],
    )
    for found in polled:
        if found.remote is not None and (found.ended or found.remote.vanished):
            _ingest_alone(store, server, config, found, done, chunk)
    if done.problem is not None:
        raise add_what_is_kept(done.problem, done.unentered)
    done.read = digest(store, done.failed)
    done.under_way = len(find_shipped(store, server, ["intent", "submitted"]))
    return done


def _ingest_alone(
    store: Store, server: BatchServer, config: BatchConfig, found: Polled, done: Ingested, chunk: int
) -> None:
    """One batch, if nobody else works on its run; what is wrong with it is said, and stops no other one."""
    with if_free(store, found.run_id) as is_mine:
        if not is_mine:
            done.warnings.append(f"{found.batch_id} is left to the process that works on {found.run_id}")
            return
        try:
            _ingest_batch(store, server, config, found, done, chunk)
        except ProviderFailed as error:
            done.failed.append(f"{found.batch_id}: {error}")


def _look(store: Store, server: BatchServer, batch: Batch) -> Polled:
    """How far a batch is; a server that answers nothing else either is out of reach."""
    remote_id = batch.remote_id or ""
    remote, warning, failure = None, None, None
    try:
        remote = server.retrieve(remote_id)
        warning = _warn(batch.batch_id, remote, server.now()) if remote.ended else None
    except NotThereError as error:
        warning = f"{batch.batch_id} is not listed by the server now: {error}"
        if not is_from_here(store, server, batch):
            warning = tell_elsewhere(server, batch)
    except ServerBusyError as error:
        server.now()
        failure = f"{batch.batch_id}: {error.problem}"
    except ProviderFailed as error:
        failure = f"{batch.batch_id}: {error.problem}"
    return Polled(batch.batch_id, batch.run_id, remote_id, remote, warning, failure)


def _warn(batch_id: str, remote: RemoteBatch, now: datetime) -> str | None:
    vanishes = remote.created_at + timedelta(days=RESULTS_KEPT_DAYS)
    if remote.vanished:
        return f"{batch_id}: the server has deleted its results, {RESULTS_KEPT_DAYS} days after the batch was made"
    if vanishes - now > timedelta(days=WARN_DAYS):
        return None
    return (
        f"{batch_id}: its results are deleted on {vanishes:%Y-%m-%d %H:%M} UTC; `trajnote annotate ingest` fetches them"
    )


def _ingest_batch(
    store: Store, server: BatchServer, config: BatchConfig, found: Polled, done: Ingested, chunk: int
) -> None:
    with store.catalog.read() as con:
        outcomes = item_outcomes(con, found.batch_id)
    if found.remote is None or found.remote.vanished:
        with store.catalog.write() as con:
            end_items(con, found.batch_id, "lost", "its results were thrown away unread", failed=True)
            close_batch(con, found.batch_id, "abandoned", "its results were thrown away unread")
        return
    results = _Results(found, outcomes, _lines_landed(store, found) if any(outcomes.values()) else set())
    try:
        for replies in results.chunks(server.results(found.remote), chunk):
            _take(store, found, replies, config.attempts, done)
    except (NotThereError, BrokenOffError) as error:
        done.warnings.append(f"{found.batch_id}: {error}; the next ingest continues")
        return
    if results.foreign:
        done.warnings.append(
            f"{found.batch_id}: its results name {len(results.foreign)} requests that are not in the batch, "
            f"such as {clean_text(min(results.foreign), 80)}; they are left out"
        )
    if done.problem is None:
        _finish(store, found, results, done)


def _finish(store: Store, found: Polled, results: _Results, done: Ingested) -> None:
    """All results were read: the batch is finished with, unless some are still to come."""
    missing = results.missing
    counted = found.remote.requests if found.remote else 0
    open_ = results.unread if len(results.seen) < counted else missing if not counted or results.foreign else set[str]()
    if open_:
        done.warnings.append(f"{found.batch_id}: {len(open_)} of its requests have no result yet")
        return
    with store.catalog.write() as con:
        end_items(con, found.batch_id, "missing", "the results of its batch do not name it")
        close_batch(con, found.batch_id, "ingested", None, found.remote.ended_at if found.remote else None)
    if missing:
        done.warnings.append(f"{found.batch_id}: {len(missing)} of its requests have no result, by the server's count")
    with store.catalog.read() as con:
        if (dear := explain_dear_reply(con, found.run_id)) is not None:
            done.warnings.append(f"{found.batch_id}: {dear}; no further batch of {found.run_id} is sent. {GO_ON}")
    done.batches += 1


@dataclass
class _Results:
    """The results of one batch, sorted: messages can be taken as they come, failures when all lines were read.

    A server may name a request twice, in whatever order; then the message counts, for it was paid for.
    """

    found: Polled
    outcomes: Mapping[str, str | None]  # the requests of the batch, and what became of each before
    landed: set[str]  # hashes of its lines that are on the disk already
    seen: set[str] = field(default_factory=set[str])  # all that the results name
    failures: list[StoredReply] = field(default_factory=list[StoredReply])

    @property
    def foreign(self) -> set[str]:
        """What the results name and the batch did not ask."""
        return self.seen - self.outcomes.keys()

    @property
    def missing(self) -> set[str]:
        """Requests without any result."""
        return {key for key, outcome in self.outcomes.items() if outcome is None} - self.seen

    @property
    def unread(self) -> set[str]:
        """Requests without a message that the results do not name; one that failed before may have one after all."""
        return {key for key, outcome in self.outcomes.items() if outcome != "succeeded"} - self.seen

    def chunks(self, lines: Iterable[str], size: int) -> Iterator[list[StoredReply]]:
        """Results that are new, in parts of at most `size`, of which each names a request once."""
        yield from filter(None, _parts(self._messages(lines), size))
        yield from filter(None, _parts(self.failures, size))

    def _messages(self, lines: Iterable[str]) -> Iterator[StoredReply]:
        for line in lines:
            if (answer := parse_result(line)) is None:
                continue
            self.seen.add(answer.request_id)
            mark = _hash(line)
            if answer.request_id not in self.outcomes or mark in self.landed:
                continue
            self.landed.add(mark)
            reply = StoredReply.from_result(self.found.batch_id, self.found.remote_id, line, answer)
            if answer.raw is not None:
                yield reply
            else:
                self.failures.append(reply)


def _parts(replies: Iterable[StoredReply], size: int) -> Iterator[list[StoredReply]]:
    """Replies in parts; where reading breaks off, what was read comes first."""
    part: dict[str, StoredReply] = {}
    try:
        for reply in replies:
            if reply.request_id in part or len(part) >= size:
                yield list(part.values())
                part = {}
            part[reply.request_id] = reply
    except (NotThereError, BrokenOffError):
        yield list(part.values())
        raise
    yield list(part.values())


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode("utf-8", "replace")).hexdigest()


def _lines_landed(store: Store, found: Polled) -> set[str]:
    """Hashes of a batch's lines that are on the disk."""
    return {_hash(landed.raw) for landed in read_whole(store, found.run_id) if landed.batch_id == found.batch_id}


def _take(store: Store, found: Polled, replies: Sequence[StoredReply], attempts: int, done: Ingested) -> None:
    """Land some results, then enter them; where the catalog cannot be written, the next command enters them."""
    landed = land(store, found.run_id, replies)
    if done.problem is None:
        try:
            _enter(store, found, landed, attempts, done)
        except Exception as error:
            done.problem = error
    if done.problem is not None:
        done.unentered += len(landed)


def _enter(store: Store, found: Polled, landed: Sequence[StoredReply], attempts: int, done: Ingested) -> None:
    with store.catalog.write() as con:
        taken = enter_landed(con, landed, attempts)
    with store.catalog.read() as con:
        vain = reasons_unanswered(con, [reply.request_id for reply in taken])
    answered = len(taken) - vain.total()
    done.answered += answered
    done.reasons += vain
    done.returned += len(taken) - answered
