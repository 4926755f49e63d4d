"""What an earlier command left behind when it was killed: replies that landed but were not entered, and dead calls."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

from pydantic import ValidationError

from storage.catalog import Connection
from storage.disk import write_whole
from storage.errors import CatalogLocked, TrajnoteError
from storage.ledger import (
    Batch,
    close_batch,
    end_calls,
    end_items,
    entered_replies,
    find_batches,
    live_runs,
    mark_submitted,
    note_error,
    note_outcomes,
    refuse_batch,
    unsettled_items,
)
from storage.schema import Frozen
from storage.store import Store

from ..providers import Reply
from .ledger import MOST_ATTEMPTS, StoredReply, enter_landed, owned_run, read_whole

_NOTE = ".note.json"


def add_what_is_kept(error: Exception, replies: int) -> Exception:
    """An error of ours that also says what becomes of replies that landed and could not be entered; others as is."""
    if not isinstance(error, TrajnoteError) or not replies:
        return error
    kept = f"{replies} replies are on the disk, and the next `trajnote annotate` command enters them"
    return type(error)(f"{error.problem.rstrip('.')}; {kept}.", error.hint)


class Note(Frozen):
    """What is known about requests under way while the catalog cannot be written; the next command enters it."""

    batch_id: str
    remote_id: str | None = None  # the server has created the batch under this name
    created_at: datetime | None = None
    refused: str | None = None  # the server has created nothing, and why
    sent: tuple[str, ...] | None = None  # of single calls: those that were made, all others were not
    failures: tuple[Reply, ...] = ()  # of those: how they ended without a message


def recover(store: Store, most_attempts: int = MOST_ATTEMPTS) -> int:
    """Enter replies that landed but were not entered, then free requests whose command has died.

    Returns:
        How many replies there were.
    """
    with store.catalog.read() as con:
        runs, entered = live_runs(con), entered_replies(con)
        outcomes = unsettled_items(con)
        calls = find_batches(con, ["submitted"], provider=None)
    found = [
        landed
        for run_id in runs
        for landed in read_whole(store, run_id)
        if (landed.file, landed.line) not in entered and _takes_effect(landed, outcomes)
    ]
    if found:
        with store.catalog.write() as con:
            enter_landed(con, found, most_attempts)
    noted = {batch_id for run_id in runs for batch_id in _enter_notes(store, run_id)}
    for batch in calls:
        if batch.batch_id not in noted:
            _free_dead_calls(store, batch)
    return len(found)


def _takes_effect(landed: StoredReply, outcomes: Mapping[tuple[str, str], str | None]) -> bool:
    """Whether a reply that was not entered says something new: a first outcome, or a message in place of a failure."""
    if landed.batch_id is None:
        return True
    key = (landed.batch_id, landed.request_id)
    return key in outcomes and (outcomes[key] is None or bool(landed.message))


def enter_failure(con: Connection, batch_id: str | None, reply: Reply) -> None:
    """Enter why a request has no reply."""
    note_error(con, reply.request_id, reply.error, final=reply.final)
    if batch_id is not None:
        note_outcomes(con, batch_id, {reply.request_id: "unknown" if reply.unknown else "errored"})


def leave_note(store: Store, run_id: str, note: Note) -> None:
    """Put what cannot be entered now beside the run's raw replies."""
    write_whole(store.responses_dir(run_id) / f"{note.batch_id}{_NOTE}", note.model_dump_json().encode())


def settle(store: Store, run_id: str, note: Note) -> None:
    """Enter what is known about a batch; where the catalog cannot be written, a note keeps it for the next command."""
    try:
        with store.catalog.write() as con:
            _enter_note(con, note)
    except BaseException:
        leave_note(store, run_id, note)
        raise


def _enter_notes(store: Store, run_id: str) -> list[str]:
    """Enter what earlier commands could not; a note goes away after that, and entering it twice is once.

    Returns:
        The batches that notes were about.
    """
    noted: list[str] = []
    for path in sorted(store.responses_dir(run_id).glob(f"*{_NOTE}")):
        with suppress(ValidationError):  # a file of somebody else stays where it is
            note = Note.model_validate_json(path.read_bytes())
            with store.catalog.write() as con:
                _enter_note(con, note)
            path.unlink()
            noted.append(note.batch_id)
    return noted


def _enter_note(con: Connection, note: Note) -> None:
    if note.remote_id is not None and note.created_at is not None:
        mark_submitted(con, note.batch_id, note.remote_id, note.created_at)
    if note.refused is not None:
        refuse_batch(con, note.batch_id, note.refused)
    for reply in note.failures:
        enter_failure(con, note.batch_id, reply)
    if note.sent is not None:
        end_calls(con, note.batch_id, note.sent)


def _free_dead_calls(store: Store, batch: Batch) -> None:
    """Calls whose command was killed may have been answered and billed; nobody will know, so they are asked anew."""
    try:
        with owned_run(store, batch.run_id), store.catalog.write() as con:
            end_items(con, batch.batch_id, "lost", "its command was killed before the reply came")
            close_batch(con, batch.batch_id, "abandoned", "its command was killed")
    except CatalogLocked:  # its command is alive, or the next one frees them
        return
