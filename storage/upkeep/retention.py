"""What has to stay in a store: the newest items, what deployments have in force, and all that these refer to.

A policy refers to its baseline, its datasets and the runs whose labels it learned; an annotation to its dataset; a
report to what it is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..catalog import Connection
from ..errors import BadInput
from ..store import Store

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
        datasets = _names(con, "SELECT dataset_id FROM datasets ORDER BY created_at, dataset_id")
        refined = [name for name, policy in policies.items() if policy.kind == "refined"]
        _check_pinned(pinned, {*policies, *datasets, *reports})
        in_force = con.execute(_IN_FORCE).fetchall()
        kept_reports = {*_last(reports, keep), *pinned, *(comparison for _, comparison in in_force)} & {*reports}
        roots = {*_last(refined, keep), *pinned, *(policy for policy, _ in in_force)}
        roots |= _about(con, _POLICIES_OF_COMPARISONS, kept_reports)
        kept_datasets = {*_last(datasets, keep), *pinned, *_names(con, _NEEDED_DATASETS)}
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


def _names(con: Connection, question: str) -> list[str]:
    return [name for (name,) in con.execute(question).fetchall()]


def _last(names: Sequence[str], count: int) -> Sequence[str]:
    return names[-count:] if count else ()


def _check_pinned(pinned: Sequence[str], known: set[str]) -> None:
    for name in pinned:
        if name not in known:
            raise BadInput(f"There is no policy, dataset or report {name!r} to keep.", "Give its whole name.")
