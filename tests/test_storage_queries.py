from __future__ import annotations

import multiprocessing
import os
import tempfile
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from soak import every
from toy_datasets import make_draft, make_episode, write

from storage.catalog import insert_rows
from storage.errors import BadInput, DamagedStore, LeftOutWarning
from storage.queries import query as bounded
from storage.queries.query import Bounds, run_query
from storage.store import Store


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that nothing in this file may change."""
    return fill(Store.create(tmp_path_factory.mktemp("queries") / "store"))


def fill(store: Store) -> Store:
    write(store, make_draft(), [make_episode(0, 3)])
    with store.catalog.write() as con:
        insert_rows(con, "annotation_runs", [{"run_id": "run", "dataset_id": "d1", "provider": "file"}])
    return store


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sql", "answer"),
    [
        ("SELECT count(*) AS n FROM steps", [{"n": 4}]),
        ("WITH t AS (SELECT 2 AS a) SELECT a FROM t;", [{"a": 2}]),
        ("FROM steps SELECT step WHERE action IS NULL -- the final row", [{"step": 3}]),
        ("SELECT sum(step) AS n FROM steps", [{"n": 6}]),
        ("SELECT run_id FROM annotation_runs", [{"run_id": "run"}]),
        ("SELECT 1 WHERE false", []),
    ],
)
def test_a_question_is_answered(filled: Store, sql: str, answer: list[dict[str, object]]) -> None:
    assert run_query(filled, sql).to_pylist() == answer


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql", ["EXPLAIN SELECT 1", "EXPLAIN ANALYZE FROM steps", "DESCRIBE steps", "SHOW TABLES", "SUMMARIZE datasets"]
)
def test_looking_around_is_allowed(filled: Store, sql: str) -> None:
    assert run_query(filled, sql).num_rows > 0


@pytest.mark.slow
def test_whole_sums_are_ordinary_integers_when_they_fit(filled: Store) -> None:
    assert run_query(filled, "SELECT sum(step) AS n FROM steps").schema.field("n").type == pa.int64()
    assert run_query(filled, "SELECT 2::HUGEINT ** 100::HUGEINT AS n, 1::HUGEINT << 100 AS m").num_rows == 1


WRITING = [
    "INSERT INTO replays (replay_id) VALUES ('x')",
    "WITH t AS (INSERT INTO replays BY NAME SELECT 'x' AS replay_id RETURNING replay_id) FROM t",
    "EXPLAIN ANALYZE INSERT INTO replays (replay_id) VALUES ('x')",
    "DELETE FROM annotations",
    "DROP VIEW steps",
    "CREATE TEMP TABLE t AS SELECT 1",
    "COPY datasets TO '{rollouts}/stolen.csv'",
    "EXPLAIN ANALYZE COPY datasets TO '{rollouts}/stolen.csv'",
    "explain /* quietly */ analyze COPY datasets TO '{rollouts}/stolen.csv'",
    "EXPORT DATABASE '{rollouts}/stolen'",
    "ATTACH '{outside}/other.duckdb'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PRAGMA database_list",
    "SET threads = 1",
    "RESET enable_external_access",
    "CALL enable_logging()",
    "CHECKPOINT",
    "PREPARE q AS SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW steps",
    "EXPLAIN ANALYZE SELECT 1; DROP VIEW steps",
    "EXPLAIN ANALYZE DELETE FROM datasets",
    "EXPLAIN (FORMAT json, ANALYZE) COPY datasets TO '{rollouts}/stolen.csv'",
    "EXPLAIN EXPLAIN ANALYZE COPY datasets TO '{rollouts}/stolen.csv'",
    "COPY datasets FROM '{outside}/secret.txt'",
    "COPY FROM DATABASE catalog TO other",
    "EXPORT DATABASE '{outside}/stolen' (FORMAT parquet)",
    "IMPORT DATABASE '{outside}'",
    "ATTACH ':memory:' AS other",
    "ATTACH 'https://example.com/x.duckdb'",
    "DETACH catalog",
    "USE memory",
    "CREATE TEMP VIEW v AS FROM read_text('{outside}/secret.txt')",
    "CREATE TEMP MACRO m() AS TABLE FROM read_text('{outside}/secret.txt')",
    "CREATE SECRET s (TYPE s3)",
    "CREATE PERSISTENT SECRET s (TYPE s3)",
    "SET VARIABLE x = 1",
    "SET allowed_paths = ['{outside}/secret.txt']",
    "SET allowed_directories = ['/']",
    "SET enable_external_access = true",
    "SET GLOBAL home_directory = '{outside}'",
    "RESET lock_configuration",
    "PRAGMA enable_external_access",
    "PRAGMA export_database('{rollouts}')",
    "UPDATE datasets SET source = 'x'",
    "ALTER TABLE datasets ADD COLUMN x INT",
    "TRUNCATE datasets",
    "BEGIN",
    "VACUUM",
    "UPDATE EXTENSIONS",
    "FORCE INSTALL httpfs",
    "INSTALL spatial FROM 'http://127.0.0.1'",
    "LOAD '{outside}/x.duckdb_extension'",
    "EXECUTE q",
    "SET memory_limit = '1TB'",
    "RESET memory_limit",
    "PRAGMA memory_limit = '1TB'",
    "SET max_temp_directory_size = '1TB'",
    "SET temp_directory = '{outside}'",
    "SET GLOBAL threads = 1000",
    "CALL pragma_memory_limit('1TB')",
    "",
    "-- nothing",
]
READING_ELSEWHERE = [
    "FROM read_csv('/etc/passwd')",
    "FROM '/etc/passwd'",
    "FROM read_text('{outside}/secret.txt')",
    "FROM read_text('{rollouts}/../../secret.txt')",
    "FROM read_text('{rollouts}/link.txt')",
    "FROM read_blob('/proc/self/environ')",
    "FROM glob('/etc/*')",
    "FROM parquet_metadata('{outside}/secret.txt')",
    "FROM read_parquet('https://example.com/x.parquet')",
    "FROM query('FROM read_text(''{outside}/secret.txt'')')",
    "SELECT (SELECT content FROM read_text('{outside}/secret.txt'))",
    "FROM read_text('{rollouts}/inner.txt')",
    "FROM read_text('{rollouts}/*.txt')",
    "FROM read_text('{rollouts}/links/secret.txt')",
    "FROM read_text('{rollouts}/links/../secret.txt')",
    "FROM read_text('{rollouts}/d1/../links/../secret.txt')",
    "FROM read_text('{rollouts}/d1/steps-00000.parquet/../../links/../secret.txt')",
    "FROM read_csv('{rollouts}/links/../secret.txt')",
    "FROM read_text(concat('{rollouts}/links/.', './secret.txt'))",
    "FROM read_text(['{rollouts}/d1/steps-00000.parquet', '{outside}/secret.txt'])",
    "FROM read_text('file://{outside}/secret.txt')",
    "FROM read_text('~/.bashrc')",
    "FROM read_text('/dev/stdin')",
    "FROM sniff_csv('{outside}/secret.txt')",
    "FROM read_json('{outside}/secret.txt')",
    "FROM read_ndjson_objects('{outside}/secret.txt')",
    "FROM read_csv('{rollouts}/d1/manifest.json', store_rejects = true)",
    "FROM parquet_schema('{outside}/secret.txt')",
    "FROM parquet_kv_metadata('{outside}/secret.txt')",
    "FROM parquet_file_metadata('{outside}/secret.txt')",
    "FROM parquet_bloom_probe('{outside}/secret.txt', 'a', 1)",
    "FROM glob('{rollouts}/links/../*')",
    "FROM glob('{rollouts}/*/../../*')",
    "FROM glob('{outside}/*')",
    'FROM "{outside}/secret.csv"',
    "FROM query_table('{outside}/secret.csv')",
    "FROM query_table(['{outside}/secret.csv'])",
    "DESCRIBE '{outside}/secret.csv'",
    "SUMMARIZE '{outside}/secret.csv'",
    "PIVOT '{outside}/secret.csv' ON a USING sum(b)",
    "EXPLAIN ANALYZE FROM '{outside}/secret.csv'",
    "FROM histogram('{outside}/secret.csv', 'a')",
    "WITH f AS MATERIALIZED (FROM read_text('{outside}/secret.txt')) FROM f",
    "SELECT list_transform([1], lambda x: (SELECT content FROM read_text('{outside}/secret.txt')))",
    "FROM (VALUES ('{outside}/secret.txt')) AS t(path), LATERAL (FROM read_text(path))",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{outside}/secret.txt'')'))",
    "FROM sqlite_scan('{outside}/other.db', 't')",
    "FROM postgres_scan('host=127.0.0.1', 'a', 'b')",
    "FROM read_text('http://127.0.0.1:9/x')",
    "FROM read_csv('s3://bucket/x.csv')",
    "FROM read_parquet('hf://datasets/a/b')",
    "FROM 'https://example.com/x.csv'",
    "FROM which_secret('s3://bucket', 's3')",
    "FROM enable_profiling()",
    "FROM arrow_scan(0, 0, 0)",
    "FROM pandas_scan(0)",
    "SELECT set_config('threads', '1')",
    "SELECT current_setting('s3_secret_access_key')",
    "/* quietly */ FROM -- so\n read_text('{outside}/secret.txt')",
    "SELECT $1",
    "SELECT getenv('HOME')",
    "FROM duckdb_secrets()",
    "FROM enable_logging(storage = 'file', storage_path = '{outside}/log')",
    "FROM filled",
    "SELEC 1",
    "SELECT nothing FROM steps",
]


@pytest.mark.slow
@pytest.mark.parametrize("sql", every(WRITING + READING_ELSEWHERE, 3))
def test_nothing_else_can_be_done_or_seen(filled: Store, sql: str) -> None:
    outside, link = filled.root.parent, filled.rollouts_dir / "link.txt"
    (outside / "secret.txt").write_text("secret")
    if not link.exists():
        link.symlink_to(outside / "secret.txt")
        (outside / "below").mkdir()
        (outside / "secret.csv").write_text("a,b\n1,2\n")
        (filled.rollouts_dir / "links").symlink_to(outside / "below")
        (filled.rollouts_dir / "inner.txt").write_text("not a shard")
    before = sorted(outside.rglob("*"))
    with pytest.raises(BadInput) as caught:
        run_query(filled, sql.format(rollouts=filled.rollouts_dir, outside=outside))
    assert "\n" not in str(caught.value)
    assert sorted(outside.rglob("*")) == before


def test_a_misspelt_column_is_answered_in_one_line_with_the_nearest(filled: Store) -> None:
    with pytest.raises(BadInput, match=r'"rewad" not found.*Candidate bindings.*"reward"'):
        run_query(filled, "SELECT rewad FROM steps")


@pytest.mark.slow
def test_a_dataset_whose_shard_is_damaged_after_the_store_was_opened_is_left_out_and_named(store: Store) -> None:
    fill(store)
    path = store.dataset_dir("d1") / "steps-00000.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(LeftOutWarning, match=r"d1.*steps-00000\.parquet"):
        assert run_query(store, "SELECT count(*) AS n FROM steps").to_pylist() == [{"n": 0}]
    path.unlink()
    with pytest.raises(DamagedStore, match=r"steps-00000\.parquet is missing"), pytest.warns(LeftOutWarning):
        run_query(store, f"FROM '{path}'")


def test_the_worker_of_a_pool_may_ask(filled: Store) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(run_query, (filled, "SELECT 1 AS a")).to_pylist() == [{"a": 1}]


@pytest.mark.slow
def test_a_question_leaves_the_catalog_usable(store: Store) -> None:
    fill(store)
    run_query(store, "FROM steps")
    with store.catalog.write() as con:
        assert con.execute("SELECT count(*) FROM read_text(?)", [__file__]).fetchone() == (1,)


@pytest.mark.slow
def test_a_store_behind_a_link_can_be_asked(store: Store, tmp_path: Path) -> None:
    fill(store)
    link = tmp_path / "link"
    link.symlink_to(store.root)
    assert run_query(Store.open(link), "SELECT count(*) AS n FROM steps").to_pylist() == [{"n": 4}]
    assert run_query(Store.open(store.root), "SELECT count(*) AS n FROM steps").to_pylist() == [{"n": 4}]


def test_a_long_question_prints_no_progress_among_its_rows(store: Store) -> None:
    assert run_query(store, "SELECT current_setting('enable_progress_bar') AS shown").to_pylist() == [{"shown": False}]


VALUES = {
    r"'\xAA\x00b'::BLOB": r"\xAA\x00b",
    "INTERVAL '1 month 2 days 3.5 seconds'": "1 month 2 days 00:00:03.5",
    "MAP {'a': 1, 'b': NULL}": [("a", 1), ("b", None)],
    "union_value(num := 2)": "2",
    "170141183460469231731687303715884105727::HUGEINT": Decimal("170141183460469231731687303715884105727"),
    "340282366920938463463374607431768211455::UHUGEINT": "340282366920938463463374607431768211455",
    "1.5::DECIMAL(4, 2)": 1.5,
    "'6ba7b810-9dad-11d1-80b4-00c04fd430c8'::UUID": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "'a'::ENUM('a', 'b')": "a",
    "'0101'::BIT": "0101",
    "TIME '12:34:56.789'": "12:34:56.789",
    "TIMETZ '12:34:56+02'": "12:34:56+02",
    "'2026-01-01 01:02:03.123456789'::TIMESTAMP_NS": "2026-01-01 01:02:03.123456789",
    "'infinity'::TIMESTAMP": "infinity",
    "'20000-01-01'::DATE": "20000-01-01",
    "TIMESTAMPTZ '2026-01-01 01:02:03+02'": "2025-12-31 23:02:03+00",
    "{'a': [1, NULL], 'b': {'c': '\\x01'::BLOB}, 'd': [INTERVAL 1 DAY]}": {
        "a": [1, None],
        "b": {"c": "\\x01"},
        "d": ["1 day"],
    },
    "[1, NULL, 3]::INTEGER[3]": [1, None, 3],
    "[NULL, 'inf'::DOUBLE]": [None, float("inf")],
    "NULL": None,
}


@pytest.mark.slow
def test_a_value_of_every_type_has_a_form(filled: Store) -> None:
    columns = ", ".join(f"{value} AS v{place}" for place, value in enumerate(VALUES))
    question = f"SELECT {columns} UNION ALL SELECT {', '.join(['NULL'] * len(VALUES))}"
    rows = run_query(filled, question, as_text=True)
    for place, (value, form) in enumerate(VALUES.items()):
        assert rows[f"v{place}"].to_pylist() == [form, None], value
    pq.write_table(run_query(filled, question), pa.BufferOutputStream())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "given"),
    [
        (["a", "a"], ["a", "a_1"]),
        (["a", "a", "A", "a_1", "b"], ["a", "a_1", "A_2", "a_1_1", "b"]),
        (['"', '"'], ['"', '"_1']),
    ],
)
def test_columns_of_one_name_are_named_as_duckdb_does_in_a_subquery(
    filled: Store, names: list[str], given: list[str]
) -> None:
    quoted = [name.replace('"', '""') for name in names]
    columns = ", ".join(f'{place} AS "{name}"' for place, name in enumerate(quoted))
    expected = dict(zip(given, range(len(names)), strict=True))
    assert run_query(filled, f"SELECT {columns}").to_pylist() == [expected]
    assert run_query(filled, f"FROM (SELECT {columns})").to_pylist() == [expected]


@pytest.mark.slow
def test_a_self_join_keeps_every_column(filled: Store) -> None:
    rows = run_query(filled, "SELECT * FROM episodes AS a JOIN episodes AS b USING (dataset_id)")
    assert rows.num_columns == 15
    assert rows["return__1"].to_pylist() == rows["return_"].to_pylist()


ENDLESS = "SELECT count(*) FROM range(10000000) AS a, range(10000000) AS b"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sql", "bounds", "said"),
    [
        (ENDLESS, Bounds(timeout_s=0.5), r"longer than 0\.5 s.*--timeout"),
        (
            "SELECT list_sum(range(4000000000))",
            Bounds(memory_bytes=100_000_000),
            r"its limit of 0\.1 GB.*--memory",
        ),
    ],
)
def test_a_question_takes_no_more_than_it_may(filled: Store, sql: str, bounds: Bounds, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        run_query(filled, sql, bounds=bounds)


def test_an_interrupt_ends_a_question_and_leaves_nothing(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    fork = os.fork

    def note() -> int:
        started.append(fork())
        return started[-1]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bounded.os, "fork", note)
    monkeypatch.setattr(Connection, "poll", interrupt)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run_query(filled, ENDLESS)
    with pytest.raises(ChildProcessError):
        os.waitpid(started[0], os.WNOHANG)
    assert list(tmp_path.iterdir()) == []
