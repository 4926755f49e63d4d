"""Pulls a snapshot from a remote folder into a local store. Local work that was never pushed is not lost.

Files come first, each under a temporary name until its hash is right; the catalog is replaced last, in one step.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..disk import TEMPORARY, exclusive_lock, sync_to_disk, writing
from ..errors import DamagedStore, Prerequisite
from ..policies import link_current, list_in_force
from ..schema import sha256_file
from ..store import CATALOG, Store
from .push import AT_ONCE, Progress, no_progress
from .remote import Remote
from .snapshots import (
    Remembered,
    RemoteFile,
    Seen,
    Snapshot,
    copy_catalog,
    digest_tables,
    find_newest,
    install_catalog,
    read_snapshot,
)


@dataclass(frozen=True)
class Pulled:
    """What a pull has done."""

    number: int  # of the snapshot that the store now has
    files: int  # of the snapshot
    fetched: int  # files and catalogs transferred
    fetched_bytes: int
    replaced: str | None  # folder with local work that was put aside, if any


@dataclass(frozen=True)
class _Difference:
    """Local work that the snapshot lacks, and parts of the snapshot that the store lacks."""

    digests: dict[str, str] | None  # of the local catalog; None without one
    own_tables: list[str]  # with local rows
    own_files: list[str]  # that differ from the snapshot and have changed since the last pull or push
    missing: dict[str, RemoteFile]
    catalog_is_old: bool


def pull_store(
    root: Path | str, url: str, *, number: int | None = None, replace: bool = False, progress: Progress | None = None
) -> Pulled:
    """Bring a local folder to a snapshot; killed at any instant, the next pull goes on.

    Files that the snapshot does not have stay where they are.

    Args:
        root: a store, or a new folder.
        url: of the remote folder, see `Remote`.
        number: of the snapshot; the newest one when None.
        replace: put local work that was not pushed aside, into the store's folder `replaced/`.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        Prerequisite: if there is no such snapshot, or the store has work of its own and `replace` is off.
        DamagedStore: if an object differs from what its snapshot says.
        DiskFailed: if the local disk refuses it; the next pull goes on.
        RemoteFailed: if the remote refuses or cannot be reached.
        CatalogLocked: if the catalog is in use, or another push or pull of this store is under way.
    """
    remote = Remote(url)
    snapshot = find_newest(remote)[0] if number is None else read_snapshot(remote, number)
    if snapshot is None:
        which = "no snapshot" if number is None else f"no snapshot {number}"
        raise Prerequisite(f"There is {which} in {remote.url}.", f"Make one with `trajnote store push {remote.url}`.")
    store = Store.prepare(root)
    with exclusive_lock(store.root, "a snapshot of the store"), writing(store.root):
        return _pull(store, remote, snapshot, replace, progress or no_progress)


def _pull(store: Store, remote: Remote, snapshot: Snapshot, replace: bool, progress: Progress) -> Pulled:
    memory = Remembered.load(store)
    seen = memory.seen.get(remote.url)
    difference = _compare(store, snapshot, memory, seen)
    is_own = difference.own_tables or difference.own_files
    if is_own and not replace:
        raise Prerequisite(_own_work(store, difference, seen), _HINT)
    aside = _put_aside(store, difference) if is_own else None
    _fetch_files(store, remote, difference.missing, memory, progress)
    if difference.catalog_is_old:
        new = _fetch(remote, snapshot.catalog, store.catalog.path)
        install_catalog(store.catalog, new, difference.digests)
    _finish(store, remote, snapshot, memory)
    fetched = [*difference.missing.values(), *([snapshot.catalog] if difference.catalog_is_old else [])]
    size = sum(file.bytes for file in fetched)
    return Pulled(snapshot.number, len(snapshot.files), len(fetched), size, str(aside) if aside else None)


def _compare(store: Store, snapshot: Snapshot, memory: Remembered, seen: Seen | None) -> _Difference:
    digests = None
    if store.catalog.path.exists():
        with store.catalog.read() as con:
            digests = digest_tables(con)
    at_last = seen.tables if seen else {}
    there = at_last if seen and seen.snapshot_id == snapshot.snapshot_id else snapshot.tables
    own_tables: list[str] = []
    if digests and digests not in (there, at_last):
        own_tables = sorted(name for name in digests if digests[name] not in (there.get(name), at_last.get(name)))
        own_tables = own_tables or sorted(set(at_last) - set(digests))
    missing: dict[str, RemoteFile] = {}
    own_files: list[str] = []
    for name, file in snapshot.files.items():
        path = store.lasting_path(name)
        here = memory.file_of(name, path).sha256 if path.is_file() else None
        if here != file.sha256:
            missing[name] = file
            if here and (seen is None or seen.files.get(name) != here):
                own_files.append(name)
    return _Difference(digests, own_tables, own_files, missing, digests != there)


_HINT = (
    "Nothing was changed. Pull into another folder with --store FOLDER, or add --replace, which moves that work "
    "into the folder `replaced` of the store."
)


def _own_work(store: Store, difference: _Difference, seen: Seen | None) -> str:
    since = f" since snapshot {seen.number}" if seen else ""
    names = [*(f"the table {name}" for name in difference.own_tables), *difference.own_files]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{store.root} has local work that was not pushed{since}: {', '.join(names[:4])}{more}."


def _put_aside(store: Store, difference: _Difference) -> Path:
    """Copy what a pull is about to replace; the originals stay until their successors are there."""
    folder = store.replaced_dir(datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ"))
    folder.mkdir(parents=True)
    if difference.own_tables:
        with store.catalog.read() as con:
            copy_catalog(con, folder / CATALOG)
    for name in difference.own_files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(store.lasting_path(name), target)  # the pull renames another file over it and never writes into it
    return folder


def _fetch_files(
    store: Store, remote: Remote, missing: dict[str, RemoteFile], memory: Remembered, progress: Progress
) -> None:
    def fetch(item: tuple[str, RemoteFile]) -> None:
        name, file = item
        path = store.lasting_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(remote, file, path).replace(path)
        memory.learn(name, path, file.sha256)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done, _ in enumerate(pool.map(fetch, missing.items()), 1):
            progress("pull", done, len(missing))
    for folder in sorted({store.lasting_path(name).parent for name in missing}):
        sync_to_disk(folder)


def _fetch(remote: Remote, file: RemoteFile, path: Path) -> Path:
    """Download an object beside its final place and compare its hash; returns the path."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    remote.fetch(file.object, temporary)
    if (sha256 := sha256_file(temporary)) != file.sha256:
        temporary.unlink()
        raise DamagedStore(
            f"{remote.url}/{file.object} differs from what was pushed: its sha256 is {sha256[:16]}..., not "
            f"{file.sha256[:16]}....",
            "Delete it there, then `trajnote store push --check` from a store that has it; or pull an older snapshot.",
        )
    sync_to_disk(temporary)
    return temporary


def _finish(store: Store, remote: Remote, snapshot: Snapshot, memory: Remembered) -> None:
    """Rebuild the local views and links, and remember the catalog, so that later changes are noticed."""
    opened = Store.open(store.root)
    for row in list_in_force(opened):
        if (opened.policies_dir / row.policy_id).is_dir():
            link_current(opened, row.deployment, row.policy_id)
    with opened.catalog.read() as con:
        digests = digest_tables(con)
    memory.seen[remote.url] = Seen.of(snapshot, digests)
    memory.save(opened)
