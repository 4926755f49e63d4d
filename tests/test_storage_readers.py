"""Readers that ask in a loop while another process commits: each sees whole transactions, and its wait has an end."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.catalog import Catalog, insert_rows
from storage.errors import CatalogLocked
from storage.store import Store

RUNS, ROWS = 12, 40
QUESTION = "SELECT run_id, count(*) FROM requests JOIN run_requests USING (request_id) GROUP BY run_id"


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(1)
    return child


def commit_runs(root: Path) -> None:
    """Runs whose requests are entered in two statements of one transaction each, as a flow enters them."""
    catalog = Catalog(root / "catalog.duckdb", wait_s=60)
    for run in range(RUNS):
        ids = [f"r_{run}_{number}" for number in range(ROWS)]
        with catalog.write() as con:
            insert_rows(
                con, "requests", [{"request_id": id_, "kind": "mark", "model": "m", "body": "{}"} for id_ in ids]
            )
            asked = {"run_id": f"run {run}", "dataset_id": "d1", "episode_id": 0, "sample": 0, "steps": [0]}
            insert_rows(con, "run_requests", [asked | {"request_id": id_} for id_ in ids])
        time.sleep(0.01)


@pytest.mark.slow
def test_no_reader_sees_a_part_of_a_run_while_a_flow_commits(store: Store) -> None:
    writer = fork(lambda: commit_runs(store.root))
    catalog = Catalog(store.catalog.path, wait_s=60)
    seen: list[int] = []
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        with catalog.read() as con:
            counts = dict(con.execute(QUESTION).fetchall())
        assert set(counts.values()) <= {ROWS}
        seen.append(len(counts))
    with catalog.read() as con:
        assert dict(con.execute(QUESTION).fetchall()) == {f"run {run}": ROWS for run in range(RUNS)}
    assert seen == sorted(seen)  # nothing that was there is gone again


@pytest.mark.slow
def test_a_reader_behind_a_writer_that_does_not_end_is_told_after_the_wait_that_it_allowed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, tell = os.pipe()

    def hold() -> None:
        with store.catalog.write():
            os.write(tell, b"x")
            time.sleep(60)

    writer = fork(hold)
    os.read(ready, 1)
    monkeypatch.setenv("TRAJNOTE_LOCK_WAIT", "0.5")
    began = time.monotonic()
    try:
        with (
            pytest.raises(CatalogLocked, match=rf"in use by process {writer}; waited 0\.5 s"),
            Catalog(store.catalog.path).read(),
        ):
            pass
        assert time.monotonic() - began >= 0.5
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    with Catalog(store.catalog.path).read() as con:
        assert con.execute("SELECT count(*) FROM requests").fetchone() == (0,)
