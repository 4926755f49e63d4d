"""Questions to the catalog: the named ones of pages, and a user's own SQL, which may only read and is bounded.

A question with a name is a file `FOLDER/NAME.sql` beside this one. DuckDB computes constants and values of any size
without checking for an interrupt or its own memory limit; so a user's statement runs in a process of its own, which is
killed if it takes too much time or memory, or its caller is interrupted.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shutil
import signal
import tempfile
import threading
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import duckdb
import pyarrow as pa
from duckdb.sqltypes import DuckDBPyType

from ..catalog import Connection, Row, is_corrupt, rows_of
from ..errors import BadInput, DamagedStore, TrajnoteError
from ..schema import sql_name, sql_text
from ..store import Store

if TYPE_CHECKING:
    from multiprocessing.connection import PipeConnection

_OF_THE_STATEMENT = (duckdb.ProgrammingError, duckdb.DataError)
_ALLOWED = "Allowed: SELECT, WITH, FROM, EXPLAIN, DESCRIBE, SHOW, SUMMARIZE."
_VERIFY = "`trajnote store verify` names everything that is damaged."
_EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?(\([^)]*\)\s*)?", re.IGNORECASE)
_HELPFUL = re.compile(r"^(Did you mean|Candidate bindings).*", re.MULTILINE)
_ANSWER = "answer.arrow"
_PLAIN = {
    *("boolean", "tinyint", "smallint", "integer", "bigint", "hugeint", "float", "double", "varchar"),
    *("utinyint", "usmallint", "uinteger", "ubigint"),
}
_OF_ARROW = {
    *("blob", "date", "decimal", "enum", "time", "uuid", "timestamp with time zone"),
    *("timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns"),
}
_WHOLE_NUMBER = pa.decimal128(38, 0)
_SLACK = 1 << 30  # bytes of address space beyond the limit, for libraries and thread stacks


@dataclass(frozen=True)
class Bounds:
    """Limits of a question."""

    timeout_s: float = 600.0
    memory_bytes: int | None = None  # None: half of the machine's

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        return self.memory_bytes or _machine_memory() // 2


def _ask_apart(store: Store, sql: str, as_text: bool, bounds: Bounds) -> pa.Table:
    """Ask in a forked process, which leaves the answer in a temporary folder and sends what has failed, or nothing.

    It is not a `multiprocessing.Process`: the worker of a pool may not start one.
    """
    with tempfile.TemporaryDirectory(prefix="trajnote-sql-", ignore_cleanup_errors=True) as folder:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        watched, held = multiprocessing.Pipe(duplex=False)  # closes when this process ends
        child = os.fork()
        if child == 0:
            ours.close()
            held.close()
            _answer(store, sql, Path(folder), as_text, bounds, theirs, watched)
        theirs.close()
        watched.close()
        with ours, held:
            failure = _find_failure(child, ours, bounds)
        if failure is not None:
            raise failure
        with pa.memory_map(str(Path(folder) / _ANSWER)) as file:
            return _with_plain_sums(pa.ipc.open_file(file).read_all())


def _find_failure(child: int, ours: PipeConnection[Any, Any], bounds: Bounds) -> Exception | None:
    """What has failed, if anything; the process has ended then, by itself or by force."""
    try:
        if ours.poll(bounds.timeout_s):
            failure: Exception | None = ours.recv()
        else:
            failure = BadInput(
                f"The query took longer than {bounds.timeout_s:g} s.", "Allow more with --timeout SECONDS."
            )
    except EOFError:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return _too_much_memory(bounds, f"its process ended with {code}" if code < 0 else "")
    except BaseException:
        _end(child)
        raise
    _end(child)
    return failure


def _end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _answer(
    store: Store,
    sql: str,
    folder: Path,
    as_text: bool,
    bounds: Bounds,
    caller: PipeConnection[Any, Any],
    watched: PipeConnection[Any, Any],
) -> NoReturn:
    failure: Exception | None = None
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller notices it, and ends this process
        threading.Thread(target=_end_with_caller, args=(watched, folder), daemon=True).start()
        _limit_memory(bounds.memory)
        _ask(store, sql, folder, as_text, bounds)
    except TrajnoteError as error:
        failure = error
    except MemoryError:
        failure = _too_much_memory(bounds)
    except BaseException:
        failure = RuntimeError(traceback.format_exc())
    try:
        caller.send(failure)
    finally:
        os._exit(0)


def _end_with_caller(watched: PipeConnection[Any, Any], folder: Path) -> None:
    watched.poll(None)  # nothing is ever sent: returns when the other end is closed
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _limit_memory(memory: int) -> None:
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory + _SLACK, hard))
    except (OSError, ValueError):
        return  # not on this system: only DuckDB's own limit remains


def _too_much_memory(bounds: Bounds, why: str = "") -> BadInput:
    """The error for work that exceeds its memory limit."""
    because = f" ({why})" if why else ""
    return BadInput(
        f"The query needs more memory than its limit of {bounds.memory / 1e9:.1f} GB{because}.",
        "Select less, or allow more with --memory GB.",
    )


def _machine_memory() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return memory


_FOLDER = Path(__file__).parent


def ask(con: Connection, name: str, **values: object) -> list[Row]:
    """The rows of an answer, each as a dictionary by column.

    Args:
        con: a connection to the catalog.
        name: of the question, `report/arms` for example.
        values: for its parameters, by name.
    """
    return rows_of(con.execute(_question(name), values))


@cache
def _question(name: str) -> str:
    return (_FOLDER / f"{name}.sql").read_text()


_BOUNDS = Bounds()


def run_query(store: Store, sql: str, *, as_text: bool = False, bounds: Bounds = _BOUNDS) -> pa.Table:
    """Answer one query.

    It cannot change anything: the file is opened read-only, one reading statement is accepted, and neither other
    files, the network, extensions nor settings can be reached. It runs in a process of its own. Columns of
    equal names are named as DuckDB does in a subquery: `a`, `a_1`.

    Args:
        store: the store to ask.
        sql: one statement in DuckDB's SQL.
        as_text: let DuckDB write as text what a text file has no form for: times, bytes, enumerations, decimals as
            doubles. What Arrow has no form for (intervals, unions, bit strings ...) is text in any case.
        bounds: limits of time, memory and disk space.

    Raises:
        BadInput: if it is not one reading statement, DuckDB rejects it, or it exceeds its limits.
        DamagedStore: if the catalog, or a Parquet file that the query itself names, is missing or damaged. A dataset
            with a damaged file is left out of the views, with a `LeftOutWarning`.
    """
    _require_one_reading_statement(sql)
    try:
        return _ask_apart(store, sql, as_text, bounds)
    except DamagedStore as error:
        if not store.leave_out_damaged():
            raise error if error.hint else BadInput(error.problem) from error
    return _ask_apart(store, sql, as_text, bounds)


def _ask(store: Store, sql: str, folder: Path, as_text: bool, bounds: Bounds) -> None:
    with store.catalog.read_alone() as con:
        _set_bounds(con, folder, bounds)
        shards = _shut_in(con, store.rollouts_dir)
        try:
            relation = con.sql(sql).project("*")  # which gives equal names a number
            answer = relation.project(_columns(relation, as_text)).to_arrow_table()
        except duckdb.OutOfMemoryException as error:
            raise _too_much_memory(bounds, _one_line(error)) from error
        except duckdb.Error as error:
            if is_corrupt(error):
                raise  # the catalog says which file it is
            raise _explain(error, shards) from error
    with pa.OSFile(str(folder / _ANSWER), "wb") as file, pa.ipc.new_file(file, answer.schema) as writer:
        writer.write_table(answer)


def _set_bounds(con: Connection, folder: Path, bounds: Bounds) -> None:
    room = shutil.disk_usage(folder).free // 2
    con.execute(f"SET temp_directory = '{folder / 'spilled'}'")
    con.execute(f"SET max_temp_directory_size = '{room} B'")
    con.execute(f"SET memory_limit = '{bounds.memory} B'")


def _columns(relation: duckdb.DuckDBPyRelation, as_text: bool) -> str:
    """The columns of an answer in types that Arrow, or a text file, has a form for."""
    columns: list[str] = []
    for place, (name, kind) in enumerate(zip(relation.columns, relation.types, strict=True), 1):
        wanted = _plain_type(kind, as_text)
        value = f"#{place}" if wanted == str(kind) else f"CAST(#{place} AS {wanted})"
        columns.append(f"{value} AS {sql_name(name)}")
    return ", ".join(columns)


def _plain_type(kind: DuckDBPyType, as_text: bool) -> str:
    """The type that a column has outside DuckDB."""
    if kind.id in ("list", "array", "struct", "map"):
        return _nested_type(kind, as_text)
    if kind.id == "decimal" and as_text:
        return "DOUBLE"
    plain = kind.id in _PLAIN or (not as_text and kind.id in _OF_ARROW)
    return str(kind) if plain else "VARCHAR"


def _nested_type(kind: DuckDBPyType, as_text: bool) -> str:
    children = [(name, child) for name, child in kind.children if isinstance(child, DuckDBPyType)]
    inner = [_plain_type(child, as_text) for _, child in children]
    if all(new == str(child) for new, (_, child) in zip(inner, children, strict=True)):
        return str(kind)
    if kind.id == "list":
        return f"{inner[0]}[]"
    if kind.id == "array":
        return f"{inner[0]}[{dict(kind.children)['size']}]"
    if kind.id == "map":
        return f"MAP({', '.join(inner)})"
    return f"STRUCT({', '.join(f'{sql_name(name)} {new}' for new, (name, _) in zip(inner, children, strict=True))})"


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
    """Restrict a connection, for good, to the catalog and the registered shards; returns those shards.

    Shards are allowed one by one, not by folder: DuckDB takes `folder/link/../file` for a file in the folder, but
    the operating system follows the link first.
    """
    rows = con.execute("SELECT DISTINCT dataset_id, shard FROM episodes").fetchall()
    shards = [rollouts / dataset_id / name for dataset_id, name in rows]
    paths = ", ".join(sql_text(str(path)) for path in shards)
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
    if named is not None:
        return DamagedStore(line, _VERIFY)
    return BadInput(line) if isinstance(error, _OF_THE_STATEMENT) else DamagedStore(line)  # without a hint: or is it?


def _one_line(error: duckdb.Error) -> str:
    text = str(error).strip()
    return " ".join([text.split("\n", 1)[0], *(hint.group() for hint in _HELPFUL.finditer(text))])


def _with_plain_sums(table: pa.Table) -> pa.Table:
    """DuckDB's sums of whole numbers have 128 bits; those that fit become int64 columns."""
    for place, field in enumerate(table.schema):
        if field.type == _WHOLE_NUMBER:
            try:
                table = table.set_column(place, field.name, table.column(place).cast(pa.int64()))
            except pa.ArrowInvalid:
                continue
    return table
