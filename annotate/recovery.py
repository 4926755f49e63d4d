"""What an earlier command left behind when it was killed: replies that landed but were not entered, and dead calls."""

from __future__ import annotations

from collections.abc import Sequence

from storage.catalog import Connection
from storage.errors import CatalogLocked
from storage.files import owned
from storage.store import Store

from . import batches, ledger
from .batch_config import MOST_ATTEMPTS
from .batches import Batch
from .records import Landed

_LIVE_RUNS = """
SELECT run_id FROM annotation_runs WHERE state = 'open'
UNION SELECT run_id FROM batches WHERE state IN ('intent', 'submitted')
"""


def recover(store: Store, most_attempts: int = MOST_ATTEMPTS) -> int:
    """Enter replies that landed but were not entered, then free requests whose command has died.

    Returns:
        How many replies there were.
    """
    with store.catalog.read() as con:
        runs = [run_id for (run_id,) in con.execute(_LIVE_RUNS).fetchall()]
        entered = set(con.execute("SELECT file, line FROM responses").fetchall())
        waiting = set(con.execute("SELECT batch_id, request_id FROM batch_items WHERE outcome IS NULL").fetchall())
        calls = batches.find_batches(con, ["submitted"], provider=None)
    found = [
        landed
        for run_id in runs
        for landed in ledger.read_landed(store, run_id)
        if (landed.file, landed.line) not in entered
        and (landed.record.batch_id is None or (landed.record.batch_id, landed.record.request_id) in waiting)
    ]
    if found:
        with store.catalog.write() as con:
            enter_landed(con, found, most_attempts)
    for batch in calls:
        _free_dead_calls(store, batch)
    return len(found)


def enter_landed(con: Connection, landed: Sequence[Landed], most_attempts: int = MOST_ATTEMPTS) -> None:
    """Enter landed replies; a second time changes nothing."""
    single = [reply for reply in landed if reply.record.batch_id is None]
    if single:
        ledger.record_replies(con, single)
    for batch_id in dict.fromkeys(reply.record.batch_id for reply in landed):
        if batch_id is not None:
            mine = [reply for reply in landed if reply.record.batch_id == batch_id]
            batches.take_landed(con, batch_id, mine, most_attempts)


def _free_dead_calls(store: Store, batch: Batch) -> None:
    """Calls whose command was killed may have been answered and billed; nobody will know, so they are asked anew."""
    try:
        with owned(store.responses_dir(batch.run_id), f"the answers of {batch.run_id}"), store.catalog.write() as con:
            batches.end_items(con, batch.batch_id, "lost", "its command was killed before the reply came")
            batches.close_batch(con, batch.batch_id, "abandoned", "its command was killed")
    except CatalogLocked:  # its command is alive, or the next one frees them
        return
