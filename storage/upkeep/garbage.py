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
from pathlib import Path
from typing import Literal

from ..catalog import refresh_views, select_column
from ..disk import TEMPORARY, is_held, sync_to_disk
from ..errors import BadInput
from ..policies import deployment_lock
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
    return [*_unused(store, keep, pinned), *_columns(store), *_leftovers(store)]


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
        for folder in sorted(path for path in store.root.glob("deployments/*") if path.is_dir()):
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
    sync_to_disk(path.parent)


def _columns(store: Store) -> Iterator[Garbage]:
    folders = {
        store.labels_dir: "labels of a refinement that has ended; made again when needed",
        store.columns_root: "a copy of a large dataset's shards; made again when needed",
    }
    for folder, why in folders.items():
        for path in sorted(folder.glob("*")):
            if path != store.labels_dir and _is_settled(path):
                yield _thing("columns", path.name, path, why)


def _leftovers(store: Store) -> Iterator[Garbage]:
    """Old remains of killed commands, and old finished folders that the catalog does not know."""
    rows = store.select("SELECT policy_id FROM policies UNION SELECT dataset_id FROM datasets")
    known = {name for (name,) in rows}
    folders = [*sorted(store.rollouts_dir.iterdir()), *sorted(store.policies_dir.iterdir())]
    unknown = [path for path in folders if path.is_dir() and path.name not in known]
    unfinished = [path for path in sorted(store.root.rglob(f"*{TEMPORARY}")) if path.is_file()]
    for path in (*unknown, *unfinished):
        if _is_settled(path):
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


_NEEDED_DATASETS = """
SELECT dataset_id FROM annotations UNION SELECT dataset_id FROM run_requests UNION SELECT dataset_id FROM intakes
"""
_POLICIES_OF_COMPARISONS = """
SELECT unnest([baseline_id, policy_id]) FROM comparisons WHERE comparison_id IN (SELECT unnest(?::VARCHAR[]))
UNION SELECT policy_id FROM refinements WHERE comparison_id IN (SELECT unnest(?::VARCHAR[]))
"""
_DATASETS_OF_COMPARISONS = """
SELECT dataset_id FROM comparisons WHERE comparison_id IN (SELECT unnest(?::VARCHAR[]))
UNION SELECT unnest(also) FROM refinements WHERE comparison_id IN (SELECT unnest(?::VARCHAR[]))
"""
_IN_FORCE = """
SELECT arg_max(policy_id, number), arg_max(comparison_id, number) FROM promotions GROUP BY deployment
"""
_WITH_ANCESTORS = """
WITH RECURSIVE found AS (
    SELECT policy_id, baseline_id FROM policies WHERE policy_id IN (SELECT unnest(?::VARCHAR[]))
    UNION SELECT policies.policy_id, policies.baseline_id
    FROM policies JOIN found ON policies.policy_id = found.baseline_id
)
SELECT policy_id FROM found
"""
_TRAINED_ON = """
SELECT unnest(list_append(coalesce(also, []), dataset_id)) FROM policies
WHERE policy_id IN (SELECT unnest(?::VARCHAR[]))
"""
_ACTED = """
SELECT policy_id FROM datasets JOIN policies USING (policy_sha256)
WHERE datasets.dataset_id IN (SELECT unnest(?::VARCHAR[]))
"""


def _unused(store: Store, keep: int, pinned: Sequence[str]) -> Iterator[Garbage]:
    """Policies, datasets and reports that nothing refers to that is kept; arguments and errors as in `find_garbage`."""
    files = sorted(store.reports_dir.glob("*.html"), key=lambda path: (path.stat().st_mtime, path.name))
    reports = [path.stem for path in files]
    with store.catalog.read() as con:
        policies = con.execute("SELECT policy_id, kind FROM policies ORDER BY created_at, policy_id").fetchall()
        refined = [name for name, kind in policies if kind == "refined"]
        datasets = select_column(con, "SELECT dataset_id FROM datasets ORDER BY created_at, dataset_id")
        if missing := [name for name in pinned if name not in {*dict(policies), *datasets, *reports}]:
            raise BadInput(f"There is no policy, dataset or report {missing[0]!r} to keep.", "Give its whole name.")
        in_force = con.execute(_IN_FORCE).fetchall()
        kept_reports = {*_last(reports, keep), *pinned, *(comparison for _, comparison in in_force)} & {*reports}
        compared = [list(kept_reports)] * 2
        roots = {*_last(refined, keep), *pinned, *(policy for policy, _ in in_force)}
        roots |= {*select_column(con, _POLICIES_OF_COMPARISONS, compared)}
        kept_policies = {*select_column(con, _WITH_ANCESTORS, [list(roots)])}
        kept_datasets = {*_last(datasets, keep), *pinned, *kept_reports, *select_column(con, _NEEDED_DATASETS)}
        kept_datasets |= {*select_column(con, _DATASETS_OF_COMPARISONS, compared)}
        kept_datasets |= {*select_column(con, _TRAINED_ON, [list(kept_policies)])}
        kept_policies |= {*select_column(con, _ACTED, [list(kept_datasets)])}
    for name in sorted(dict(policies).keys() - kept_policies):
        yield _thing("policy", name, store.policy_dir(name), "an old refined policy that nothing kept depends on")
    for name in sorted({*datasets} - kept_datasets):
        yield _thing("dataset", name, store.dataset_dir(name), "never annotated, and nothing depends on it")
    for name in sorted({*reports} - kept_reports):
        yield _thing(
            "report", name, store.reports_dir / f"{name}.html", "older than those kept, and can be written again"
        )


def _last(names: Sequence[str], count: int) -> Sequence[str]:
    return names[-count:] if count else ()
