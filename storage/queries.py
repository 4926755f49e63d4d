"""Questions in SQL from anyone: one statement that can read the catalog and the registered Parquet files, no more."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pyarrow as pa

from .catalog import Connection, is_corrupt
from .errors import BadInput, DamagedStore, TrajnoteError
from .store import Store

_OF_THE_STATEMENT = (duckdb.ProgrammingError, duckdb.DataError)
_ALLOWED = "Allowed are SELECT, WITH, FROM, EXPLAIN, DESCRIBE, SHOW and SUMMARIZE."
_VERIFY = "`trajnote store verify` names everything that is damaged."
_EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?(\([^)]*\)\s*)?", re.IGNORECASE)
_HELPFUL = re.compile(r"^(Did you mean|Candidate bindings).*", re.MULTILINE)
_WHOLE_NUMBER = pa.decimal128(38, 0)


def run_query(store: Store, sql: str) -> pa.Table:
    """The answer to one question.

    It cannot change anything: the file is opened for reading only, one reading statement is taken, and neither other
    files, the network, extensions nor settings can be reached.

    Args:
        store: the store to ask.
        sql: one statement in DuckDB's SQL.

    Raises:
        BadInput: if it is not one reading statement, or DuckDB does not accept it.
        DamagedStore: if the catalog, or a Parquet file that the question itself names, is missing or damaged. A dataset
            with a damaged file is left out of the views, with a `LeftOutWarning`.
    """
    _require_one_reading_statement(sql)
    try:
        return _ask(store, sql)
    except (BadInput, DamagedStore) as error:
        of_the_question = isinstance(error.__cause__, (*_OF_THE_STATEMENT, duckdb.PermissionException))
        if (of_the_question and isinstance(error, BadInput)) or not store.leave_out_damaged():
            raise
    return _ask(store, sql)


def _ask(store: Store, sql: str) -> pa.Table:
    with store.catalog.read_alone() as con:
        shards = _shut_in(con, store.rollouts_dir)
        try:
            return _with_plain_sums(con.sql(sql).to_arrow_table())
        except duckdb.Error as error:
            if is_corrupt(error):
                raise  # the catalog says which file it is
            raise _explain(error, shards) from error


def _require_one_reading_statement(sql: str) -> None:
    kinds = _kinds(sql)
    if kinds == ["EXPLAIN"]:
        kinds = _kinds(_EXPLAIN.sub("", sql, count=1))
    if len(kinds) != 1:
        raise BadInput(f"A query is one statement; received {len(kinds)}.", _ALLOWED)
    if kinds != ["SELECT"]:
        raise BadInput(f"A query only reads; received a statement of kind {kinds[0]}.", _ALLOWED)


def _kinds(sql: str) -> list[str]:
    try:
        return [statement.type.name for statement in duckdb.extract_statements(sql)]
    except duckdb.Error as error:
        raise BadInput(_one_line(error)) from error
    except ValueError as error:  # a kind that this version of DuckDB has no name for, such as UPDATE EXTENSIONS
        raise BadInput("A query only reads; received a statement of another kind.", _ALLOWED) from error


def _shut_in(con: Connection, rollouts: Path) -> list[Path]:
    """Leave a connection nothing but the catalog and the registered shards, for good, and say which those are.

    Not the folder of the rollouts: DuckDB takes `folder/link/../file` for a file in the folder, but the operating
    system follows the link first.
    """
    rows = con.execute("SELECT DISTINCT dataset_id, shard FROM episodes").fetchall()
    shards = [rollouts / dataset_id / name for dataset_id, name in rows]
    paths = ", ".join("'" + str(path).replace("'", "''") + "'" for path in shards)
    con.execute(f"SET allowed_paths = [{paths}]")
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")
    return shards


def _explain(error: duckdb.Error, shards: list[Path]) -> TrajnoteError:
    line = _one_line(error)
    named = next((path for path in shards if str(path) in line), None)
    if named is not None and not named.is_file():
        return DamagedStore(f"{named} is missing.", _VERIFY)
    if isinstance(error, duckdb.PermissionException):
        return BadInput(line, "A query reaches only this store's tables and views.")
    return BadInput(line) if named is None else DamagedStore(line, _VERIFY)


def _one_line(error: duckdb.Error) -> str:
    text = str(error).strip()
    return " ".join([text.split("\n", 1)[0], *(hint.group() for hint in _HELPFUL.finditer(text))])


def _with_plain_sums(table: pa.Table) -> pa.Table:
    """DuckDB's sums of whole numbers have 128 bits; those that fit become ordinary int64 columns."""
    for place, field in enumerate(table.schema):
        if field.type == _WHOLE_NUMBER:
            try:
                table = table.set_column(place, field.name, table.column(place).cast(pa.int64()))
            except pa.ArrowInvalid:
                continue
    return table
