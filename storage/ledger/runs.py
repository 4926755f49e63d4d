"""Annotation runs as rows: how far each is, and what it asks. Verbs are part of their caller's write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..catalog import Connection, insert_rows


class RunTotals(NamedTuple):
    """What a run has brought and cost: one row of the view `spending`."""

    labels: int
    rejections: int
    input_tokens: int
    cache_write_tokens: int
    cache_read_tokens: int
    output_tokens: int
    cost_usd: float
    estimated_usd: float | None  # what its answered requests were expected to cost when they were sent
    rules: int


class AskedRun(NamedTuple):
    """A run that has asked a model."""

    run_id: str
    dataset_id: str
    config: str  # JSON
    card: str  # JSON


class OpenRun(NamedTuple):
    """A run whose replies may not all be read, and what they are read with."""

    run_id: str
    dataset_id: str
    model: str
    prompt_version: str
    card_sha256: str
    config: str  # JSON
    card: str  # JSON
    action_space: str  # JSON


def enter_run(con: Connection, row: Mapping[str, object]) -> None:
    """Enter a row of `annotation_runs`; a run that is there already is opened again."""
    insert_rows(con, "annotation_runs", [row])
    con.execute(
        "UPDATE annotation_runs SET state = 'open', finished_at = NULL, error = NULL WHERE run_id = ?", [row["run_id"]]
    )


def enter_imported_run(con: Connection, run_id: str, dataset_id: str, model: str) -> bool:
    """Enter a run whose labels were made elsewhere, finished; false if it is there already."""
    row = {"run_id": run_id, "dataset_id": dataset_id, "provider": "import", "model": model, "config": {}}
    if not insert_rows(con, "annotation_runs", [row | {"state": "done", "recorded": False}]):
        return False
    con.execute("UPDATE annotation_runs SET finished_at = now() WHERE run_id = ?", [run_id])
    return True


def close_run(con: Connection, run_id: str) -> None:
    """Note that everything a run asked is answered."""
    con.execute("UPDATE annotation_runs SET state = 'done', finished_at = now() WHERE run_id = ?", [run_id])


def fail_run(con: Connection, run_id: str, error: str) -> None:
    """Note why a command ended without all answers; the next command opens the run again."""
    con.execute(
        "UPDATE annotation_runs SET state = 'failed', finished_at = now(), error = ? WHERE run_id = ?", [error, run_id]
    )


def is_done(con: Connection, run_id: str) -> bool:
    """Whether a run was finished earlier."""
    found = con.execute("SELECT 1 FROM annotation_runs WHERE run_id = ? AND state = 'done'", [run_id]).fetchone()
    return found is not None


def is_waiting(con: Connection, run_id: str) -> bool:
    """Whether a run has asked something that has no reply."""
    found = con.execute(
        """SELECT 1 FROM run_requests JOIN requests USING (request_id)
           WHERE run_id = ? AND requests.state <> 'done' LIMIT 1""",
        [run_id],
    ).fetchone()
    return found is not None


def count_waiting(con: Connection, run_ids: Sequence[str]) -> int:
    """How many requests of some runs have no reply, and have not failed."""
    found = con.execute(
        """SELECT count(*) FROM run_requests JOIN requests USING (request_id)
           WHERE run_id IN (SELECT unnest(?::VARCHAR[])) AND state IN ('pending', 'in_batch')""",
        [list(run_ids)],
    ).fetchone()
    return int(found[0]) if found else 0


def find_answered(con: Connection, asked: Mapping[str, tuple[str, str]]) -> frozenset[str]:
    """The datasets, of some, that are still those that a run has asked about, and whose run waits for no reply.

    Args:
        con: a connection of the catalog.
        asked: dataset -> the hash of its manifest, and the run.
    """
    rows = con.execute(
        """SELECT dataset_id FROM (
               SELECT unnest(?::VARCHAR[]) AS dataset_id, unnest(?::VARCHAR[]) AS manifest_sha256,
                   unnest(?::VARCHAR[]) AS run_id
           ) JOIN datasets USING (dataset_id, manifest_sha256) SEMI JOIN annotation_runs USING (run_id)
           WHERE run_id NOT IN (
               SELECT run_id FROM requests JOIN run_requests USING (request_id) WHERE requests.state <> 'done'
           )""",
        [list(asked), [sha256 for sha256, _ in asked.values()], [run_id for _, run_id in asked.values()]],
    )
    return frozenset(dataset_id for (dataset_id,) in rows.fetchall())


def asked_runs(con: Connection) -> list[AskedRun]:
    """All runs that have asked a model, the oldest first."""
    rows = con.execute(
        "SELECT run_id, dataset_id, config, card FROM annotation_runs WHERE card IS NOT NULL ORDER BY created_at"
    )
    return [AskedRun(*row) for row in rows.fetchall()]


def open_runs(con: Connection) -> list[OpenRun]:
    """Runs that have asked a model and are not done, by id."""
    rows = con.execute(
        """SELECT run_id, dataset_id, model, prompt_version, card_sha256, config, card, action_space
           FROM annotation_runs JOIN datasets USING (dataset_id)
           WHERE state <> 'done' AND card IS NOT NULL ORDER BY run_id"""
    )
    return [OpenRun(*row) for row in rows.fetchall()]


def live_runs(con: Connection) -> list[str]:
    """Runs that are not done, or have a batch that is not finished with."""
    rows = con.execute(
        """SELECT run_id FROM annotation_runs WHERE state <> 'done'
           UNION SELECT run_id FROM batches WHERE state IN ('intent', 'submitted')"""
    )
    return [run_id for (run_id,) in rows.fetchall()]


def requests_of(con: Connection, run_id: str) -> set[str]:
    """The requests that a run asks."""
    rows = con.execute("SELECT request_id FROM run_requests WHERE run_id = ?", [run_id])
    return {request_id for (request_id,) in rows.fetchall()}


def total_run(con: Connection, run_id: str) -> RunTotals | None:
    """What a run has brought and cost; None if it is not in the catalog."""
    row = con.execute(
        """SELECT annotations, rejections, input_tokens, cache_write_tokens, cache_read_tokens, output_tokens, cost_usd,
               estimated_usd, (SELECT count(*) FROM rules WHERE run_id = $run)
           FROM spending WHERE run_id = $run""",
        {"run": run_id},
    ).fetchone()
    return RunTotals(*row) if row else None


def committed_usd(con: Connection, run_id: str) -> float:
    """Dollars that a run has cost, and those it may still cost by what is under way or was lost, at most."""
    row = con.execute("SELECT cost_usd + under_way_usd + lost_usd FROM spending WHERE run_id = ?", [run_id]).fetchone()
    return float(row[0]) if row else 0.0


def withdraw_suggestions(con: Connection, run_id: str, answered: Sequence[str], wanted: Sequence[str]) -> None:
    """Forget a second stage's requests that the first stage's answers do not lead to, and what came of them.

    Args:
        con: a connection of `Catalog.write`.
        run_id: the run.
        answered: the first stage's requests that have an answer.
        wanted: the second stage's requests that follow from those answers.
    """
    stale = con.execute(
        """SELECT request_id FROM run_requests JOIN requests USING (request_id)
           WHERE run_id = $run AND kind = 'suggest' AND request_id NOT IN (SELECT unnest($now::VARCHAR[]))
               AND (episode_id, sample) IN (SELECT (episode_id, sample) FROM run_requests
                   WHERE run_id = $run AND request_id IN (SELECT unnest($first::VARCHAR[])))""",
        {"run": run_id, "now": list(wanted), "first": list(answered)},
    ).fetchall()
    for table in ("annotations", "rejections", "run_requests"):
        con.execute(
            f"DELETE FROM {table} WHERE run_id = ? AND request_id IN (SELECT unnest(?::VARCHAR[]))",
            [run_id, [request_id for (request_id,) in stale]],
        )
