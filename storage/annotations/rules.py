"""Corrective rules as rows of the catalog, the steps that they match, and their coverage, agreement and conflicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..catalog import STEP, Connection, component_columns, insert_rows, match_steps, refresh_views, same_action
from ..datasets import read_manifest
from ..expressions import read_predicate
from ..queries import Row, rows_of
from ..schema import Manifest
from ..store import Store
from .annotations import from_row, rows_of_runs


@dataclass(frozen=True)
class Rule:
    """What should be done in all states that meet a condition."""

    rule_id: str
    run_id: str
    request_id: str | None
    dataset_id: str
    position: int  # in the annotator's list: of several rules of one list that match a step, the first one decides
    predicate: str  # canonical, see `expressions.py`
    suggested_action: tuple[float | None, ...]  # None: this dimension stays as it was logged
    suggested_label: str
    confidence: float | None  # in [0, 1]
    rationale: str | None
    model: str
    prompt_version: str | None

    @property
    def list_id(self) -> str:
        """The list that it belongs to: that of one reply, or of one import."""
        return self.request_id or self.run_id


class Matches(NamedTuple):
    """Which rules match which steps; M pairs, by episode and step, then by the order of the rules."""

    episode_id: NDArray[np.int64]  # (M,)
    step: NDArray[np.int64]  # (M,)
    rule: NDArray[np.int64]  # (M,) place in the sequence of rules


_COLUMNS = ", ".join(field.name for field in fields(Rule))


def rule_columns(manifest: Manifest) -> list[str]:
    """What conditions about a dataset may speak of: its components, as `annotated_steps` calls them, and the step."""
    return [*component_columns(manifest.component_names), STEP]


def insert_rules(con: Connection, store: Store, rules: Sequence[Rule]) -> int:
    """Insert rules and make the views again; one whose `rule_id` is there already is left as it is.

    Returns:
        How many were new.

    Raises:
        BadInput: if a condition is not allowed, or a number is out of its range; nothing is inserted.
    """
    if not rules:
        return 0
    columns = {name: rule_columns(read_manifest(store, name)) for name in {rule.dataset_id for rule in rules}}
    for rule in rules:
        read_predicate(rule.predicate, columns[rule.dataset_id], is_canonical=True)
    rows = [vars(rule) | {"suggested_action": list(rule.suggested_action)} for rule in rules]
    inserted = insert_rows(con, "rules", rows)
    if inserted:
        refresh_views(con, store.rollouts_dir)
    return inserted


def load_rules(store: Store, dataset_id: str, run_ids: Sequence[str] | None = None) -> list[Rule]:
    """The rules of a dataset, list by list, each in its order.

    Args:
        store: the store.
        dataset_id: a dataset of it.
        run_ids: the annotation runs wanted; all when None.

    Raises:
        BadInput: if there is no such run.
    """
    rows = rows_of_runs(store, "rules", _COLUMNS, dataset_id, run_ids, order="run_id, request_id, position, rule_id")
    return [from_row(Rule, row) for row in rows]


def match_rules(store: Store, dataset_id: str, rules: Sequence[Rule]) -> Matches:
    """The steps of a dataset that rules match, in one query over its files.

    Args:
        store: the store.
        dataset_id: a dataset of it.
        rules: of this dataset.
    """
    if not rules:
        return Matches(*(np.zeros(0, np.int64) for _ in range(3)))
    columns = component_columns(read_manifest(store, dataset_id).component_names)
    question = match_steps(dataset_id, columns, [(rule.rule_id, rule.predicate) for rule in rules])
    places = {rule.rule_id: place for place, rule in enumerate(rules)}
    with store.catalog.read() as con:
        found = con.execute(f"SELECT episode_id, step, rule_id FROM ({question})").fetchnumpy()
    rule = np.array([places[rule_id] for rule_id in found["rule_id"]], np.int64)
    order = np.lexsort((rule, found["step"], found["episode_id"]))
    return Matches(found["episode_id"][order].astype(np.int64), found["step"][order].astype(np.int64), rule[order])


_RULES = """
WITH matched AS MATERIALIZED (
    SELECT rule_id, episode_id, step, suggested_action, agrees, decides FROM ruled_steps
    WHERE dataset_id = $dataset_id AND list_contains($run_ids, run_id)
), counted AS (
    SELECT rule_id, count(*) AS steps, count(*) FILTER (decides) AS decides,
        avg(agrees::DOUBLE) FILTER (decides) AS agrees_with_logged
    FROM matched GROUP BY rule_id
), compared AS (
    SELECT rule_id, count(*) AS labels, avg(({agree})::DOUBLE) AS agrees_with_labels
    FROM matched JOIN (SELECT episode_id, step, suggested_action FROM annotations WHERE dataset_id = $dataset_id
                       AND suggested_action IS NOT NULL) AS notes USING (episode_id, step)
    WHERE decides GROUP BY rule_id
)
SELECT run_id, rule_id, position, predicate, suggested_label, confidence, coalesce(steps, 0) AS steps,
    coalesce(steps, 0) / (SELECT sum(length) FROM episodes WHERE dataset_id = $dataset_id) AS coverage,
    coalesce(decides, 0) AS decides, agrees_with_logged, coalesce(labels, 0) AS labels, agrees_with_labels, model,
    rationale
FROM rules LEFT JOIN counted USING (rule_id) LEFT JOIN compared USING (rule_id)
WHERE dataset_id = $dataset_id AND list_contains($run_ids, run_id)
ORDER BY run_id, request_id, position, rule_id
"""
_CONFLICTS = """
WITH matched AS MATERIALIZED (
    SELECT rule_id, run_id, request_id, position, episode_id, step, suggested_action, suggested_label FROM ruled_steps
    WHERE dataset_id = $dataset_id AND list_contains($run_ids, run_id)
)
SELECT one.rule_id, one.suggested_label, other.rule_id AS other_rule_id, other.suggested_label AS other_label,
    count(*) AS steps,
    CASE WHEN (one.run_id, one.request_id) IS NOT DISTINCT FROM (other.run_id, other.request_id)
        THEN one.rule_id END AS decides
FROM matched AS one JOIN matched AS other USING (episode_id, step)
WHERE (one.run_id, coalesce(one.request_id, ''), one.position, one.rule_id)
    < (other.run_id, coalesce(other.request_id, ''), other.position, other.rule_id)
    AND one.suggested_action <> other.suggested_action
GROUP BY ALL ORDER BY steps DESC, one.rule_id, other_rule_id
"""
_COVERED = """
SELECT count(DISTINCT (episode_id, step)) AS steps FROM ruled_steps
WHERE dataset_id = $dataset_id AND list_contains($run_ids, run_id)
"""


@dataclass(frozen=True)
class RuleSummary:
    """What the rules of some runs do in a dataset."""

    covered: int  # steps that at least one rule matches
    steps: int  # in all
    rules: Sequence[Row]  # in their order; `decides` counts the steps whose label they give
    conflicts: Sequence[Row]  # pairs that match the same steps with other actions, and who decides there


def summarise_rules(store: Store, dataset_id: str, run_ids: Sequence[str]) -> RuleSummary:
    """Coverage, agreement and conflicts of the rules of some runs.

    Args:
        store: the store.
        dataset_id: a dataset of it.
        run_ids: annotation runs.

    Returns:
        Agreement with the logged action and with labels of single steps is over the steps where a rule decides. Two
        rules of one list never both decide; of two lists both do, and `decides` is null.
    """
    manifest = read_manifest(store, dataset_id)
    agree = same_action(manifest.action_space, "notes.suggested_action", "matched.suggested_action")
    asked = {"dataset_id": dataset_id, "run_ids": list(run_ids)}
    with store.catalog.read() as con:
        covered = con.execute(_COVERED, asked).fetchall()[0][0]
        rules = rows_of(con.execute(_RULES.format(agree=agree), asked))
        conflicts = rows_of(con.execute(_CONFLICTS, asked))
    return RuleSummary(covered, manifest.steps, rules, conflicts)


def has_rules(store: Store, run_ids: Sequence[str]) -> bool:
    """Whether any of some runs has rules."""
    with store.catalog.read() as con:
        found = con.execute("SELECT 1 FROM rules WHERE list_contains(?, run_id) LIMIT 1", [list(run_ids)]).fetchone()
    return found is not None


def list_rule_runs(store: Store, dataset_id: str) -> list[str]:
    """The ids of a dataset's runs that have rules, the oldest first."""
    with store.catalog.read() as con:
        rows = con.execute(
            """SELECT run_id FROM annotation_runs WHERE dataset_id = $id AND run_id IN (SELECT run_id FROM rules)
               ORDER BY created_at, run_id""",
            {"id": dataset_id},
        ).fetchall()
    return [run_id for (run_id,) in rows]
