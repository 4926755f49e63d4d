"""Pushes a store's files and a copy of its catalog to a remote folder, as a new snapshot. Nothing is deleted.

Remote files are named by their content, so that no file of an older snapshot is overwritten.
"""

from __future__ import annotations

import platform
import tempfile
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from ..catalog import catalog_version
from ..disk import exclusive_lock
from ..errors import CatalogLocked, Prerequisite
from ..schema import sha256_file
from ..store import CATALOG, Store
from .remote import Remote
from .snapshots import (
    Remembered,
    RemoteFile,
    Seen,
    Snapshot,
    are_published,
    copy_catalog,
    create_snapshot,
    digest_tables,
    find_newest,
    publish_tables,
    write_tables,
)

AT_ONCE = 8
"""Files sent at the same time; the limit is waiting for the network, not the processor."""

Progress = Callable[[str, int, int], None]
_ATTEMPTS = 3


@dataclass(frozen=True)
class Pushed:
    """What a push has done."""

    number: int  # of the snapshot in force now
    is_new: bool  # whether this push made it
    files: int  # of the snapshot
    sent: int  # files and catalogs transferred
    sent_bytes: int
    listed: int  # objects listed to find what is there already


@dataclass(frozen=True)
class _Outgoing:
    """The catalog's part of a push, all of one instant."""

    digests: dict[str, str]
    version: int
    is_same: bool  # as that of the newest snapshot
    catalog: RemoteFile
    copy: Path | None  # None if it need not be sent
    tables: list[Path]  # Parquet files; none if the remote has them


def push_store(
    store: Store, url: str, *, replace: bool = False, check: bool = False, progress: Progress | None = None
) -> Pushed:
    """Bring a remote folder to the state of a store; after a kill at any instant, the next push goes on.

    Args:
        store: it may be read and written meanwhile; what is written after the catalog was copied goes next time.
        url: of the remote folder, see `Remote`.
        replace: push above a snapshot that this store has not seen, instead of refusing.
        check: list the remote even if nothing is new, and send missing objects again.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        Prerequisite: if another store was pushed there since this store was last pushed or pulled.
        RemoteFailed: if the remote refuses or cannot be reached.
        CatalogLocked: if another push or pull of this store is under way.
    """
    remote = Remote(url)
    with (
        exclusive_lock(store.root, "a snapshot of the store"),
        tempfile.TemporaryDirectory(prefix="trajnote-push-") as folder,
    ):
        return _Push(store, remote, Path(folder), progress or no_progress).run(replace, check)


class _Push:
    """One push, from listing the remote to the tables beside the snapshot."""

    def __init__(self, store: Store, remote: Remote, folder: Path, progress: Progress) -> None:
        self.store, self.remote, self.folder, self.progress = store, remote, folder, progress
        self.memory = Remembered.load(store)
        self.newest, self.taken = find_newest(remote)
        self.seen = self.memory.seen.get(remote.url)
        self.listed = 0

    def run(self, replace: bool, check: bool) -> Pushed:
        is_whole = not check or self.newest is None or self._is_whole(self.newest)
        outgoing = self._look(copy_always=not is_whole)
        if not replace:
            self._refuse_unseen(outgoing)
        files = {name: self.memory.file_of(name, path) for name, path in self.store.lasting_files()}
        if self.newest and outgoing.copy is None and files == self.newest.files:
            return self._done(self.newest, outgoing, sent={})
        sent, snapshot = self._send(files, outgoing)
        if not create_snapshot(self.remote, snapshot):
            raise Prerequisite(
                f"Another machine has pushed snapshot {snapshot.number} to {self.remote.url} at the same time.",
                f"It is in force, and this push is not. {_pull_first(self.remote.url)}",
            )
        return self._done(snapshot, outgoing, sent)

    def _is_whole(self, snapshot: Snapshot) -> bool:
        arrived = self.remote.sizes()
        self.listed = len(arrived)
        return all(arrived.get(file.object) == file.bytes for file in [snapshot.catalog, *snapshot.files.values()])

    def _look(self, copy_always: bool) -> _Outgoing:
        """Copy the catalog first, so that every file that it names exists when files are listed."""
        with self.store.catalog.read() as con:
            digests, version = digest_tables(con), catalog_version(con)
            # another version of DuckDB may have hashed the snapshot's tables otherwise than this one
            known = self.seen if self.newest and self._has_seen(self.newest) else self.newest
            is_same = known is not None and digests == known.tables
            if self.newest and is_same and not copy_always:
                tables = [] if are_published(self.remote, self.newest) else write_tables(con, self.folder)
                return _Outgoing(digests, version, True, self.newest.catalog, None, tables)
            copy = self.folder / CATALOG
            copy_catalog(con, copy)
            tables = write_tables(con, self.folder)
        catalog = RemoteFile.of(f"catalog/{CATALOG}", sha256_file(copy), copy.stat().st_size)
        return _Outgoing(digests, version, is_same, catalog, copy, tables)

    def _has_seen(self, snapshot: Snapshot) -> bool:
        return self.seen is not None and self.seen.snapshot_id == snapshot.snapshot_id

    def _refuse_unseen(self, outgoing: _Outgoing) -> None:
        if self.newest is None or self._has_seen(self.newest) or outgoing.is_same:
            return
        known = f"the last one that it has seen is {self.seen.number}" if self.seen else "it has seen none"
        raise Prerequisite(
            f"{self.remote.url} has {self.newest.described}, which this store has not seen: {known}.",
            _pull_first(self.remote.url),
        )

    def _send(self, files: dict[str, RemoteFile], outgoing: _Outgoing) -> tuple[dict[str, RemoteFile], Snapshot]:
        paths = {name: self.store.lasting_path(name) for name in files}
        wanted = dict(files)
        if outgoing.copy:
            wanted[CATALOG], paths[CATALOG] = outgoing.catalog, outgoing.copy
        arrived = self.remote.sizes()
        self.listed = len(arrived)
        missing = {name: file for name, file in wanted.items() if arrived.get(file.object) != file.bytes}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done, (name, file) in enumerate(pool.map(partial(self._send_file, paths), missing.items()), 1):
                missing[name] = file
                self.progress("push", done, len(missing))
        sent = {name: file for name, file in missing.items() if name != CATALOG}
        snapshot = Snapshot(
            number=self.taken + 1,
            snapshot_id=uuid.uuid4().hex,
            host=platform.node(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            catalog_version=outgoing.version,
            tables=outgoing.digests,
            catalog=outgoing.catalog,
            files=files | sent,
        )
        return missing, snapshot

    def _send_file(self, paths: Mapping[str, Path], item: tuple[str, RemoteFile]) -> tuple[str, RemoteFile]:
        """Send a file, again if it has grown meanwhile, as raw replies do."""
        name, file = item
        for _ in range(_ATTEMPTS):
            self.remote.replace(file.object, paths[name])
            if name == CATALOG or (now := self.memory.file_of(name, paths[name])) == file:
                return name, file
            self.remote.remove(file.object)
            file = now
        raise CatalogLocked(f"{name} changes faster than it can be sent.", "Push again when nothing writes to it.")

    def _done(self, snapshot: Snapshot, outgoing: _Outgoing, sent: Mapping[str, RemoteFile]) -> Pushed:
        self.memory.seen[self.remote.url] = Seen.of(snapshot, outgoing.digests)
        self.memory.save(self.store)
        if outgoing.tables:
            publish_tables(self.remote, snapshot, outgoing.tables, self.folder / "mark")
        return Pushed(
            number=snapshot.number,
            is_new=snapshot is not self.newest,
            files=len(snapshot.files),
            sent=len(sent),
            sent_bytes=sum(file.bytes for file in sent.values()),
            listed=self.listed,
        )


def _pull_first(url: str) -> str:
    return (
        f"Get it with `trajnote store pull {url}` (--store FOLDER keeps it apart from this store); or "
        "push with --replace, and that snapshot stays readable under its number."
    )


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""
