"""Batches as rows of the catalog: each is entered with its price before it is sent, and each item ends once.

A batch is what one command sends: one POST of Message Batches, or the single calls of a synchronous run. Its life is
intent -> submitted -> ingested | abandoned; a request that is in one is asked by nobody else. Each verb is part of its
caller's write.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, NamedTuple

from ..catalog import Connection, insert_rows, select_column

BATCH = "batch"
"""The name of the provider whose raw replies are lines of a batch's results."""
End = Literal["refused", "released", "lost", "missing", "unknown"]
"""How an item ends without a result: nothing was created, nothing was found, results vanished, they lack it, or nobody
knows. All but the first may have been billed and count with the most they can have cost."""


@dataclass(frozen=True)
class Batch:
    """One row of the catalog's `batches`."""

    batch_id: str
    run_id: str
    base_url: str
    remote_id: str | None
    state: str
    requests: int
    marker: datetime | None
    unsure_since: datetime | None
    submitted_at: datetime | None
    account: str | None  # who sent it, as `BatchServer.account`; None in a ledger from before that was kept
    organisation: str | None


class BatchItem(NamedTuple):
    """A request of a batch, with what it will cost, as far as its model has a list price."""

    request_id: str
    estimated_usd: float | None
    worst_usd: float | None


class BilledReply(NamedTuple):
    """A reply out of a batch that another model gave, or that cost more than it may."""

    asked: str  # the model that was asked
    answered: str  # the one that answered
    tokens: tuple[int | None, int | None, int | None, int | None]  # input, cache write, cache read, output
    cost_usd: float | None
    worst_usd: float | None


def add_batch(
    con: Connection,
    run_id: str,
    provider: str,
    base_url: str,
    marker: datetime | None = None,
    *,
    account: str | None = None,
    organisation: str | None = None,
) -> str:
    """Enter a batch without items; a synchronous one is under way from the start."""
    batch_id = f"b_{secrets.token_hex(12)}"
    row = {
        "batch_id": batch_id,
        "run_id": run_id,
        "provider": provider,
        "base_url": base_url,
        "state": "intent" if provider == BATCH else "submitted",
        "requests": 0,
        "marker": marker,
        "account": account,
        "organisation": organisation,
    }
    insert_rows(con, "batches", [row], on_conflict="error")
    return batch_id


def claim_items(con: Connection, batch_id: str, items: Sequence[BatchItem], states: Collection[str]) -> set[str]:
    """Put requests into a batch, if they are still in one of some states; nobody else can ask them then.

    Returns:
        Those that could be had.
    """
    question = """UPDATE requests SET state = 'in_batch', updated_at = now()
                  WHERE request_id IN (SELECT unnest(?::VARCHAR[])) AND state IN (SELECT unnest(?::VARCHAR[]))
                  RETURNING request_id"""
    had = set(select_column(con, question, [[item.request_id for item in items], list(states)]))
    claimed = [{"batch_id": batch_id, **item._asdict()} for item in items if item.request_id in had]
    insert_rows(con, "batch_items", claimed, on_conflict="replace")
    con.execute("UPDATE batches SET requests = requests + ? WHERE batch_id = ?", [len(claimed), batch_id])
    return had


def mark_submitted(con: Connection, batch_id: str, remote_id: str, submitted_at: datetime) -> None:
    """Note that the server has a batch, under which name and since when."""
    con.execute(
        """UPDATE batches SET state = 'submitted', remote_id = ?, submitted_at = ?
           WHERE batch_id = ? AND state = 'intent'""",
        [remote_id, submitted_at, batch_id],
    )


def adopt_batch(con: Connection, batch_id: str, remote_id: str, submitted_at: datetime) -> None:
    """Note that an unknown batch, or one that was given up, is at the server; its requests are under way again."""
    con.execute(
        """UPDATE batches SET state = 'submitted', remote_id = ?, submitted_at = ?, error = NULL, ended_at = NULL
           WHERE batch_id = ? AND state IN ('intent', 'abandoned')""",
        [remote_id, submitted_at, batch_id],
    )
    con.execute("UPDATE batch_items SET outcome = NULL WHERE batch_id = ? AND outcome = 'released'", [batch_id])
    _hold_requests(con, batch_id)


def add_twin(con: Connection, batch: Batch, remote_id: str, submitted_at: datetime) -> str:
    """Enter a second batch of the server with the same requests: it costs as well, its answers are evidence."""
    twin_id = add_batch(
        con,
        batch.run_id,
        BATCH,
        batch.base_url,
        batch.marker,
        account=batch.account,
        organisation=batch.organisation,
    )
    con.execute(
        """INSERT INTO batch_items (batch_id, request_id, estimated_usd, worst_usd)
           SELECT ?, request_id, estimated_usd, worst_usd FROM batch_items WHERE batch_id = ?""",
        [twin_id, batch.batch_id],
    )
    con.execute("UPDATE batches SET requests = ? WHERE batch_id = ?", [batch.requests, twin_id])
    mark_submitted(con, twin_id, remote_id, submitted_at)
    _hold_requests(con, twin_id)
    return twin_id


def _hold_requests(con: Connection, batch_id: str) -> None:
    """Nobody else asks what a batch has under way."""
    con.execute(
        """UPDATE requests SET state = 'in_batch', updated_at = now() WHERE state = 'pending'
               AND request_id IN (SELECT request_id FROM batch_items WHERE batch_id = ? AND outcome IS NULL)""",
        [batch_id],
    )


def mark_unsure(con: Connection, batch_id: str, since: datetime | None, error: str | None = None) -> None:
    """Note that nobody knows whether the server has a batch; only the first time counts."""
    con.execute(
        """UPDATE batches SET unsure_since = coalesce(unsure_since, ?), error = coalesce(?, error)
           WHERE batch_id = ? AND state = 'intent'""",
        [since, error, batch_id],
    )


def end_items(con: Connection, batch_id: str, outcome: End, error: str | None, *, failed: bool = False) -> int:
    """End all items of a batch that have no result, and free their requests; returns how many there were."""
    open_items = "SELECT request_id FROM batch_items WHERE batch_id = ? AND outcome IS NULL"
    con.execute(
        f"""UPDATE requests SET state = ?, error = ?, updated_at = now()
            WHERE state = 'in_batch' AND request_id IN ({open_items}) AND request_id NOT IN
                (SELECT request_id FROM batch_items WHERE batch_id <> ? AND outcome IS NULL)""",
        ["failed" if failed else "pending", error, batch_id, batch_id],
    )
    question = "UPDATE batch_items SET outcome = ? WHERE batch_id = ? AND outcome IS NULL RETURNING request_id"
    return len(select_column(con, question, [outcome, batch_id]))


def refuse_batch(con: Connection, batch_id: str, error: str) -> None:
    """End a batch that the server has certainly not created."""
    end_items(con, batch_id, "refused", None)
    close_batch(con, batch_id, "abandoned", error)


def end_calls(con: Connection, batch_id: str, sent: Collection[str]) -> None:
    """End the single calls of a command: those without an outcome may have been billed, those never sent were not."""
    con.execute(
        """UPDATE requests SET state = 'pending', updated_at = now() WHERE state = 'in_batch' AND request_id IN
               (SELECT request_id FROM batch_items WHERE batch_id = $batch AND outcome IS NULL
                AND request_id NOT IN (SELECT unnest($sent::VARCHAR[])))""",
        {"batch": batch_id, "sent": list(sent)},
    )
    con.execute(
        """UPDATE batch_items SET outcome = 'refused' WHERE batch_id = $batch AND outcome IS NULL
               AND request_id NOT IN (SELECT unnest($sent::VARCHAR[]))""",
        {"batch": batch_id, "sent": list(sent)},
    )
    end_items(con, batch_id, "unknown", "the command ended before the reply came")
    close_batch(con, batch_id, "ingested", None)


def close_batch(
    con: Connection,
    batch_id: str,
    state: Literal["ingested", "abandoned"],
    error: str | None,
    ended_at: datetime | None = None,
) -> None:
    """A batch is finished with, its items are ended already; `ended_at` is the server's word, or now."""
    con.execute(
        "UPDATE batches SET state = ?, error = ?, ended_at = coalesce(?, now()) WHERE batch_id = ?",
        [state, error, ended_at, batch_id],
    )


def note_outcomes(con: Connection, batch_id: str, outcomes: Mapping[str, str]) -> set[str]:
    """Note outcomes of items that have none, or have failed and are answered after all; which they were."""
    noted = select_column(
        con,
        """UPDATE batch_items SET outcome = new.outcome
           FROM (SELECT unnest($keys::VARCHAR[]) AS request_id, unnest($outcomes::VARCHAR[]) AS outcome) AS new
           WHERE batch_items.batch_id = $batch AND batch_items.request_id = new.request_id
               AND (batch_items.outcome IS NULL OR (new.outcome = 'succeeded' AND batch_items.outcome <> 'succeeded'))
           RETURNING batch_items.request_id""",
        {"keys": list(outcomes), "outcomes": list(outcomes.values()), "batch": batch_id},
    )
    return set(noted)


def find_batches(con: Connection, states: Collection[str], *, provider: str | None = BATCH) -> list[Batch]:
    """Batches in some states, the oldest first; of all providers but Message Batches when `provider` is None."""
    where = f"state IN (SELECT unnest(?::VARCHAR[])) AND provider {'=' if provider else '<>'} ?"
    return _find(con, where, [list(states), provider or BATCH])


def find_given_up(con: Connection) -> list[Batch]:
    """Message Batches that were given up and may be at their server all the same."""
    released = "SELECT batch_id FROM batch_items WHERE outcome = 'released'"
    return _find(con, f"state = 'abandoned' AND batch_id IN ({released})", [])


def find_adopted(con: Connection) -> list[Batch]:
    """Message Batches whose creation was not confirmed, and that were found at their server."""
    return _find(con, "provider = ? AND unsure_since IS NOT NULL AND state IN ('submitted', 'ingested')", [BATCH])


def find_holding(con: Connection, request_ids: Collection[str]) -> list[Batch]:
    """The batches that have some requests under way, of whichever run and provider."""
    held = """SELECT batch_id FROM batch_items WHERE outcome IS NULL
              AND request_id IN (SELECT unnest(?::VARCHAR[]))"""
    return _find(con, f"state IN ('intent', 'submitted') AND batch_id IN ({held})", [list(request_ids)])


def _find(con: Connection, where: str, values: list[Any]) -> list[Batch]:
    columns = ", ".join(field.name for field in fields(Batch))
    rows = con.execute(f"SELECT {columns} FROM batches WHERE {where} ORDER BY created_at, batch_id", values)
    return [Batch(*row) for row in rows.fetchall()]


def count_alike(con: Connection, batch_id: str) -> int:
    """How many other batches with exactly these requests are unknown or given up, and may turn up too."""
    alike = select_column(
        con,
        """WITH held AS (
               SELECT batch_id, state, list(request_id ORDER BY request_id) AS ids,
                   bool_or(outcome = 'released') AS freed
               FROM batch_items JOIN batches USING (batch_id) WHERE provider = $provider GROUP BY ALL
           )
           SELECT count(*) FROM held WHERE batch_id <> $batch AND (state = 'intent' OR (state = 'abandoned' AND freed))
               AND ids = (SELECT ids FROM held WHERE batch_id = $batch)""",
        {"provider": BATCH, "batch": batch_id},
    )
    return alike[0]


def remotes_of(con: Connection, account: str) -> list[str]:
    """Names of the newest batches that an account has at its server."""
    where = "account = ? AND remote_id IS NOT NULL"
    return select_column(
        con, f"SELECT remote_id FROM batches WHERE {where} ORDER BY created_at DESC LIMIT 3", [account]
    )


def known_remotes(con: Connection) -> set[str]:
    """All names of batches that the server gave us."""
    return set(select_column(con, "SELECT remote_id FROM batches WHERE remote_id IS NOT NULL"))


def asked_elsewhere(con: Connection, batch_id: str) -> set[str]:
    """Requests that were sent in other batches and not in this one."""
    question = """SELECT DISTINCT request_id FROM batch_items
                  WHERE request_id NOT IN (SELECT request_id FROM batch_items WHERE batch_id = ?)"""
    return set(select_column(con, question, [batch_id]))


def item_outcomes(con: Connection, batch_id: str) -> dict[str, str | None]:
    """The requests of a batch and what became of each."""
    return dict(con.execute("SELECT request_id, outcome FROM batch_items WHERE batch_id = ?", [batch_id]).fetchall())


def unsettled_items(con: Connection) -> dict[tuple[str, str], str | None]:
    """All items without a message, by batch and request, and how they ended, if they have."""
    rows = con.execute(
        "SELECT batch_id, request_id, outcome FROM batch_items WHERE outcome IS DISTINCT FROM 'succeeded'"
    ).fetchall()
    return {(batch_id, request_id): outcome for batch_id, request_id, outcome in rows}


def dear_replies(con: Connection, run_id: str) -> list[BilledReply]:
    """Replies of the batch that a run heard of last which another model gave, or that cost more than they may."""
    rows = con.execute(
        """SELECT requests.model, responses.model, input_tokens, cache_write_tokens, cache_read_tokens, output_tokens,
               cost_usd, worst_usd
           FROM responses JOIN requests USING (request_id) JOIN batch_items USING (batch_id, request_id)
           WHERE batch_id = (
               SELECT batch_id FROM batches JOIN responses USING (batch_id)
               WHERE batches.run_id = ? AND batches.provider = ? ORDER BY received_at DESC LIMIT 1
           ) AND (responses.model <> requests.model OR cost_usd > worst_usd)
           LIMIT 1000""",
        [run_id, BATCH],
    )
    return [BilledReply(row[0], row[1], row[2:6], row[6], row[7]) for row in rows.fetchall()]
