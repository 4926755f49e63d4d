"""A snapshot of a store: digests of its catalog, and name, size and sha256 of every file; and its tables as Parquet.

A remote folder has `snapshots/00000001.json`, `00000002.json` and so on; the highest number is the one in force. None
is ever changed: a new snapshot is a new file, made only if it does not exist (`Remote.create`), after all objects
that it names have arrived. So a push that is killed leaves the former snapshot as it was. The tables (annotations,
rejections, runs, spending) are for readers that do not open the catalog; nothing is ever read back from them.
"""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..catalog import MIGRATIONS, Catalog, Connection
from ..disk import TEMPORARY, sync_to_disk, write_whole, writing
from ..errors import CatalogLocked, Prerequisite
from ..schema import canonical_json, sha256_file, sql_text
from ..store import Store
from .remote import Remote

FORMAT = 1
_FOLDER = "snapshots"
_BOOKS = ("schema_migrations", "shards", "view_marks")  # their rows are about this file only


class RemoteFile(BaseModel):
    """One file of a snapshot."""

    model_config = ConfigDict(frozen=True)

    object: str  # its remote name, made from its local name and its content
    sha256: str
    bytes: int

    @classmethod
    def of(cls, name: str, sha256: str, size: int) -> RemoteFile:
        """A file with its object's name, which is equal only for equal name and content."""
        path = PurePosixPath(name)
        return cls(object=str(path.with_name(f"{path.stem}.{sha256[:16]}{path.suffix}")), sha256=sha256, bytes=size)


class Snapshot(BaseModel):
    """A whole store at one instant."""

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
        """Number, host and time, for messages."""
        return f"snapshot {self.number} ({self.host}, {self.created_at})"


def find_newest(remote: Remote) -> tuple[Snapshot | None, int]:
    """The newest whole snapshot, if any, and the highest number taken.

    A file that is not whole is from a push that was killed at its very end; it is skipped.

    Raises:
        Prerequisite: if it was written by a newer trajnote.
    """
    numbers = [int(name[:-5]) for name in remote.names(_FOLDER) if name.endswith(".json") and name[:-5].isdigit()]
    for number in sorted(numbers, reverse=True):
        if found := read_snapshot(remote, number):
            return found, max(numbers)
    return None, max(numbers, default=0)


def read_snapshot(remote: Remote, number: int) -> Snapshot | None:
    """One snapshot; None if there is none of that number, or it is not whole.

    Raises:
        Prerequisite: if it was written by a newer trajnote.
    """
    for pause_s in (0.0, 0.2):  # it may be being written
        time.sleep(pause_s)
        content = remote.read(_name(number))
        if content is None:
            return None
        try:
            found = Snapshot.model_validate_json(content)
        except ValidationError:
            continue
        if found.format > FORMAT or found.catalog_version > MIGRATIONS[-1].version:
            problem = f"{remote.url} has {found.described}, written by a newer trajnote."
            raise Prerequisite(problem, "Upgrade trajnote on this machine.")
        return found
    return None


def create_snapshot(remote: Remote, snapshot: Snapshot) -> bool:
    """Put a snapshot in force; False if another machine has taken its number."""
    if remote.create(_name(snapshot.number), snapshot.model_dump_json(indent=1).encode()):
        return True
    found = read_snapshot(remote, snapshot.number)  # the answer was lost, and the retry met the first attempt
    return found is not None and found.snapshot_id == snapshot.snapshot_id


def digest_tables(con: Connection) -> dict[str, str]:
    """Table -> number of rows and a hash of them in any order, without empty tables.

    Equal for equal rows, whatever the file's layout; comparable within one version of DuckDB.
    """
    names = con.execute("SELECT table_name FROM duckdb_tables() WHERE NOT internal ORDER BY ALL").fetchall()
    digests: dict[str, str] = {}
    for name in [name for (name,) in names if name not in _BOOKS]:
        found = con.execute(f'SELECT count(*), sum(hash(rows)) FROM "{name}" AS rows').fetchone()
        if found and found[0]:
            digests[name] = f"{found[0]}:{int(found[1]):x}"
    return digests


def copy_catalog(con: Connection, path: Path) -> None:
    """Write all of a catalog, as this connection sees it, into a new file."""
    found = con.execute("SELECT current_database()").fetchone()
    con.execute(f"ATTACH {sql_text(str(path))} AS snapshot_copy (READ_WRITE)")
    con.execute(f'COPY FROM DATABASE "{found[0] if found else ""}" TO snapshot_copy')
    con.execute("DETACH snapshot_copy")


def install_catalog(catalog: Catalog, new: Path, expected: dict[str, str] | None) -> None:
    """Replace a catalog that is still as expected, in one step, while no other process has it open.

    Args:
        catalog: the one to replace.
        new: a whole file in the same folder.
        expected: what `digest_tables` said of the old one; None if there was none.

    Raises:
        CatalogLocked: if something was written to it meanwhile.
    """
    if expected is None:
        new.rename(catalog.path)
    else:
        with catalog.write():
            pass  # applies the log of a killed process, which must not meet another file
        with catalog.write() as con:
            if digest_tables(con) != expected or catalog.path.with_name(f"{catalog.path.name}.wal").exists():
                raise CatalogLocked(f"{catalog.path} was changed meanwhile.", "Nothing was replaced; run this again.")
            new.replace(catalog.path)
    sync_to_disk(catalog.path.parent)


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:08d}.json"


class Seen(BaseModel):
    """The last snapshot that a store and a remote had in common."""

    number: int
    snapshot_id: str
    tables: dict[str, str]  # of the local catalog at that time
    files: dict[str, str]  # name -> sha256

    @classmethod
    def of(cls, snapshot: Snapshot, tables: dict[str, str]) -> Seen:
        """Remember a snapshot that was pushed or pulled."""
        files = {name: file.sha256 for name, file in snapshot.files.items()}
        return cls(number=snapshot.number, snapshot_id=snapshot.snapshot_id, tables=tables, files=files)


class Remembered(BaseModel):
    """Snapshots seen per remote, and file hashes by size and time, so that no file is read twice."""

    seen: dict[str, Seen] = Field(default_factory=dict[str, Seen])
    hashes: dict[str, tuple[int, int, str]] = Field(default_factory=dict[str, tuple[int, int, str]])

    @classmethod
    def load(cls, store: Store) -> Remembered:
        """Read the memory; empty if the file is missing or cannot be read."""
        try:
            return cls.model_validate_json(store.remotes_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return cls()

    def save(self, store: Store) -> None:
        """Write the memory."""
        write_whole(store.remotes_path, self.model_dump_json().encode())

    def learn(self, name: str, path: Path, sha256: str) -> None:
        """Remember the hash of a file that was just written."""
        state = path.stat()
        self.hashes[name] = (state.st_size, state.st_mtime_ns, sha256)

    def file_of(self, name: str, path: Path) -> RemoteFile:
        """A file as a snapshot lists it; it is read only if its size or time has changed.

        Raises:
            FileNotFoundError: if it does not exist.
        """
        state = path.stat()
        size, changed_ns, sha256 = self.hashes.get(name, (-1, -1, ""))
        if (size, changed_ns) != (state.st_size, state.st_mtime_ns):
            sha256 = sha256_file(path)
            self.hashes[name] = (state.st_size, state.st_mtime_ns, sha256)
        return RemoteFile.of(name, sha256, state.st_size)


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
            sync_to_disk(temporary)
            written.append(temporary.replace(path))
            sync_to_disk(folder)
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
