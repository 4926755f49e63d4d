"""Finds what a store can do without: leftovers, and old policies, datasets and reports that nothing kept refers to.

Annotations, raw replies and records of payments are never among it, nor is anything that they, a kept policy, a kept
report or a deployment refer to. Finding deletes nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from ..catalog import refresh_views
from ..disk import TEMPORARY, exclusive_lock, sync_folder
from ..errors import BadInput, CatalogLocked
from ..policies import deployment_lock
from ..store import Store
from .retention import Kept, find_kept

Kind = Literal["policy", "dataset", "report", "columns", "leftover"]
_SETTLED_S = 3600.0  # seconds; a younger unknown file may be in use
_TABLES: dict[str, Sequence[str]] = {"policy": ("policies",), "dataset": ("episodes", "shards", "datasets")}


@dataclass(frozen=True)
class Garbage:
    """One thing that could be deleted."""

    kind: Kind
    name: str
    path: Path
    bytes: int
    why: str


def find_garbage(store: Store, keep: int, pinned: Sequence[str] = ()) -> list[Garbage]:
    """Find what could be deleted; deletes nothing.

    Args:
        store: the store.
        keep: how many of the newest refined policies, datasets and reports are kept in any case.
        pinned: ids of policies, datasets or reports to keep, with all that they refer to.

    Raises:
        BadInput: if a pinned id does not exist.
    """
    kept = find_kept(store, keep, pinned)
    old = (_old_policies(store, kept), _old_datasets(store, kept), _old_reports(store, kept))
    return [*chain(*old), *_columns(store), *_leftovers(store)]


def delete_garbage(store: Store, garbage: Sequence[Garbage]) -> int:
    """Delete what was found; after a kill at any instant, the next call finds the rest.

    Returns:
        The bytes freed.

    Raises:
        AlreadyRunning: if a deployment is running; nothing is deleted then.
        BadInput: if an item is not in this store.
    """
    if strange := [item.name for item in garbage if not item.path.is_relative_to(store.root)]:
        raise BadInput(f"{strange[0]} is not in {store.root}.")
    with ExitStack() as stack:
        for folder in _deployments(store):
            stack.enter_context(deployment_lock(store, folder.name))
        for item in garbage:
            _forget(store, item)
            _remove(item.path)
    return sum(item.bytes for item in garbage)


def _forget(store: Store, item: Garbage) -> None:
    """Remove an item from the catalog first: files without a row are leftovers, rows without files are damage."""
    if item.kind not in _TABLES:
        return
    with store.catalog.write() as con:
        for table in _TABLES[item.kind]:
            con.execute(f"DELETE FROM {table} WHERE {item.kind}_id = ?", [item.name])
        if item.kind == "dataset":
            refresh_views(con, store.rollouts_dir)


def _remove(path: Path) -> None:
    if path.is_dir():
        doomed = path.with_name(f".partial-deleted-{path.name}")  # half a folder must not have its final name
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
    sync_folder(path.parent)


def _old_policies(store: Store, kept: Kept) -> Iterator[Garbage]:
    for policy_id in sorted(kept.all_policies - kept.policies):
        yield _thing("policy", policy_id, store.policy_dir(policy_id), "refined long ago, and unused by what is kept")


def _old_datasets(store: Store, kept: Kept) -> Iterator[Garbage]:
    for dataset_id in sorted(kept.all_datasets - kept.datasets):
        yield _thing("dataset", dataset_id, store.dataset_dir(dataset_id), "never annotated, and nothing refers to it")


def _old_reports(store: Store, kept: Kept) -> Iterator[Garbage]:
    for name in sorted(kept.all_reports - kept.reports):
        yield _thing("report", name, store.reports_dir / f"{name}.html", "older than those kept; can be written again")


def _columns(store: Store) -> Iterator[Garbage]:
    for path in sorted(store.columns_root.iterdir()) if store.columns_root.is_dir() else []:
        if _is_settled(path):
            yield _thing("columns", path.name, path, "a copy of a large dataset's shards; made again when needed")


def _leftovers(store: Store) -> Iterator[Garbage]:
    """Old remains of killed commands, and old finished folders that the catalog does not know."""
    with store.catalog.read() as con:
        rows = con.execute("SELECT policy_id FROM policies UNION SELECT dataset_id FROM datasets").fetchall()
    known = {name for (name,) in rows}
    for folder in (store.rollouts_dir, store.policies_dir):
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name not in known and _is_settled(path):
                yield _thing("leftover", path.name, path, "left by a command that was killed")
    for path in sorted(store.root.rglob(f"*{TEMPORARY}")):
        if path.is_file() and _is_settled(path):
            yield _thing("leftover", path.name, path, "left by a command that was killed")


def _is_settled(path: Path) -> bool:
    """Whether no process has used it for an hour."""
    newest = max((file.stat().st_mtime for file in [path, *path.rglob("*")]), default=0.0)
    if time.time() - newest < _SETTLED_S:
        return False
    if path.is_dir():
        try:
            with exclusive_lock(path, path.name):
                return True
        except CatalogLocked:
            return False
    return True


def _thing(kind: Kind, name: str, path: Path, why: str) -> Garbage:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Garbage(kind, name, path, sum(file.stat().st_size for file in files), why)


def _deployments(store: Store) -> list[Path]:
    folder = store.root / "deployments"
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
