"""The ledger of requests under way: each is entered with its price before it is sent, and takes effect once.

A batch is what one command sends: one POST of Message Batches, or the single calls of a synchronous run. Its life is
intent -> submitted -> ingested | abandoned; a request that is in one is asked by nobody else. It talks to no server
(`runs/submission.py`, `budget.py`), and every verb is part of the caller's transaction.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from storage.catalog import Connection, insert_rows

from ..costs import Tokens, estimate_calls, most_tokens, price
from ..prompting import Request
from ..providers import Reply, parse_answer
from . import ledger
from .records import BATCH, StoredReply

End = Literal["refused", "released", "lost", "missing", "unknown"]
"""How an item ends without a result: nothing was created, nothing was found, results vanished, they lack it, or nobody
knows. All but the first may have been billed and count with the most they can have cost."""


_COLUMNS = (
    "batch_id, run_id, base_url, remote_id, state, requests, marker, unsure_since, submitted_at, account, organisation"
)


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


@dataclass(frozen=True)
class Priced:
    """A request with what it will cost, as far as its model has a list price."""

    request: Request
    estimated_usd: float | None
    worst_usd: float | None


def price_request(request: Request, labels: int, *, batch: bool) -> Priced:
    """What a request is expected to cost, without a cache, and what it costs at most."""
    estimate, most = estimate_calls([request], labels), most_tokens(request)
    return Priced(request, price(request.model, estimate, batch=batch), price(request.model, most, batch=batch))


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


def claim(con: Connection, batch_id: str, asked: Sequence[Priced], states: Collection[str]) -> list[Request]:
    """Put requests into a batch, if they are still in one of some states; nobody else can ask them then.

    Returns:
        Those that could be had, in order.
    """
    ids = [priced.request.request_id for priced in asked]
    rows = con.execute(
        """UPDATE requests SET state = 'in_batch', updated_at = now()
           WHERE request_id IN (SELECT unnest(?::VARCHAR[])) AND state IN (SELECT unnest(?::VARCHAR[]))
           RETURNING request_id""",
        [ids, list(states)],
    ).fetchall()
    had = {request_id for (request_id,) in rows}
    items = [
        {
            "batch_id": batch_id,
            "request_id": priced.request.request_id,
            "estimated_usd": priced.estimated_usd,
            "worst_usd": priced.worst_usd,
        }
        for priced in asked
        if priced.request.request_id in had
    ]
    insert_rows(con, "batch_items", items, on_conflict="replace")
    con.execute("UPDATE batches SET requests = requests + ? WHERE batch_id = ?", [len(items), batch_id])
    return [priced.request for priced in asked if priced.request.request_id in had]


def mark_submitted(con: Connection, batch_id: str, remote_id: str, submitted_at: datetime) -> None:
    """Note that the server has a batch, under which name and since when."""
    con.execute(
        """UPDATE batches SET state = 'submitted', remote_id = ?, submitted_at = ?
           WHERE batch_id = ? AND state = 'intent'""",
        [remote_id, submitted_at, batch_id],
    )


def adopt(con: Connection, batch_id: str, remote_id: str, submitted_at: datetime) -> None:
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
    return len(
        con.execute(
            "UPDATE batch_items SET outcome = ? WHERE batch_id = ? AND outcome IS NULL RETURNING request_id",
            [outcome, batch_id],
        ).fetchall()
    )


def refuse(con: Connection, batch_id: str, error: str) -> None:
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


def end_item(con: Connection, batch_id: str, request_id: str, outcome: str) -> bool:
    """Note the outcome of one item; false if it has one, for each takes effect once."""
    return bool(_note_outcomes(con, batch_id, {request_id: outcome}))


def take_landed(con: Connection, batch_id: str, landed: Sequence[StoredReply], most_attempts: int) -> list[StoredReply]:
    """Enter raw replies of a batch that are on the disk; the second time, and for an unknown item, nothing happens.

    A message takes effect even after a failure, and of two messages the one that landed first does.

    Returns:
        Those that took effect now.
    """
    first: dict[str, tuple[StoredReply, Reply]] = {}
    for reply, said in reversed([(reply, _understand(reply)) for reply in landed]):
        if said.raw is not None or first.get(reply.record.request_id, (reply, said))[1].raw is None:
            first[reply.record.request_id] = (reply, said)
    fresh = _note_outcomes(con, batch_id, {key: _outcome(reply) for key, (_, reply) in first.items()})
    taken = [first[key] for key in first if key in fresh]
    if answers := [landed for landed, reply in taken if reply.raw is not None]:
        ledger.record_replies(con, answers, most_attempts)
    for _, reply in taken:
        if reply.raw is None:
            _give_back(con, reply, most_attempts)
    return [landed for landed, _ in taken]


def _note_outcomes(con: Connection, batch_id: str, outcomes: Mapping[str, str]) -> set[str]:
    """Note outcomes of items that have none, or have failed and are answered after all; which they were."""
    rows = con.execute(
        """UPDATE batch_items SET outcome = told.outcome
           FROM (SELECT unnest($keys::VARCHAR[]) AS request_id, unnest($outcomes::VARCHAR[]) AS outcome) AS told
           WHERE batch_items.batch_id = $batch AND batch_items.request_id = told.request_id
               AND (batch_items.outcome IS NULL
                   OR (told.outcome = 'succeeded' AND batch_items.outcome <> 'succeeded'))
           RETURNING batch_items.request_id""",
        {"keys": list(outcomes), "outcomes": list(outcomes.values()), "batch": batch_id},
    ).fetchall()
    return {request_id for (request_id,) in rows}


def _understand(landed: StoredReply) -> Reply:
    """A raw reply as a message or an error."""
    record = landed.record
    if not record.is_result_line:
        return Reply(record.request_id, record.raw)
    try:
        return parse_answer(record.raw)
    except ValueError as error:
        return Reply(record.request_id, None, f"unknown: {error}")


def _outcome(reply: Reply) -> str:
    """What kind of a result it is: succeeded, errored, canceled, expired or unknown."""
    return "succeeded" if reply.raw is not None else (reply.error or "unknown").split(" ", 1)[0].rstrip(":")


def _give_back(con: Connection, reply: Reply, most_attempts: int) -> None:
    """A request that came back without a message is asked again, a bounded number of times."""
    con.execute(
        """UPDATE requests SET error = $error, attempts = attempts + 1, updated_at = now(),
               state = CASE WHEN $final OR attempts + 1 >= $most THEN 'failed' ELSE 'pending' END
           WHERE request_id = $request AND state = 'in_batch'
               AND request_id NOT IN (SELECT request_id FROM batch_items WHERE outcome IS NULL)""",
        {"error": reply.error, "final": reply.final, "most": most_attempts, "request": reply.request_id},
    )


def find_batches(con: Connection, states: Collection[str], *, provider: str | None = BATCH) -> list[Batch]:
    """Batches in some states, the oldest first; of all providers but Message Batches when `provider` is None."""
    rows = con.execute(
        f"""SELECT {_COLUMNS} FROM batches
            WHERE state IN (SELECT unnest(?::VARCHAR[])) AND provider {"=" if provider else "<>"} ?
            ORDER BY created_at, batch_id""",
        [list(states), provider or BATCH],
    ).fetchall()
    return [Batch(*row) for row in rows]


def find_given_up(con: Connection) -> list[Batch]:
    """Message Batches that were given up and may be at their server all the same."""
    rows = con.execute(
        f"""SELECT {_COLUMNS} FROM batches
            WHERE state = 'abandoned' AND batch_id IN (SELECT batch_id FROM batch_items WHERE outcome = 'released')
            ORDER BY created_at, batch_id"""
    ).fetchall()
    return [Batch(*row) for row in rows]


def find_adopted(con: Connection) -> list[Batch]:
    """Message Batches whose creation was not confirmed, and that were found at their server."""
    rows = con.execute(
        f"""SELECT {_COLUMNS} FROM batches
            WHERE provider = ? AND unsure_since IS NOT NULL AND state IN ('submitted', 'ingested')
            ORDER BY created_at, batch_id""",
        [BATCH],
    ).fetchall()
    return [Batch(*row) for row in rows]


def find_holding(con: Connection, request_ids: Collection[str]) -> list[Batch]:
    """The batches that have some requests under way, of whichever run and provider."""
    rows = con.execute(
        f"""SELECT {_COLUMNS} FROM batches WHERE state IN ('intent', 'submitted') AND batch_id IN
                (SELECT batch_id FROM batch_items WHERE outcome IS NULL
                 AND request_id IN (SELECT unnest(?::VARCHAR[])))
            ORDER BY created_at, batch_id""",
        [list(request_ids)],
    ).fetchall()
    return [Batch(*row) for row in rows]


def count_alike(con: Connection, batch_id: str) -> int:
    """How many other batches with exactly these requests are unknown or given up, and may turn up too."""
    row = con.execute(
        """WITH held AS (
               SELECT batch_id, state, list(request_id ORDER BY request_id) AS ids,
                   bool_or(outcome = 'released') AS freed
               FROM batch_items JOIN batches USING (batch_id) WHERE provider = $provider GROUP BY ALL
           )
           SELECT count(*) FROM held WHERE batch_id <> $batch AND (state = 'intent' OR (state = 'abandoned' AND freed))
               AND ids = (SELECT ids FROM held WHERE batch_id = $batch)""",
        {"provider": BATCH, "batch": batch_id},
    ).fetchone()
    return int(row[0]) if row else 0


def remotes_of(con: Connection, account: str) -> list[str]:
    """Names of the newest batches that an account has at its server."""
    rows = con.execute(
        "SELECT remote_id FROM batches WHERE account = ? AND remote_id IS NOT NULL ORDER BY created_at DESC LIMIT 3",
        [account],
    ).fetchall()
    return [remote_id for (remote_id,) in rows]


def asked_elsewhere(con: Connection, batch_id: str) -> set[str]:
    """Requests that were sent in other batches and not in this one."""
    rows = con.execute(
        """SELECT DISTINCT request_id FROM batch_items
           WHERE request_id NOT IN (SELECT request_id FROM batch_items WHERE batch_id = ?)""",
        [batch_id],
    ).fetchall()
    return {request_id for (request_id,) in rows}


def count_vain(con: Connection, request_ids: Sequence[str]) -> Counter[str]:
    """Why some requests have no answer, and how often."""
    rows = con.execute(
        """SELECT coalesce(error, 'unknown') FROM requests
           WHERE state <> 'done' AND request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [list(request_ids)],
    ).fetchall()
    return Counter(error for (error,) in rows)


def known_remotes(con: Connection) -> set[str]:
    """All names of batches that the server gave us."""
    rows = con.execute("SELECT remote_id FROM batches WHERE remote_id IS NOT NULL").fetchall()
    return {remote_id for (remote_id,) in rows}


def item_outcomes(con: Connection, batch_id: str) -> dict[str, str | None]:
    """The requests of a batch and what became of each."""
    return dict(con.execute("SELECT request_id, outcome FROM batch_items WHERE batch_id = ?", [batch_id]).fetchall())


def unsettled_items(con: Connection) -> dict[tuple[str, str], str | None]:
    """All items without a message, by batch and request, and how they ended, if they have."""
    rows = con.execute(
        "SELECT batch_id, request_id, outcome FROM batch_items WHERE outcome IS DISTINCT FROM 'succeeded'"
    ).fetchall()
    return {(batch_id, request_id): outcome for batch_id, request_id, outcome in rows}


NO_BATCH = "no further batch is sent"
GO_ON = (
    "Name the model that answers with --model; or see to the server, and ask the others with --provider anthropic, one "
    "by one, up to the first that costs more than it can."
)
"""What to do when a batch has cost more than it can, which ends all batches of its run."""


def find_excess(con: Connection, run_id: str) -> str | None:
    """How the newest replies that a run got out of a batch cost more than they may; None if they do not."""
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
    ).fetchall()
    for asked, model, *tokens, cost, worst in rows:
        expected = price(asked, Tokens(*tokens), batch=True) if None not in tokens else None
        if cost is not None and expected is not None and cost > expected * 1.000001:
            return f"{model} answered in place of {asked}, for ${cost:.4f} in place of ${expected:.4f}"
        if cost is not None and worst is not None and cost > worst:
            return f"a reply was billed with ${cost:.4f}, where its request can cost ${worst:.4f} at most"
    return None


def committed_usd(con: Connection, run_id: str) -> float:
    """Dollars that a run has cost, and those it may still cost by what is under way or was lost, at most."""
    row = con.execute("SELECT cost_usd + under_way_usd + lost_usd FROM spending WHERE run_id = ?", [run_id]).fetchone()
    return float(row[0]) if row else 0.0
