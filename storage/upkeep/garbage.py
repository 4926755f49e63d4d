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

from ..catalog import Connection, refresh_views
from ..disk import TEMPORARY, is_held, sync_folder
from ..errors import BadInput
from ..policies import deployment_lock
from ..queries import select_column
from ..store import Store

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
    """Delete what was found, but no copies that a process uses since; after a kill, the next call finds the rest.

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
        doomed = [item for item in garbage if item.kind != "columns" or not is_held(item.path)]
        for item in doomed:
            _forget(store, item)
            _remove(item.path)
    return sum(item.bytes for item in doomed)


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
    labels = store.labels_dir.iterdir() if store.labels_dir.is_dir() else []
    for path in sorted(labels):
        if _is_settled(path):
            yield _thing("columns", path.name, path, "labels of a refinement that has ended; made again when needed")
    for path in sorted(store.columns_root.iterdir()) if store.columns_root.is_dir() else []:
        if path != store.labels_dir and _is_settled(path):
            yield _thing("columns", path.name, path, "a copy of a large dataset's shards; made again when needed")


def _leftovers(store: Store) -> Iterator[Garbage]:
    """Old remains of killed commands, and old finished folders that the catalog does not know."""
    rows = store.select("SELECT policy_id FROM policies UNION SELECT dataset_id FROM datasets")
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
    return not (path.is_dir() and is_held(path))


def _thing(kind: Kind, name: str, path: Path, why: str) -> Garbage:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Garbage(kind, name, path, sum(file.stat().st_size for file in files), why)


def _deployments(store: Store) -> list[Path]:
    folder = store.root / "deployments"
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


_NEEDED_DATASETS = """
SELECT dataset_id FROM annotations UNION SELECT dataset_id FROM run_requests UNION SELECT dataset_id FROM intakes
"""
_POLICIES_OF_COMPARISONS = """
SELECT comparison_id, baseline_id FROM comparisons UNION SELECT comparison_id, policy_id FROM comparisons
UNION SELECT comparison_id, policy_id FROM refinements WHERE policy_id IS NOT NULL
"""
_DATASETS_OF_COMPARISONS = """
SELECT comparison_id, dataset_id FROM comparisons
UNION SELECT comparison_id, unnest(also) FROM refinements
"""
_IN_FORCE = """
SELECT arg_max(policy_id, number), arg_max(comparison_id, number) FROM promotions GROUP BY deployment
"""
_ACTED = """
SELECT datasets.dataset_id, policy_id FROM datasets
JOIN policies USING (policy_sha256)
"""


@dataclass(frozen=True)
class Kept:
    """Names of everything there is, and of what stays."""

    all_policies: set[str]
    policies: set[str]
    all_datasets: set[str]
    datasets: set[str]
    all_reports: set[str]  # names without `.html`
    reports: set[str]


@dataclass(frozen=True)
class _Policy:
    kind: str
    dataset_ids: frozenset[str]
    baseline_id: str | None


def find_kept(store: Store, keep: int, pinned: Sequence[str] = ()) -> Kept:
    """Find what stays; arguments and errors as in `garbage.find_garbage`."""
    files = sorted(store.reports_dir.glob("*.html"), key=lambda path: (path.stat().st_mtime, path.name))
    reports = [path.stem for path in files]
    with store.catalog.read() as con:
        policies = _read_policies(con)
        datasets = select_column(con, "SELECT dataset_id FROM datasets ORDER BY created_at, dataset_id")
        refined = [name for name, policy in policies.items() if policy.kind == "refined"]
        _check_pinned(pinned, {*policies, *datasets, *reports})
        in_force = con.execute(_IN_FORCE).fetchall()
        kept_reports = {*_last(reports, keep), *pinned, *(comparison for _, comparison in in_force)} & {*reports}
        roots = {*_last(refined, keep), *pinned, *(policy for policy, _ in in_force)}
        roots |= _about(con, _POLICIES_OF_COMPARISONS, kept_reports)
        kept_datasets = {*_last(datasets, keep), *pinned, *select_column(con, _NEEDED_DATASETS)}
        kept_datasets |= _about(con, _DATASETS_OF_COMPARISONS, kept_reports) | (kept_reports & {*datasets})
        kept_policies = _with_ancestors(policies, roots & policies.keys())
        kept_datasets |= {id_ for name in kept_policies for id_ in policies[name].dataset_ids}
        acted = {policy for dataset, policy in con.execute(_ACTED).fetchall() if dataset in kept_datasets}
    return Kept({*policies}, kept_policies | acted, {*datasets}, kept_datasets & {*datasets}, {*reports}, kept_reports)


def _read_policies(con: Connection) -> dict[str, _Policy]:
    """All policies, the oldest first."""
    rows = con.execute(
        "SELECT policy_id, kind, baseline_id, dataset_id, also FROM policies ORDER BY created_at, policy_id"
    ).fetchall()
    return {
        policy_id: _Policy(kind, frozenset(filter(None, [dataset_id, *(also or [])])), baseline_id)
        for policy_id, kind, baseline_id, dataset_id, also in rows
    }


def _with_ancestors(policies: dict[str, _Policy], roots: set[str]) -> set[str]:
    """Policies with all their ancestors."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in policies and name not in found:
            found.add(name)
            waiting += [baseline] if (baseline := policies[name].baseline_id) else []
    return found


def _about(con: Connection, question: str, reports: set[str]) -> set[str]:
    """What the reports of comparisons refer to."""
    return {name for comparison, name in con.execute(question).fetchall() if comparison in reports}


def _last(names: Sequence[str], count: int) -> Sequence[str]:
    return names[-count:] if count else ()


def _check_pinned(pinned: Sequence[str], known: set[str]) -> None:
    for name in pinned:
        if name not in known:
            raise BadInput(f"There is no policy, dataset or report {name!r} to keep.", "Give its whole name.")
