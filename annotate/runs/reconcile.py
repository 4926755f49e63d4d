"""Batches whose creation was not confirmed: adopted from the server's list, or given up after a grace period.

A batch of the server is ours if nobody has claimed it, it is not much older than ours, and its results name all our
requests and none that this store asked elsewhere. What another account sent is adopted if it is found, and never given
up because it is not. What was given up, and shows up later, is adopted after all. Nothing is created here.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from storage.errors import BadInput, CatalogLocked, ProviderFailed
from storage.ledger import (
    Batch,
    add_twin,
    adopt_batch,
    asked_elsewhere,
    close_batch,
    count_alike,
    end_items,
    find_adopted,
    find_batches,
    find_given_up,
    item_outcomes,
    known_remotes,
    mark_unsure,
    remotes_of,
)
from storage.store import Store

from ..ledger import owned_run
from ..providers import RESULTS_KEPT_DAYS, BatchServer, BrokenOffError, NotThereError, RemoteBatch, parse_result

LOOK_BACK = timedelta(hours=25)
"""How much older than ours a batch may seem to be: a server's clocks differ, by an hour where one knows no summer."""


AT_ONCE = timedelta(minutes=10)
"""How far two batches that one sending has made are apart at most."""


class Found(NamedTuple):
    """What a server's list says about one of our batches."""

    matches: list[RemoteBatch]  # those that hold its requests, the likeliest first
    is_waiting: bool  # whether one that has not ended, or cannot be read, may still turn out to be it


@contextmanager
def if_free(store: Store, run_id: str) -> Generator[bool]:
    """Be the only process that works on a run, or learn that another one does."""
    with ExitStack() as stack:
        try:
            stack.enter_context(owned_run(store, run_id))
            is_mine = True
        except CatalogLocked:
            is_mine = False
        yield is_mine


def find_shipped(store: Store, server: BatchServer, states: Collection[str]) -> list[Batch]:
    """The batches that were sent to a server, in some states."""
    with store.catalog.read() as con:
        return [batch for batch in find_batches(con, states) if batch.base_url == server.base_url]


def reconcile(store: Store, server: BatchServer, grace_s: float) -> list[str]:
    """Settle all batches whose outcome is unknown; those of a run that another process works on are left to it.

    Args:
        store: holds the ledger.
        server: where they were sent.
        grace_s: seconds of the server's clock that a batch has to show up, from the first time it is missed.

    Returns:
        What remains unknown, and what was found out, in words.
    """
    findings: list[str] = []
    for batch in find_shipped(store, server, ["intent"]):
        with if_free(store, batch.run_id) as is_mine:
            if is_mine:
                findings += _settle(store, server, batch.batch_id, timedelta(seconds=grace_s))
            else:
                findings.append(f"{batch.batch_id} belongs to a run that another process works on")
    return [*findings, *_adopt_late(store, server)]


def give_up(store: Store, batch_id: str) -> int:
    """Give up a batch that is under way or unknown: its requests may be asked again, and it counts at its worst price.

    If it is found after all, with the key that sent it, its answers are taken in.

    Returns:
        How many requests are free now.

    Raises:
        BadInput: if no such batch is under way.
        CatalogLocked: if another process works on its run.
    """
    with store.catalog.read() as con:
        known = {batch.batch_id: batch for batch in find_batches(con, ["intent", "submitted"])}
    if batch_id not in known:
        shown = ", ".join(known) or "none"
        raise BadInput(f"No batch {batch_id!r} is under way.", f"Batches under way: {shown}.")
    with owned_run(store, known[batch_id].run_id), store.catalog.write() as con:
        freed = end_items(con, batch_id, "released", None)
        close_batch(con, batch_id, "abandoned", "given up by hand")
    return freed


def is_from_here(store: Store, server: BatchServer, batch: Batch) -> bool:
    """Whether a batch was sent to this server, by an account that sees what this one sees.

    Another key of the same organisation counts where the server shows it a batch that the other key has sent.
    """
    if batch.base_url != server.base_url:
        return False
    if batch.account is None or batch.account == server.account:
        return True
    if batch.organisation and server.organisation and batch.organisation != server.organisation:
        return False
    with store.catalog.read() as con:
        remotes = remotes_of(con, batch.account)
    return any(_is_shown(server, remote_id) for remote_id in remotes)


def tell_elsewhere(server: BatchServer, batch: Batch) -> str:
    """Why a batch cannot be settled from here, and what to do."""
    place = "another key" if batch.base_url == server.base_url else f"--base-url {batch.base_url}"
    return (
        f"{batch.batch_id} was sent with {place}: use that again, "
        f"or give it up with `trajnote annotate poll --give-up {batch.batch_id}`"
    )


def _settle(store: Store, server: BatchServer, batch_id: str, grace: timedelta) -> list[str]:
    """Adopt one batch, or abandon it, or say what keeps it unknown."""
    batch = next((batch for batch in find_shipped(store, server, ["intent"]) if batch.batch_id == batch_id), None)
    if batch is None:
        return []
    now = server.now()
    is_here = is_from_here(store, server, batch)
    if is_here:
        with store.catalog.write() as con:
            mark_unsure(con, batch_id, now)
    found = _look_for(store, server, batch, server.newer_than((batch.marker or now) - LOOK_BACK))
    if found.matches:
        return _adopt(store, batch, found.matches)
    if not is_here:
        return [tell_elsewhere(server, batch)]
    if found.is_waiting:
        return [f"{batch_id} may be a batch that the server has not finished; it is settled when that has ended"]
    if now - (batch.unsure_since or now) < grace:
        return [f"{batch_id} is not on the server's list; it is given up after {grace.total_seconds():g} s"]
    with store.catalog.write() as con:
        end_items(con, batch_id, "released", None)
        close_batch(con, batch_id, "abandoned", "the server never showed it")
    return [f"{batch_id} is given up: the server's list does not show it; it counts at its worst price"]


def _adopt_late(store: Store, server: BatchServer) -> list[str]:
    """Adopt batches that were given up and show up now, and second ones of those that were found before.

    Their answers count, though they may have been asked again.
    """
    with store.catalog.read() as con:
        given_up = [batch for batch in find_given_up(con) if batch.base_url == server.base_url]
        found = [batch for batch in find_adopted(con) if batch.base_url == server.base_url]
    if not given_up and not found:
        return []
    now = server.now()
    late = [batch for batch in given_up if now - (batch.marker or now) < timedelta(days=RESULTS_KEPT_DAYS)]
    lately = [batch for batch in found if now - (batch.marker or now) < LOOK_BACK]
    if not late and not lately:
        return []
    listed = server.newer_than(min(batch.marker or now for batch in [*late, *lately]) - LOOK_BACK)
    findings: list[str] = []
    for batch in [*late, *lately]:
        with if_free(store, batch.run_id) as is_mine:
            if is_mine:
                findings += _adopt_one_late(store, server, batch, listed)
    return findings


def _adopt_one_late(store: Store, server: BatchServer, batch: Batch, listed: Sequence[RemoteBatch]) -> list[str]:
    if batch.submitted_at is not None and batch.state != "abandoned":
        twins = [
            remote
            for remote in _look_for(store, server, batch, listed).matches
            if abs(remote.created_at - batch.submitted_at) < AT_ONCE
        ]
        return _add_twins(store, batch, twins)
    matches = _find_late(store, server, batch, listed)
    return [f"{batch.batch_id} was given up, but exists after all", *_adopt(store, batch, matches)] if matches else []


def _find_late(store: Store, server: BatchServer, batch: Batch, listed: Sequence[RemoteBatch]) -> list[RemoteBatch]:
    if batch.remote_id is None:
        return _look_for(store, server, batch, listed).matches
    try:
        return [server.retrieve(batch.remote_id)]
    except (NotThereError, ProviderFailed):
        return []


def _look_for(store: Store, server: BatchServer, batch: Batch, listed: Sequence[RemoteBatch]) -> Found:
    """Compare our batch with those of the server that nobody has claimed."""
    with store.catalog.read() as con:
        known = known_remotes(con)
        items = set(item_outcomes(con, batch.batch_id))
        asked = asked_elsewhere(con, batch.batch_id)
    start = batch.marker - LOOK_BACK if batch.marker else None
    free = [
        remote
        for remote in listed
        if remote.remote_id not in known and not remote.vanished and (start is None or remote.created_at >= start)
    ]
    verdicts = [(_compare(server, remote, items, asked), remote) for remote in free]
    marker = batch.marker or datetime.now(UTC)
    matches = sorted((r for verdict, r in verdicts if verdict == "ours"), key=lambda r: abs(r.created_at - marker))
    return Found(matches, any(verdict == "waiting" for verdict, _ in verdicts))


def _compare(
    server: BatchServer, remote: RemoteBatch, items: set[str], asked: Collection[str]
) -> Literal["ours", "waiting", "other"]:
    """Whether a batch of the server holds our requests.

    Args:
        server: whose results are read, as far as needed.
        remote: one that nobody has claimed.
        items: our requests.
        asked: requests of this store's other batches; what holds one of them is one of those.
    """
    spare = max(2, len(items) // 10)  # a server may add a few that nobody asked
    if remote.requests and not len(items) <= remote.requests <= len(items) + spare:
        return "other"
    if not remote.ended:
        return "waiting"
    found: set[str] = set()
    try:
        for line in server.results(remote):
            if (answer := parse_result(line)) is None:
                continue
            found.add(answer.request_id)
            if answer.request_id in asked or len(found) > len(found & items) + spare:
                return "other"
    except (NotThereError, BrokenOffError):
        return "waiting"
    if found >= items:
        return "ours"
    return "other" if len(found) >= remote.requests > 0 else "waiting"  # results may end early without any error


def _adopt(store: Store, batch: Batch, matches: Sequence[RemoteBatch]) -> list[str]:
    """The likeliest match is our batch; one more is a second one of the same requests, made by one sending."""
    with store.catalog.write() as con:
        adopt_batch(con, batch.batch_id, matches[0].remote_id, matches[0].created_at)
    return _add_twins(store, batch, matches[1:])


def _add_twins(store: Store, batch: Batch, matches: Sequence[RemoteBatch]) -> list[str]:
    """Enter further batches of the server with the same requests, but for those that other batches of ours may be."""
    if not matches:
        return []
    with store.catalog.write() as con:
        spare = matches[count_alike(con, batch.batch_id) :]
        for remote in spare:
            add_twin(con, batch, remote.remote_id, remote.created_at)
    twice = f"{batch.batch_id} is at the server twice: both were billed and count; the second is"
    return [f"{twice} {remote.remote_id}" for remote in spare]


def _is_shown(server: BatchServer, remote_id: str) -> bool:
    try:
        server.retrieve(remote_id)
    except (NotThereError, ProviderFailed):
        return False
    return True
