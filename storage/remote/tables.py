"""Annotations, rejections, runs and spending as Parquet, for readers that do not open the catalog.

Each file is a whole table; only the catalog is ever written to.
"""

from __future__ import annotations

from pathlib import Path

from ..catalog import Connection
from ..content_hash import canonical_json
from ..disk import TEMPORARY, sync_file, sync_folder, writing
from ..expressions import sql_text
from ..store import Store
from .remote import Remote
from .snapshots import Snapshot

TABLES = {
    "annotations": "SELECT * FROM annotations ORDER BY dataset_id, episode_id, step, annotation_id",
    "rejections": "SELECT * FROM rejections ORDER BY ALL",
    "annotation_runs": "SELECT * FROM annotation_runs ORDER BY run_id",
    "spending": "SELECT * FROM spending ORDER BY ALL",
}
_MARK = "tables/written-from.json"


def export_tables(store: Store, folder: Path | None = None) -> list[Path]:
    """Write the tables into a folder (`STORE/tables` by default), each under a temporary name first."""
    target = (folder or store.tables_dir).expanduser().resolve()
    target.mkdir(parents=True, exist_ok=True)
    with store.catalog.read() as con:
        return write_tables(con, target)


def write_tables(con: Connection, folder: Path) -> list[Path]:
    """Write the tables as one connection sees them, all of one instant."""
    written: list[Path] = []
    for name, query in TABLES.items():
        path = folder / f"{name}.parquet"
        temporary = path.with_name(f"{path.name}{TEMPORARY}")
        con.execute(f"COPY ({query}) TO {sql_text(str(temporary))} (FORMAT parquet, COMPRESSION zstd)")
        with writing(path):
            sync_file(temporary)
            written.append(temporary.replace(path))
            sync_folder(folder)
    return written


def are_published(remote: Remote, snapshot: Snapshot) -> bool:
    """Whether the tables on a remote are those of a snapshot."""
    return remote.read(_MARK) == _mark_of(snapshot)


def publish_tables(remote: Remote, snapshot: Snapshot, tables: list[Path], mark: Path) -> None:
    """Replace the remote tables by those of a snapshot, then mark whose they are.

    Args:
        remote: where to.
        snapshot: in force there already.
        tables: what `write_tables` wrote.
        mark: a file that may be written.
    """
    for path in tables:
        remote.replace(f"tables/{path.name}", path)
    mark.write_bytes(_mark_of(snapshot))
    remote.replace(_MARK, mark)


def _mark_of(snapshot: Snapshot) -> bytes:
    return canonical_json(snapshot.tables).encode()
