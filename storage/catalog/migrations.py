"""How the catalog's tables came to be: ordered steps, one transaction each, recorded in `schema_migrations`.

A step that was released is never edited; a change is a new step at the end. Views are not here (`views.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..errors import Prerequisite
from .connection import Catalog, Connection
from .environments import ENVIRONMENTS
from .integrity import SHARDS
from .tables.ablation_tables import ABLATION_TABLES
from .tables.batch_tables import ANSWERS, BATCH_ACCOUNTS, BATCH_COLUMNS
from .tables.deployment_tables import DEPLOYMENT_TABLES
from .tables.estimate_tables import ESTIMATES
from .tables.evidence_table import LABEL_REPLAYS
from .tables.first_tables import FIRST_TABLES
from .tables.round_table import ROUNDS
from .tables.rules_table import RULES

_BOOK = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY, name VARCHAR NOT NULL, applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)
"""


class Migration(NamedTuple):
    """One step: its number, its name, and what it does to the catalog."""

    version: int
    name: str
    apply: Callable[[Connection], object]


def _create_first_tables(con: Connection) -> None:
    con.execute(FIRST_TABLES)


def _create_label_replays(con: Connection) -> None:
    con.execute(LABEL_REPLAYS)


def _add_batch_columns(con: Connection) -> None:
    con.execute(BATCH_COLUMNS)


def _add_batch_accounts(con: Connection) -> None:
    con.execute(BATCH_ACCOUNTS)


def _create_ablations(con: Connection) -> None:
    con.execute(ABLATION_TABLES)


def _create_deployment_tables(con: Connection) -> None:
    con.execute(DEPLOYMENT_TABLES)


def _add_rules(con: Connection) -> None:
    con.execute(RULES)


def _create_rounds(con: Connection) -> None:
    con.execute(ROUNDS)


def _create_estimates(con: Connection) -> None:
    con.execute(ESTIMATES)


def _add_environments(con: Connection) -> None:
    con.execute(ENVIRONMENTS)


def _add_answers(con: Connection) -> None:
    con.execute(ANSWERS)


def _create_shards(con: Connection) -> None:
    con.execute(SHARDS)


MIGRATIONS: tuple[Migration, ...] = (
    Migration(1, "first tables", _create_first_tables),
    Migration(2, "replays of labels", _create_label_replays),
    Migration(3, "requests under way", _add_batch_columns),
    Migration(4, "ablations", _create_ablations),
    Migration(5, "deployments", _create_deployment_tables),
    Migration(6, "corrective rules", _add_rules),
    Migration(7, "rounds", _create_rounds),
    Migration(8, "estimates without a simulator", _create_estimates),
    Migration(9, "environments that were played in", _add_environments),
    Migration(10, "replies that hold no answer", _add_answers),
    Migration(11, "who sent a batch", _add_batch_accounts),
    Migration(12, "what the files were", _create_shards),
)


def create_tables(con: Connection) -> None:
    """Take all steps at once, in a file that nobody else knows yet."""
    for step in MIGRATIONS:
        _take(con, step)


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
    con.execute("INSERT INTO schema_migrations (version, name) VALUES (?, ?)", [step.version, step.name])


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
