from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from storage.catalog import Catalog, Connection, insert_rows
from storage.catalog.connection import lock_of
from storage.catalog.tables import MIGRATIONS, Migration, catalog_version, migrate
from storage.errors import BadInput, CatalogLocked, DamagedStore, Prerequisite
from storage.store import Store


@contextmanager
def other_process(store: Store, body: str) -> Generator[subprocess.Popen[str]]:
    """A real second process that runs `body` with a `store`, says `ready`, and waits to be killed."""
    script = f"import os, sys, time\nfrom storage.store import Store\nstore = Store.open(sys.argv[1])\n{body}"
    process = subprocess.Popen([sys.executable, "-c", script, str(store.root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


HOLD = """
with store.catalog.write() as con:
    con.execute(
        "INSERT INTO replays BY NAME SELECT 'lost' replay_id, 'd' dataset_id, 0 episode_id, true exact, 1 steps"
    )
    print("ready", flush=True)
    time.sleep({seconds})
"""


def replay(name: str) -> dict[str, object]:
    return {"replay_id": name, "dataset_id": "d", "episode_id": 0, "exact": True, "steps": 1}


def replays(con: Connection) -> list[str]:
    return [row[0] for row in con.execute("SELECT replay_id FROM replays ORDER BY replay_id").fetchall()]


def test_a_block_that_raises_leaves_nothing(store: Store) -> None:
    def write_and_fail() -> None:
        with store.catalog.write() as con:
            insert_rows(con, "replays", [replay("a")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    with store.catalog.read() as con:
        assert replays(con) == []


@pytest.mark.slow
def test_a_locked_catalog_names_the_process_that_holds_it(store: Store) -> None:
    impatient = Catalog(store.catalog.path, wait_s=0.3)
    with other_process(store, HOLD.format(seconds=60)) as process:
        for opened in (impatient.read, impatient.write):
            with pytest.raises(CatalogLocked, match=rf"in use by process {process.pid}; waited 0.3 s.*then run this"):
                opened().__enter__()


@pytest.mark.slow
def test_the_lock_is_waited_for(store: Store) -> None:
    with other_process(store, HOLD.format(seconds=0.5)), store.catalog.write() as con:
        assert replays(con) == ["lost"]  # committed when its block ended


@pytest.mark.slow
def test_a_reader_in_another_process_does_not_keep_readers_out(store: Store) -> None:
    body = "with store.catalog.read() as con:\n    print('ready', flush=True)\n    time.sleep(60)"
    impatient = Catalog(store.catalog.path, wait_s=0.2)
    with other_process(store, body):
        with impatient.read() as con:
            assert replays(con) == []
        with pytest.raises(CatalogLocked):
            impatient.write().__enter__()


@pytest.mark.slow
def test_a_process_killed_within_a_transaction_leaves_nothing(store: Store) -> None:
    before = HOLD.replace("lost", "kept").replace('    print("ready", flush=True)\n    time.sleep({seconds})\n', "")
    with other_process(store, before + HOLD.format(seconds=60)) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with store.catalog.read() as con:
            assert replays(con) == ["kept"]
        with store.catalog.write() as con:
            assert replays(con) == ["kept"]


@pytest.mark.slow
def test_threads_take_turns_instead_of_failing(store: Store) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(3):
                with store.catalog.write() as con:
                    insert_rows(con, "replays", [replay(f"{number}-{turn}")])
                with store.catalog.read() as con:
                    assert f"{number}-{turn}" in replays(con)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with store.catalog.read() as con:
        assert len(replays(con)) == 12


def test_a_thread_that_waits_too_long_is_told_that_its_own_process_is_in_the_way(store: Store) -> None:
    impatient = Catalog(store.catalog.path, wait_s=0.1)
    errors: list[str] = []

    def read() -> None:
        try:
            impatient.read().__enter__()
        except CatalogLocked as error:
            errors.append(str(error))

    with store.catalog.write():
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert "another part of this process" in errors[0]


def test_a_read_inside_a_write_sees_its_changes_and_a_write_inside_a_read_is_refused(store: Store) -> None:
    with store.catalog.write() as con:
        insert_rows(con, "replays", [replay("a")])
        with store.catalog.read() as inner:
            assert replays(inner) == ["a"]
    with store.catalog.read(), store.catalog.read() as con:
        assert replays(con) == ["a"]
        with pytest.raises(RuntimeError, match="already has the catalog open"):
            store.catalog.write().__enter__()


def test_a_write_inside_a_write_is_part_of_its_transaction(store: Store) -> None:
    def write_and_fail() -> None:
        with store.catalog.write() as con:
            with store.catalog.write() as inner:
                insert_rows(inner, "replays", [replay("a")])
            assert replays(con) == ["a"]
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        write_and_fail()
    with store.catalog.read() as con:
        assert replays(con) == []


def test_reads_inside_a_read_keep_their_answers_apart(store: Store) -> None:
    with store.catalog.write() as con:
        insert_rows(con, "replays", [replay("a"), replay("b")])
    with store.catalog.read() as con:
        rows = con.execute("SELECT replay_id FROM replays ORDER BY replay_id")
        with store.catalog.read() as inner:
            assert inner.execute("SELECT current_setting('TimeZone')").fetchall() == [("UTC",)]
        assert len(rows.fetchall()) == 2


def test_a_read_inside_a_read_alone_uses_its_connection(store: Store) -> None:
    with store.catalog.read_alone() as con:
        con.execute("SET lock_configuration = true")
        with store.catalog.read() as inner:
            assert replays(inner) == []
    with store.catalog.read() as con:
        con.execute("SET threads = 1")


def test_a_forked_child_is_not_held_up_by_its_parents_threads(store: Store) -> None:
    with lock_of(store.catalog.path).exclusive(1):
        child = os.fork()
        if child == 0:
            with Catalog(store.catalog.path, wait_s=0).read() as con:
                os._exit(len(replays(con)))
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
def test_two_processes_may_create_the_same_store_at_once(tmp_path: Path) -> None:
    script = "import sys\nfrom storage.store import Store\nStore.create(sys.argv[1])"
    racers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "s")]) for _ in range(3)]
    assert [racer.wait() for racer in racers] == [0, 0, 0]
    names = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert names == ["catalog.duckdb", "policies", "reports", "responses", "rollouts", "trainings"]


def test_creating_a_store_twice_keeps_what_is_in_it(store: Store) -> None:
    with store.catalog.write() as con:
        insert_rows(con, "replays", [replay("a")])
    with Store.create(store.root).catalog.read() as con:
        assert replays(con) == ["a"]


@pytest.mark.slow
def test_a_killed_creation_is_done_again(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir()
    (root / "catalog.duckdb.new").write_bytes(b"half a catalog")
    Store.create(root)
    assert not (root / "catalog.duckdb.new").exists()


def test_there_is_no_store_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(Prerequisite, match=r"There is no store in .*Make one with"):
        Store.open(tmp_path)
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(BadInput, match=r"is not a store: it holds thesis\.tex"):
        Store.create(tmp_path)
    with pytest.raises(BadInput, match="has a question mark"):
        Store.create(tmp_path / "what?")
    with pytest.raises(BadInput, match="is a file"):
        Store.create(tmp_path / "thesis.tex")


def test_a_catalog_that_is_not_one_is_named(store: Store) -> None:
    store.catalog.path.write_bytes(b"not a database" * 1000)
    with pytest.raises(DamagedStore, match=r"catalog\.duckdb cannot be read"):
        Store.open(store.root)


def test_a_wait_that_is_no_number_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAJNOTE_LOCK_WAIT", "soon")
    with pytest.raises(BadInput, match="TRAJNOTE_LOCK_WAIT is 'soon'"):
        Store.open(store.root)


def test_rows_are_inserted_by_name_with_defaults_and_json(store: Store) -> None:
    rows = [
        {"policy_id": "p1", "kind": "baseline", "sha256": "x", "run_ids": ["a", "b"], "config": {"b": 1, "a": [None]}},
        {"policy_id": "p2", "kind": "refined", "sha256": "y", "created_at": "2024-01-02T03:04:05+02:00"},
    ]
    with store.catalog.write() as con:
        assert insert_rows(con, "policies", rows) == 2
        assert insert_rows(con, "policies", []) == 0
    with store.catalog.read() as con:
        first, second = con.execute("SELECT run_ids, config, created_at FROM policies ORDER BY policy_id").fetchall()
    assert first[:2] == (["a", "b"], '{"a":[null],"b":1}')
    assert second == (None, None, datetime(2024, 1, 2, 1, 4, 5, tzinfo=UTC))


@pytest.mark.slow
def test_what_happens_to_a_row_that_is_there_is_a_choice(store: Store) -> None:
    with store.catalog.write() as con:
        insert_rows(con, "replays", [replay("a")])
        assert insert_rows(con, "replays", [replay("a") | {"steps": 2}, replay("b")]) == 1
        assert con.execute("SELECT steps FROM replays ORDER BY replay_id").fetchall() == [(1,), (1,)]
        assert insert_rows(con, "replays", [replay("a") | {"steps": 3}], on_conflict="replace") == 1
        assert con.execute("SELECT steps FROM replays ORDER BY replay_id").fetchall() == [(3,), (1,)]
    with (
        pytest.raises(BadInput, match=r"does not fit into a table .*replays.*uplicate key"),
        store.catalog.write() as con,
    ):
        insert_rows(con, "replays", [replay("a")], on_conflict="error")


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("replays", {"replay": "a"}, "has no column 'replay'"),
        ("players", {"a": 1}, "has no table 'players'"),
        ("annotations", {"annotation_id": "a", "implicit_reward": 1.5}, "does not fit into a table .*annotations"),
        ("policies", {"policy_id": "p", "kind": "baseline", "sha256": "x", "config": "{broken"}, "does not fit"),
        ("episodes", {"episode_id": "first"}, "The column episode_id cannot hold"),
        ("policies", {"config": {1, 2}}, "The column config cannot hold"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(store: Store, table: str, row: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message), store.catalog.write() as con:
        insert_rows(con, table, [row])


def _add_colour(con: Connection) -> None:
    con.execute("ALTER TABLE replays ADD COLUMN colour VARCHAR")


def _break_halfway(con: Connection) -> None:
    _add_colour(con)
    raise ZeroDivisionError


def test_migrations_are_applied_once_in_order_and_recorded(store: Store) -> None:
    steps = (*MIGRATIONS, Migration(len(MIGRATIONS) + 1, "colour", _add_colour))
    assert [step.name for step in migrate(store.catalog, steps)] == ["colour"]
    assert migrate(store.catalog, steps) == []
    with store.catalog.read() as con:
        recorded = con.execute("SELECT version, name FROM schema_migrations ORDER BY version").fetchall()
        assert recorded == [(step.version, step.name) for step in steps]
        assert con.execute("SELECT count(colour) FROM replays").fetchone() == (0,)


@pytest.mark.slow
def test_an_older_catalog_gets_its_lineage_as_columns(tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    duckdb.connect(str(path)).close()
    number = next(step.version for step in MIGRATIONS if step.name == "lineage in columns")
    migrate(Catalog(path), MIGRATIONS[: number - 1])
    configs: list[dict[str, object]] = [{"policy_sha256": "abc", "also": ["d2", "d3"], "draw": 4}, {"origin": "x"}]
    with Catalog(path).write() as con:
        for place, config in enumerate(configs):
            policy = {"policy_id": f"p{place}", "kind": "refined", "sha256": "s", "config": config, "run_ids": ["r"]}
            refinement = {"refinement_id": f"f{place}", "dataset_id": "d", "arm": "labels", "config": config}
            insert_rows(con, "policies", [policy])
            insert_rows(con, "refinements", [refinement])
    migrate(Catalog(path))
    with Catalog(path).read() as con:
        policies = con.execute("SELECT policy_sha256, also, run_ids FROM policies ORDER BY policy_id").fetchall()
        refinements = con.execute("SELECT draw, also FROM refinements ORDER BY refinement_id").fetchall()
    assert policies == [("abc", ["d2", "d3"], ["r"]), (None, None, ["r"])]
    assert refinements == [(4, ["d2", "d3"]), (None, None)]


def test_a_migration_that_fails_leaves_the_catalog_as_it_was(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        migrate(store.catalog, (*MIGRATIONS, Migration(len(MIGRATIONS) + 1, "broken", _break_halfway)))
    with store.catalog.read() as con:
        assert catalog_version(con) == len(MIGRATIONS)
        columns = con.execute("SELECT column_name FROM duckdb_columns() WHERE table_name = 'replays'").fetchall()
    assert ("colour",) not in columns


def test_a_catalog_newer_than_the_code_is_refused(store: Store) -> None:
    newest = len(MIGRATIONS)
    migrate(store.catalog, (*MIGRATIONS, Migration(newest + 1, "colour", _add_colour)))
    with pytest.raises(
        Prerequisite, match=rf"has version {newest + 1}; this trajnote knows versions up to {newest}\. Upgrade"
    ):
        Store.open(store.root)


def test_a_write_waits_for_the_readers_of_its_own_process(store: Store) -> None:
    reading, order = threading.Event(), list[str]()

    def read() -> None:
        with store.catalog.read() as con:
            reading.set()
            time.sleep(0.1)
            order.append(f"read {len(replays(con))}")

    thread = threading.Thread(target=read)
    thread.start()
    reading.wait()
    with store.catalog.write() as con:
        insert_rows(con, "replays", [replay("a")])
        order.append("wrote")
    thread.join()
    assert order == ["read 0", "wrote"]


def test_a_file_is_free_for_other_processes_after_each_use_though_its_instance_lives_on(store: Store) -> None:
    with store.catalog.write() as con:
        insert_rows(con, "replays", [replay("a")])
    assert not Path(f"{store.catalog.path}.wal").exists()
    with store.catalog.read() as con:
        assert replays(con) == ["a"]
    with duckdb.connect(str(store.catalog.path)) as con:
        assert replays(con) == ["a"]


@pytest.mark.slow
def test_two_stores_are_open_at_once_and_each_sees_its_own(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other")
    with store.catalog.write() as con:
        insert_rows(con, "replays", [replay("a")])
        with other.catalog.read() as beside:
            assert replays(beside) == []
        assert replays(con) == ["a"]


def test_an_instance_in_which_something_failed_is_not_used_again(store: Store) -> None:
    def set_and_fail() -> None:
        with store.catalog.write() as con:
            con.execute("SET GLOBAL default_null_order = 'nulls_first'")
            insert_rows(con, "replays", [replay("a")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        set_and_fail()
    with store.catalog.read() as con:
        assert replays(con) == []
        assert con.execute("SELECT current_setting('default_null_order')").fetchall() != [("NULLS_FIRST",)]


@pytest.mark.slow
def test_no_reader_begins_while_a_writer_waits_and_one_that_reads_already_is_not_held_up(store: Store) -> None:
    gate = os.open(store.rollouts_dir, os.O_RDONLY)  # its lock is held by a process that waits to write
    with store.catalog.read():
        fcntl.flock(gate, fcntl.LOCK_EX)
        with store.catalog.read() as con:
            assert con.execute("SELECT 1").fetchall() == [(1,)]
    order: list[str] = []

    def read() -> None:
        with store.catalog.read():
            order.append("read")

    reader = threading.Thread(target=read)
    reader.start()
    order.append("let go")
    fcntl.flock(gate, fcntl.LOCK_UN)
    reader.join()
    assert order == ["let go", "read"]
    with store.catalog.write() as con:
        con.execute("CREATE TABLE written (number INTEGER)")
    fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a writer that has finished holds up nobody
    with Catalog(store.catalog.path, wait_s=0.1).read() as con:  # and a lock that stays is waited for, then passed
        assert con.execute("SELECT count(*) FROM written").fetchall() == [(0,)]
    os.close(gate)
