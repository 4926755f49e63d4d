"""Requests as rows of the catalog: how far each is, which reply to it counts, and which a run has read.

Each verb is part of its caller's write, and does all or nothing. What a reply says is the annotators' business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from ..catalog import Connection, insert_rows, select_column
from ..schema import RequestKind

State = Literal["pending", "in_batch", "done", "failed"]
Place = tuple[str, int]
"""Where a raw reply lies: the file, relative to the store, and the line in it."""

_COUNTING = """
SELECT request_id, response_id, file, line, count(*) OVER earlier - 1 AS corrections
FROM responses WHERE problem IS NULL
WINDOW earlier AS (PARTITION BY request_id ORDER BY received_at, response_id)
QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY received_at DESC, response_id DESC) = 1
"""
"""The reply that counts for each request: the newest that holds an answer, and how many answers it corrects."""

_READ = f"""
SELECT run_id, request_id FROM run_requests LEFT JOIN ({_COUNTING}) AS counting USING (request_id)
WHERE run_requests.response_id = counting.response_id OR (run_requests.response_id IS NULL AND (
    (run_id, request_id) IN (SELECT (run_id, request_id) FROM annotations WHERE request_id IS NOT NULL)
    OR (run_id, request_id) IN (SELECT (run_id, request_id) FROM rejections WHERE request_id IS NOT NULL)
    OR (run_id, request_id) IN (SELECT (run_id, request_id) FROM rule_lists WHERE request_id IS NOT NULL)))
"""
"""Requests whose counting reply a run has read; before `response_id` was kept, what it left shows that."""

_UNREAD = f"""
SELECT run_id, request_id, requests.kind, requests.body, episode_id, sample, steps
FROM run_requests JOIN requests USING (request_id) JOIN annotation_runs USING (run_id)
WHERE annotation_runs.state <> 'done' AND requests.state = 'done' AND steps IS NOT NULL
    AND (run_id, request_id) NOT IN (SELECT (run_id, request_id) FROM ({_READ}))
ORDER BY run_id, episode_id, request_id
"""

_EMPTY = """
SELECT request_id FROM run_requests JOIN requests USING (request_id)
WHERE run_id = $run AND (requests.state = 'failed' OR (requests.state = 'done'
    AND (run_id, request_id) NOT IN (SELECT (run_id, request_id) FROM annotations WHERE request_id IS NOT NULL)
    AND (run_id, request_id) NOT IN (SELECT (run_id, request_id) FROM rule_lists WHERE request_id IS NOT NULL)
    AND NOT (kind = 'identify' AND (episode_id, sample) IN (
        SELECT (episode_id, sample) FROM run_requests JOIN requests USING (request_id)
        WHERE run_id = $run AND kind = 'suggest'))))
"""


_READINGS = {"annotations": "request_id", "rules": "request_id", "rule_lists": "list_id", "terms": "list_id"}
"""The tables that hold what was read in a reply, and the column that names its request."""


class UnreadRequest(NamedTuple):
    """A request whose counting reply an open run has not read."""

    run_id: str
    request_id: str
    kind: RequestKind
    body: str  # JSON
    episode_id: int | None
    sample: int
    steps: str  # JSON


class EnteredRequest(NamedTuple):
    """A request of the store, with the first episode and run that it was asked for."""

    request_id: str
    kind: RequestKind
    state: str
    body: str  # JSON
    episode_id: int | None
    run_id: str | None


def request_states(con: Connection, request_ids: Sequence[str]) -> dict[str, tuple[State, str | None, int]]:
    """State, error and attempts of those of some requests that are in the catalog."""
    rows = con.execute(
        """SELECT request_id, state, error, attempts FROM requests
           WHERE request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [list(request_ids)],
    ).fetchall()
    return {request_id: (state, error, attempts) for request_id, state, error, attempts in rows}


def request_models(con: Connection, request_ids: Sequence[str]) -> dict[str, tuple[RequestKind, str | None]]:
    """Kind and model of those of some requests that are in the catalog."""
    rows = con.execute(
        "SELECT request_id, kind, model FROM requests WHERE request_id IN (SELECT unnest(?::VARCHAR[]))",
        [list(request_ids)],
    ).fetchall()
    return {request_id: (kind, model) for request_id, kind, model in rows}


def unread_requests(con: Connection) -> list[UnreadRequest]:
    """Answered requests of open runs whose counting reply the run has not read, by run and episode."""
    return [UnreadRequest(*row) for row in con.execute(_UNREAD).fetchall()]


def read_requests(con: Connection, run_id: str) -> set[str]:
    """Requests whose counting reply a run has read."""
    return set(select_column(con, f"SELECT request_id FROM ({_READ}) WHERE run_id = ?", [run_id]))


def answered_for(con: Connection, run_id: str) -> list[str]:
    """Requests that got a reply for a run, among them some that it does not ask any more."""
    return select_column(con, "SELECT DISTINCT request_id FROM responses WHERE split_part(file, '/', 2) = ?", [run_id])


def reopen_failed(con: Connection, request_ids: Sequence[str]) -> None:
    """Let requests that have failed be asked again, as if for the first time."""
    con.execute(
        """UPDATE requests SET state = 'pending', attempts = 0, updated_at = now()
           WHERE state = 'failed' AND request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [list(request_ids)],
    )


def reopen_empty(con: Connection, run_id: str) -> int:
    """Let a run's requests be asked anew that have failed, or whose reply left no label and no rule; how many."""
    ids = select_column(con, _EMPTY, {"run": run_id})
    con.execute(
        f"""UPDATE run_requests SET response_id = counting.response_id FROM ({_COUNTING}) AS counting
            WHERE run_requests.request_id = counting.request_id AND run_requests.response_id IS NULL
                AND run_requests.request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [ids],
    )
    con.execute(
        """UPDATE requests SET state = 'pending', attempts = 0, error = NULL, updated_at = now()
           WHERE request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [ids],
    )
    con.execute("UPDATE annotation_runs SET state = 'open' WHERE run_id = ?", [run_id])
    return len(ids)


def add_responses(con: Connection, rows: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Enter rows of `responses`; those that were new."""
    known = select_column(
        con,
        "SELECT response_id FROM responses WHERE response_id IN (SELECT unnest(?::VARCHAR[]))",
        [[row["response_id"] for row in rows]],
    )
    fresh = [row for row in rows if row["response_id"] not in set(known)]
    insert_rows(con, "responses", fresh)
    return fresh


def mark_answered(con: Connection, request_ids: Sequence[str]) -> None:
    """Note that requests have an answer; every run that has read an earlier answer is opened again."""
    con.execute(
        """UPDATE requests SET state = 'done', error = NULL, attempts = attempts + 1, updated_at = now()
           WHERE request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [list(request_ids)],
    )
    con.execute(
        """UPDATE annotation_runs SET state = 'open' WHERE state = 'done' AND run_id IN (
               SELECT run_id FROM run_requests
               WHERE response_id IS NOT NULL AND request_id IN (SELECT unnest(?::VARCHAR[])))""",
        [list(request_ids)],
    )


def mark_unanswered(
    con: Connection,
    request_id: str,
    error: str | None,
    most_attempts: int,
    *,
    in_batch: bool = False,
    final: bool = False,
) -> None:
    """Let a request be asked again whose reply holds no answer, or fail it after so many attempts.

    Args:
        con: a connection of `Catalog.write`.
        request_id: the request; one that other calls have under way stays unchanged.
        error: why there is no answer.
        most_attempts: after so many it has failed.
        in_batch: only a request that is in a batch; else any that is not done: an earlier answer counts on.
        final: it fails now, because asking the same again cannot help.
    """
    con.execute(
        f"""UPDATE requests SET error = $error, attempts = attempts + 1, updated_at = now(),
                state = CASE WHEN $final OR attempts + 1 >= $most THEN 'failed' ELSE 'pending' END
            WHERE request_id = $request AND state {"= 'in_batch'" if in_batch else "<> 'done'"}
                AND request_id NOT IN (SELECT request_id FROM batch_items WHERE outcome IS NULL)""",
        {"error": error, "most": most_attempts, "final": final, "request": request_id},
    )


def note_error(con: Connection, request_id: str, error: str | None, *, final: bool) -> None:
    """Note why a request has no reply; it fails if asking the same again cannot help, and stays pending otherwise."""
    con.execute(
        """UPDATE requests SET state = ?, error = ?, attempts = attempts + 1, updated_at = now()
           WHERE request_id = ? AND state <> 'done'""",
        ["failed" if final else "pending", error, request_id],
    )


def mark_read(con: Connection, run_id: str, request_ids: Sequence[str]) -> dict[str, str]:
    """Note that a run reads the replies that count, and forget what it read in others.

    Returns:
        Request -> reply, where that reply corrects an earlier one.
    """
    values: dict[str, object] = {"run": run_id, "ids": list(request_ids)}
    counting = con.execute(
        f"""SELECT request_id, counting.response_id, corrections, run_requests.response_id
            FROM ({_COUNTING}) AS counting JOIN run_requests USING (request_id)
            WHERE run_id = $run AND request_id IN (SELECT unnest($ids::VARCHAR[]))""",
        values,
    ).fetchall()
    changed = [(request_id, new) for request_id, new, _, old in counting if new != old]
    values["ids"] = [request_id for request_id, _ in changed]
    for table, named in _READINGS.items():
        con.execute(f"DELETE FROM {table} WHERE run_id = $run AND {named} IN (SELECT unnest($ids::VARCHAR[]))", values)
    con.execute(
        """UPDATE run_requests SET response_id = new.response_id
           FROM (SELECT unnest($ids::VARCHAR[]) AS request_id, unnest($responses::VARCHAR[]) AS response_id) AS new
           WHERE run_requests.run_id = $run AND run_requests.request_id = new.request_id""",
        values | {"responses": [response_id for _, response_id in changed]},
    )
    return {request_id: new for request_id, new, corrections, _ in counting if corrections}


def mark_read_in_vain(con: Connection, run_id: str, request_ids: Sequence[str]) -> None:
    """Note that a run has read replies that hold no answer, so that the first answer is new to it."""
    con.execute(
        """UPDATE run_requests SET response_id = '' WHERE run_id = ? AND response_id IS NULL
           AND request_id IN (SELECT unnest(?::VARCHAR[]))
           AND request_id NOT IN (SELECT request_id FROM responses WHERE problem IS NULL)""",
        [run_id, list(request_ids)],
    )


def counting_replies(con: Connection, request_ids: Sequence[str]) -> set[Place]:
    """Where the replies lie that count for some requests, whichever run they were for."""
    question = f"SELECT file, line FROM ({_COUNTING}) WHERE request_id IN (SELECT unnest(?::VARCHAR[]))"
    return set(con.execute(question, [list(request_ids)]).fetchall())


def newest_replies(con: Connection, provider: str, request_ids: Sequence[str]) -> set[Place]:
    """Where the replies lie that came last from a provider, whether or not they hold an answer."""
    question = """SELECT file, line FROM responses
                  WHERE provider = ? AND request_id IN (SELECT unnest(?::VARCHAR[]))
                  QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY received_at DESC, response_id DESC) = 1"""
    return set(con.execute(question, [provider, list(request_ids)]).fetchall())


def entered_replies(con: Connection) -> set[Place]:
    """Where all replies lie that were entered."""
    return set(con.execute("SELECT file, line FROM responses").fetchall())


def reasons_unanswered(con: Connection, request_ids: Collection[str]) -> Counter[str]:
    """Why some requests have no answer, and how often."""
    reasons = select_column(
        con,
        """SELECT coalesce(error, 'unknown') FROM requests
           WHERE state <> 'done' AND request_id IN (SELECT unnest(?::VARCHAR[]))""",
        [list(request_ids)],
    )
    return Counter(reasons)


def tokens_taken(con: Connection, model: str) -> tuple[int, int | None, int | None, float | None]:
    """Of earlier replies of a model: how many, input tokens, input tokens guessed, and output tokens on average."""
    ((replies, taken, guessed, output),) = con.execute(
        """SELECT count(*), sum(input_tokens + cache_write_tokens + cache_read_tokens), sum(input_tokens_estimate),
               avg(output_tokens)
           FROM responses JOIN requests USING (request_id)
           WHERE requests.model = ? AND NOT recorded AND input_tokens_estimate > 0 AND output_tokens > 0""",
        [model],
    ).fetchall()
    return replies, taken, guessed, output


def find_requests(con: Connection, start: str) -> list[EnteredRequest]:
    """Requests whose id starts so; two at most."""
    return _entered(con, "starts_with(request_id, $start) LIMIT 2", {"start": start})


def entered_request(con: Connection, request_id: str) -> EnteredRequest | None:
    """A request of the store; None if it was never entered."""
    found = _entered(con, "request_id = $request_id", {"request_id": request_id})
    return found[0] if found else None


def similar_requests(
    con: Connection, kind: str, episode_id: int | None, *, answered: bool, limit: int
) -> list[EnteredRequest]:
    """Requests of a kind, or the answered ones: those about an episode first, then the newest."""
    where = "kind = $kind" + (" AND state = 'done'" if answered else "")
    order = "ORDER BY episode_id IS NOT DISTINCT FROM $episode_id DESC, created_at DESC"
    return _entered(con, f"{where} {order} LIMIT {limit:d}", {"kind": kind, "episode_id": episode_id})


def _entered(con: Connection, where: str, values: Mapping[str, object]) -> list[EnteredRequest]:
    rows = con.execute(
        f"""SELECT request_id, kind, state, body::VARCHAR, episode_id, run_id
            FROM requests
            LEFT JOIN (SELECT request_id, min(episode_id) AS episode_id, min(run_id) AS run_id
                       FROM run_requests GROUP BY request_id) USING (request_id)
            WHERE {where}""",
        values,
    ).fetchall()
    return [EnteredRequest(*row) for row in rows]
