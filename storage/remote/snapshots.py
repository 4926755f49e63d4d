"""A snapshot of a store: what its catalog holds, and the name, size and sha256 of every file. It moves nothing.

A remote folder has `snapshots/00000001.json`, `00000002.json` and so on; the highest number is the one in force. None
is ever changed: a new snapshot is a new file, made only if nobody else has made it (`Remote.create`), after all objects
that it names have arrived. So a push that is killed leaves the former snapshot as it was.
"""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from ..catalog import MIGRATIONS, Catalog, Connection
from ..disk import sync_folder
from ..errors import CatalogLocked, Prerequisite
from ..predicates import sql_text
from .remote import Remote

FORMAT = 1
_FOLDER = "snapshots"
_BOOKS = ("schema_migrations", "shards")  # when tables were made and files were looked at says nothing of the rest


class RemoteFile(BaseModel):
    """One file of a snapshot."""

    model_config = ConfigDict(frozen=True)

    object: str  # its name on the remote, which is made from its name here and its content
    sha256: str
    bytes: int

    @classmethod
    def of(cls, name: str, sha256: str, size: int) -> RemoteFile:
        """The file of a name: equal content has an equal object, other content another one."""
        path = PurePosixPath(name)
        return cls(object=str(path.with_name(f"{path.stem}.{sha256[:16]}{path.suffix}")), sha256=sha256, bytes=size)


class Snapshot(BaseModel):
    """All of a store at one instant."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    number: int
    snapshot_id: str
    host: str  # that pushed it
    created_at: str
    catalog_version: int
    tables: dict[str, str]  # table -> rows and hash, see `digest_tables`
    catalog: RemoteFile
    files: dict[str, RemoteFile]  # name in the store -> object

    @property
    def described(self) -> str:
        """Which one it is, for messages."""
        return f"snapshot {self.number} ({self.host}, {self.created_at})"


def find_newest(remote: Remote) -> tuple[Snapshot | None, int]:
    """The snapshot in force, if there is one, and the highest number that is taken.

    A number whose file is not whole belongs to a push that was killed in the instant of its end; it is passed over.

    Raises:
        Prerequisite: if it was written by a newer trajnote.
    """
    numbers = [int(name[:-5]) for name in remote.names(_FOLDER) if name.endswith(".json") and name[:-5].isdigit()]
    for number in sorted(numbers, reverse=True):
        if found := read_snapshot(remote, number):
            return found, max(numbers)
    return None, max(numbers, default=0)


def read_snapshot(remote: Remote, number: int) -> Snapshot | None:
    """One snapshot; None if there is none of that number, or it is not whole."""
    for pause_s in (0.0, 0.2):  # somebody may be writing it just now
        time.sleep(pause_s)
        content = remote.read(_name(number))
        if content is None:
            return None
        try:
            return _checked(Snapshot.model_validate_json(content), remote)
        except ValidationError:
            continue
    return None


def create_snapshot(remote: Remote, snapshot: Snapshot) -> bool:
    """Put a snapshot in force; False if another machine has taken its number."""
    if remote.create(_name(snapshot.number), snapshot.model_dump_json(indent=1).encode()):
        return True
    found = read_snapshot(remote, snapshot.number)  # an answer that was lost, and the second attempt met the first
    return found is not None and found.snapshot_id == snapshot.snapshot_id


def digest_tables(con: Connection) -> dict[str, str]:
    """Table -> number of rows and a hash of them in any order, without empty tables.

    Equal for equal rows, however the file is laid out; comparable within one version of DuckDB.
    """
    names = con.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal ORDER BY ALL").fetchall()
    digests: dict[str, str] = {}
    for name in [name for (name,) in names if name not in _BOOKS]:
        found = con.execute(f'SELECT count(*), sum(hash(rows)) FROM "{name}" AS rows').fetchone()
        if found and found[0]:
            digests[name] = f"{found[0]}:{int(found[1]):x}"
    return digests


def copy_catalog(con: Connection, path: Path) -> None:
    """Write all of a catalog into a new file, as it is for this connection."""
    found = con.execute("SELECT current_database()").fetchone()
    con.execute(f"ATTACH {sql_text(str(path))} AS snapshot_copy (READ_WRITE)")
    con.execute(f'COPY FROM DATABASE "{found[0] if found else ""}" TO snapshot_copy')
    con.execute("DETACH snapshot_copy")


def install_catalog(catalog: Catalog, new: Path, expected: dict[str, str] | None) -> None:
    """Put a catalog in the place of one that still is as expected, in one step, while nobody else has it open.

    Args:
        catalog: the one that is replaced.
        new: a whole file in the same folder.
        expected: what `digest_tables` said of the old one; None if there was none.

    Raises:
        CatalogLocked: if something was written to it meanwhile.
    """
    if expected is None:
        new.rename(catalog.path)
    else:
        with catalog.write():
            pass  # the log of a process that was killed is worked in: it must not meet another file
        with catalog.write() as con:
            if digest_tables(con) != expected or catalog.path.with_name(f"{catalog.path.name}.wal").exists():
                raise CatalogLocked(f"{catalog.path} was changed meanwhile.", "Nothing was replaced; run this again.")
            new.replace(catalog.path)
    sync_folder(catalog.path.parent)


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:08d}.json"


def _checked(snapshot: Snapshot, remote: Remote) -> Snapshot:
    if snapshot.format > FORMAT or snapshot.catalog_version > MIGRATIONS[-1].version:
        raise Prerequisite(
            f"{remote.url} has {snapshot.described} of a newer trajnote.", "Upgrade trajnote on this machine."
        )
    return snapshot
