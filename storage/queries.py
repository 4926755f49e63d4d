"""Questions in SQL from anyone: one statement that can read the catalog and the registered Parquet files, no more."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pyarrow as pa

from .catalog import Connection
from .errors import BadInput, DamagedStore, TrajnoteError
from .store import Store

_OF_THE_STATEMENT = (duckdb.ProgrammingError, duckdb.DataError)
_ALLOWED = "Allowed are SELECT, WITH, FROM, EXPLAIN, DESCRIBE, SHOW and SUMMARIZE."
_VERIFY = (
    "`trajnote store verify` names everything that is damaged. Without the damaged file the views leave its dataset "
    "out, and the others can be asked."
)
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
        DamagedStore: if a Parquet file that it needs is missing or damaged.
    """
    _require_one_reading_statement(sql)
    with store.catalog.read_alone() as con:
        shards = _shut_in(con, store.rollouts_dir)
        try:
            answer = con.sql(sql)
            return _with_plain_sums(answer.to_arrow_table())
        except duckdb.Error as error:
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
    named = [path for path in shards if str(path) in line]
    if missing := [path for path in named if not path.is_file()]:
        return DamagedStore(f"{missing[0]} is missing.", _VERIFY)
    if isinstance(error, duckdb.PermissionException):
        return BadInput(line, "A query reaches only this store's tables and views.")
    if not named and not isinstance(error, _OF_THE_STATEMENT) and (unreadable := _first_unreadable(shards)):
        return DamagedStore(f"{unreadable} is damaged: {line}.", _VERIFY)
    return DamagedStore(line, _VERIFY) if named else BadInput(line)


def _first_unreadable(shards: list[Path]) -> Path | None:
    """A file whose description of itself is damaged; DuckDB does not always name it."""
    import pyarrow.parquet as pq  # a tenth of the time of a question, which seldom needs it

    for path in shards:
        try:
            pq.read_metadata(path)
        except (pa.ArrowException, OSError, ValueError):
            return path
    return None


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
