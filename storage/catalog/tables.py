"""The catalog's tables: the steps that make them, how rows get in, what each column means, whether their files stand.

The steps are ordered, one transaction each, and recorded in `schema_migrations`; they are the files `migrations/*.sql`.
One that was released is never edited; a change is a new file at the end. The words are read from `comments.toml`, and
written as the catalog's comments. Views are made in `views.py`. `rollouts` is the absolute folder with one folder per
dataset.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import pyarrow as pa
from pydantic import ValidationError

from ..errors import BadInput, Prerequisite
from ..schema import Annotation, Manifest, Space, canonical_json, sha256_bytes, sha256_file, sql_name, sql_text
from .connection import Catalog, Connection, error_line

_BOOK = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY, name VARCHAR NOT NULL, applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)
"""
_ENTER = "INSERT INTO schema_migrations (version, name) VALUES (?, ?)"


class Migration(NamedTuple):
    """One step: its number, its name, and what it does to the catalog."""

    version: int
    name: str
    apply: Callable[[Connection], object]


def _read(path: Path) -> Migration:
    number, name = path.stem.split("_", 1)
    return Migration(int(number), name.replace("_", " "), lambda con: con.execute(path.read_text()))


MIGRATIONS: tuple[Migration, ...] = tuple(map(_read, sorted((Path(__file__).parent / "migrations").glob("*.sql"))))


def create_tables(con: Connection) -> None:
    """Take all steps at once, in a file that nobody else knows yet."""
    con.execute(_BOOK)
    for step in MIGRATIONS:
        step.apply(con)
    con.executemany(_ENTER, [(step.version, step.name) for step in MIGRATIONS])


def migrate(catalog: Catalog, migrations: tuple[Migration, ...] = MIGRATIONS) -> list[Migration]:
    """Bring a catalog to the newest version; a step that fails leaves the catalog as it was before that step.

    Args:
        catalog: its file must exist.
        migrations: in order of their versions, which are 1, 2, 3 ...

    Returns:
        The steps that were applied now; none when there was nothing to do.

    Raises:
        Prerequisite: if the catalog was written by a newer trajnote.
    """
    with catalog.read() as con:
        pending = _pending(con, catalog, migrations)
    applied: list[Migration] = []
    for step in pending:
        with catalog.write() as con:
            if step in _pending(con, catalog, migrations):
                con.execute(_BOOK)
                step.apply(con)
                con.execute(_ENTER, [step.version, step.name])
                applied.append(step)
    return applied


def _pending(con: Connection, catalog: Catalog, migrations: tuple[Migration, ...]) -> list[Migration]:
    version = catalog_version(con)
    newest = migrations[-1].version
    if version > newest:
        raise Prerequisite(
            f"The catalog {catalog.path} has version {version}; this trajnote knows versions up to {newest}.",
            "Upgrade trajnote to the version that wrote it.",
        )
    return [step for step in migrations if step.version > version]


def is_newest(con: Connection) -> bool:
    """Whether a catalog has exactly the tables that this trajnote knows."""
    return catalog_version(con) == MIGRATIONS[-1].version


def catalog_version(con: Connection) -> int:
    """The version of the newest step that was applied; 0 for an empty file."""
    there = con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'schema_migrations'").fetchone()
    if there is None:
        return 0
    ((version,),) = con.execute("SELECT max(version) FROM schema_migrations").fetchall()
    return version or 0


OnConflict = Literal["ignore", "replace", "error"]
_ARROW_TYPES: Mapping[str, pa.DataType] = {
    "VARCHAR": pa.string(),
    "JSON": pa.string(),
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", tz="UTC"),
    "VARCHAR[]": pa.list_(pa.string()),
    "DOUBLE[]": pa.list_(pa.float64()),
}
_INSERT = {"ignore": "INSERT OR IGNORE INTO", "replace": "INSERT OR REPLACE INTO", "error": "INSERT INTO"}


def insert_rows(
    con: Connection, table: str, rows: Sequence[Mapping[str, object]], *, on_conflict: OnConflict = "ignore"
) -> int:
    """Insert rows by column name, all alike in one statement; columns that a row does not name get their default.

    Mappings and sequences in JSON columns become canonical JSON; times are datetimes or ISO 8601 texts.

    Args:
        con: a connection of `Catalog.write`.
        table: the table's name.
        rows: column name -> value.
        on_conflict: what happens to a row whose primary key exists: "ignore" it, "replace" the old one, or an "error".

    Returns:
        How many rows were inserted or replaced.

    Raises:
        BadInput: if a row has a column that the table lacks, or a value breaks one of the table's rules.
    """
    types = _column_types(con, table)
    groups: dict[tuple[str, ...], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    for name in {name for names in groups for name in names}:
        if name not in types:
            raise BadInput(f"The table {table} has no column {name!r}.", f"It has {', '.join(types)}.")
    return sum(
        _insert_alike(con, f"{_INSERT[on_conflict]} {table}", group, {name: types[name] for name in names})
        for names, group in groups.items()
    )


def _insert_alike(con: Connection, start: str, rows: Sequence[Mapping[str, object]], types: Mapping[str, str]) -> int:
    columns = {name: _arrow_column(name, [row[name] for row in rows], kind) for name, kind in types.items()}
    con.register("incoming_rows", pa.table(columns))
    try:
        counted = con.execute(f"{start} BY NAME SELECT * FROM incoming_rows").fetchone()
    except (duckdb.ConstraintException, duckdb.ConversionException) as error:
        raise BadInput(f"A row does not fit into a table ({start}): {error_line(error)}") from error
    finally:
        with suppress(duckdb.Error):  # a failed statement has aborted the transaction
            con.unregister("incoming_rows")
    return int(counted[0]) if counted else 0


def _column_types(con: Connection, table: str) -> dict[str, str]:
    try:  # `duckdb_columns()` would work out all views for it
        described = con.execute("SELECT name, type FROM pragma_table_info(?)", [table]).fetchall()
    except duckdb.CatalogException as error:
        raise BadInput(f"The catalog has no table {table!r}.") from error
    return dict(described)


def _arrow_column(name: str, values: list[Any], kind: str) -> pa.Array:
    try:
        if kind == "JSON":
            values = [value if value is None or isinstance(value, str) else canonical_json(value) for value in values]
        if kind.startswith("TIMESTAMP"):
            values = [datetime.fromisoformat(value) if isinstance(value, str) else value for value in values]
        return pa.array(values, _ARROW_TYPES[kind])
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BadInput(
            f"The column {name} cannot hold one of its values: {error}.", f"It is of type {kind}."
        ) from error


AGREEMENT_SHARE = 0.05
"""A suggested number agrees with another one within this share of its range."""
MAX_NAMED_COMPONENTS = 512
"""A dataset with more components than this has them only as `observation[i]`."""


STEP_TYPES = {
    "observation": "DOUBLE[]",
    "action": "BIGINT",
    "action_vector": "DOUBLE[]",
    "action_name": "VARCHAR",
    "reward": "DOUBLE",
    "terminated": "BOOLEAN",
    "truncated": "BOOLEAN",
    "policy_output": "FLOAT[]",
    "seed": "BIGINT",
}
KEY_TYPES = {"dataset_id": "VARCHAR", "episode_id": "BIGINT", "step": "INTEGER"}
NOTE_COLUMNS = (*(field.name for field in fields(Annotation)), "created_at")
"""Of the table `annotations`."""
JOINED_TYPES = {"agrees": "BOOLEAN", "return_": "DOUBLE", "length": "INTEGER"}


def component_columns(names: Sequence[str]) -> list[str]:
    """The columns of `annotated_steps` that hold an observation's components, in their order.

    A name becomes an SQL identifier; one that is a column of the view already gets the prefix `obs_`.
    """
    taken = {*NOTE_COLUMNS, *STEP_TYPES, *JOINED_TYPES}
    columns: list[str] = []
    for name in names[:MAX_NAMED_COMPONENTS] if len(names) <= MAX_NAMED_COMPONENTS else []:
        plain = re.sub(r"\W+", "_", name)
        column = f"obs_{plain}" if plain.lower() in taken or not re.match(r"[^\W\d]", plain) else plain
        while column.lower() in taken:
            column += "_"
        taken.add(column.lower())
        columns.append(column)
    return columns


def same_action(space: Space, left: str, right: str) -> str:
    """SQL that says whether two actions, each a DOUBLE[], agree.

    Args:
        space: of the actions.
        left: SQL of the first.
        right: SQL of the second; where a number has no bounds, its size sets the tolerance.
    """
    if space.is_discrete:
        return f"{left}[1] = {right}[1]"
    return " AND ".join(
        f"abs({left}[{place}] - {right}[{place}]) <= {_tolerance(space, place, right)}"
        for place in range(1, space.size + 1)
    )


def _tolerance(space: Space, place: int, reference: str) -> str:
    low, high = (bounds[place - 1] if bounds else math.inf for bounds in (space.low, space.high))
    if math.isfinite(low) and math.isfinite(high):
        return repr(AGREEMENT_SHARE * (high - low))
    return f"{AGREEMENT_SHARE} * greatest(1, abs({reference}[{place}]))"


_FILE = Path(__file__).with_name("comments.toml")
_COMPONENT = "Component of the observation, where the dataset has one of this name."


class Described(NamedTuple):
    """A table or a view, in words."""

    name: str
    is_view: bool
    about: str
    columns: Mapping[str, str]  # in their order


@cache
def described_tables() -> tuple[Described, ...]:
    """All tables and views; the first five are those that matter first."""
    known: dict[str, Any] = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return tuple(_describe(name, known["tables"], known["columns"]) for name in known["tables"])


def _describe(name: str, tables: Mapping[str, Mapping[str, Any]], shared: Mapping[str, str]) -> Described:
    own = tables[name]
    words = {**shared, **tables.get(own.get("like", ""), own), **own}
    return Described(
        name, own.get("view", False), own["about"], {each: words[each] for each in words["columns"].split()}
    )


def comment_on(names: Iterable[str] | None = None, components: Iterable[str] = ()) -> list[str]:
    """Statements that write the comments.

    Args:
        names: of tables and views; all when None.
        components: columns of `annotated_steps` that are named after a component of an observation.
    """
    wanted = None if names is None else set(names)
    found = [each for each in described_tables() if wanted is None or each.name in wanted]
    more = {"annotated_steps": dict.fromkeys(components, _COMPONENT)}
    return [
        statement
        for each in found
        for statement in (
            f"COMMENT ON {'VIEW' if each.is_view else 'TABLE'} {each.name} IS {sql_text(each.about)}",
            *(
                f"COMMENT ON COLUMN {each.name}.{sql_name(column)} IS {sql_text(words)}"
                for column, words in {**each.columns, **more.get(each.name, {})}.items()
            ),
        )
    ]


_ENTER_SHARD = "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, make_timestamp_ns(?))"


class ShardRow(NamedTuple):
    """A row of the table `shards`."""

    dataset_id: str
    shard: str
    sha256: str
    footer_sha256: str  # of older versions; nothing reads it
    modified_ns: int | None


class Inspection(NamedTuple):
    """What a look at all files found."""

    shards: Mapping[str, Sequence[str]]  # dataset -> its files, in their order, if none is damaged
    damaged: Mapping[str, str]  # dataset -> what is wrong with its first damaged file
    news: Sequence[ShardRow]  # rows that the table lacks or has otherwise
    datasets: Sequence[tuple[str, str]]  # id and hash of the manifest of each, the oldest first


def inspect_shards(con: Connection, rollouts: Path) -> Inspection:
    """Look at every file of every registered dataset: whether it is what was written, as far as each command can ask.

    All of a file is compared when its time has changed since that was last done; otherwise it is not opened, so that
    what is old costs a look into its folder only. What changed without another time is found when a question meets it.
    """
    known = _known_rows(con)
    shards: dict[str, list[str]] = {}
    damaged: dict[str, str] = {}
    news: list[ShardRow] = []
    datasets = con.execute(
        "SELECT dataset_id, manifest_sha256 FROM datasets ORDER BY created_at, dataset_id"
    ).fetchall()
    for dataset_id, manifest_sha256 in datasets:
        try:
            rows = known.get(dataset_id) or _first_rows(rollouts / dataset_id, manifest_sha256)
            found = [(row, _compare(rollouts / row.dataset_id / row.shard, row)) for row in rows]
        except _Damaged as damage:
            damaged[dataset_id] = str(damage)
            continue
        shards[dataset_id] = [row.shard for row, _ in found]
        news += [row for old, row in found if dataset_id not in known or old != row]
    return Inspection(shards, damaged, news, datasets)


def note_shards(con: Connection, rows: Sequence[ShardRow]) -> None:
    """Enter rows into the table."""
    if rows:
        con.executemany(_ENTER_SHARD, rows)


def suspect_shards(con: Connection, rollouts: Path) -> list[Path]:
    """The damaged files: all of every file is compared, whatever its time.

    Those that are damaged are compared again at each opening, which is noted in the catalog.
    """
    paths = {rollouts / row.dataset_id / row.shard: row for rows in _known_rows(con).values() for row in rows}
    found = [path for path, row in paths.items() if not path.is_file() or sha256_file(path) != row.sha256]
    _content_sha256.cache_clear()
    note_shards(con, [paths[path]._replace(modified_ns=None) for path in found])
    return found


class _Damaged(Exception):
    """A dataset that cannot be shown."""


def _known_rows(con: Connection) -> dict[str, list[ShardRow]]:
    rows = con.execute(
        "SELECT dataset_id, shard, sha256, footer_sha256, epoch_ns(modified_at) FROM shards ORDER BY ALL"
    ).fetchall()
    known: dict[str, list[ShardRow]] = {}
    for row in rows:
        known.setdefault(row[0], []).append(ShardRow(*row))
    return known


def _first_rows(folder: Path, manifest_sha256: str) -> list[ShardRow]:
    """The rows of a dataset that was registered just now, or by an older trajnote, from its manifest."""
    try:
        content = (folder / "manifest.json").read_bytes()
        manifest = Manifest.model_validate_json(content) if sha256_bytes(content) == manifest_sha256 else None
    except (OSError, ValidationError):
        manifest = None
    if manifest is None:
        raise _Damaged("manifest.json is missing or is not the one that was registered")
    return [ShardRow(manifest.dataset_id, shard.name, shard.sha256, "", None) for shard in manifest.shards]


def _compare(path: Path, row: ShardRow) -> ShardRow:
    """The row with the time of the file, if the file is what the row says."""
    try:
        modified_ns = path.stat().st_mtime_ns
        is_same = row.modified_ns == modified_ns or _content_sha256(path, modified_ns) == row.sha256
    except FileNotFoundError:
        raise _Damaged(f"{path.name} is missing") from None
    except OSError:
        raise _Damaged(f"{path.name} cannot be read") from None
    if not is_same:
        raise _Damaged(f"{path.name} is not what was written")
    return row._replace(modified_ns=modified_ns)


@lru_cache(maxsize=4096)
def _content_sha256(path: Path, modified_ns: int) -> str:
    """Once per process, where the result cannot be kept in the catalog."""
    del modified_ns  # it names the content
    return sha256_file(path)


class ViewState(NamedTuple):
    """How the views stand."""

    found: Inspection
    marks: Mapping[str, str]  # what each was made from, by its name
    now: str  # the mark of all, if they were made now

    @property
    def is_current(self) -> bool:
        """Whether the views are those that would be made now, and the catalog knows all that was found out."""
        return not self.found.news and self.marks.get("all") == self.now


def look_at_views(con: Connection, rollouts: Path) -> ViewState:
    """Whether the views fit the datasets that are registered, their files, and the place where the store lies now.

    Nothing is made for that: the table `view_marks` says what the views were made from.
    """
    found = inspect_shards(con, rollouts)
    ((marks, rules),) = con.execute(
        """SELECT (SELECT map(list(subject), list(made_from)) FROM view_marks),
               md5(concat_ws(';',
                   (SELECT string_agg(concat_ws(' ', rule_id, predicate, suggested_action::VARCHAR,
                       formulas::VARCHAR), ';' ORDER BY rule_id) FROM rules),
                   (SELECT string_agg(concat_ws(' ', term_id, name, expression), ';' ORDER BY term_id) FROM terms)))
        """
    ).fetchall()
    shown = [(name, manifest_sha256, name in found.damaged) for name, manifest_sha256 in found.datasets]
    now = mark_of(made_by(), canonical_json([str(rollouts) if shown else "", shown, rules]))
    return ViewState(found, marks or {}, now)


def mark_of(*texts: str) -> str:
    """What a view was made from, in short."""
    return sha256_bytes("\n".join(texts).encode())


@cache
def made_by() -> str:
    """A hash of what writes the views and the tables below them: modules and `.sql` files."""
    here, root = Path(__file__).parent, Path(__file__).parents[1]
    code = [here / f"{name}.py" for name in ("views", "rule_views", "tables")]
    code += [root / "schema.py", root / "expressions.py", root / "formulas.py", here / "comments.toml"]
    code += [*sorted((here / "views").glob("*.sql")), *sorted((here / "migrations").glob("*.sql"))]
    return sha256_bytes(b"".join(path.read_bytes() for path in code))
