"""How the catalog's tables came to be: ordered steps, one transaction each, recorded in `schema_migrations`.

The steps are the files `migrations/*.sql`. One that was released is never edited; a change is a new file at the end.
Views are not here (`views.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import Prerequisite
from .connection import Catalog, Connection

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
    return [step for step in pending if _apply(catalog, step, migrations)]


def _apply(catalog: Catalog, step: Migration, migrations: tuple[Migration, ...]) -> bool:
    with catalog.write() as con:
        if step not in _pending(con, catalog, migrations):
            return False
        _take(con, step)
        return True


def _take(con: Connection, step: Migration) -> None:
    con.execute(_BOOK)
    step.apply(con)
    con.execute(_ENTER, [step.version, step.name])


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
    found = con.execute("SELECT max(version) FROM schema_migrations").fetchone()
    return int(found[0] or 0) if found else 0
