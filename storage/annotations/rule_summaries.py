"""What rules do in their dataset, in numbers: how much they cover, whom they contradict. One question each, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..catalog import same_action
from ..datasets import read_manifest
from ..store import Store

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
    rules: Sequence[dict[str, Any]]  # in their order; `decides` counts the steps whose label they give
    conflicts: Sequence[dict[str, Any]]  # pairs that match the same steps with other actions, and who decides there


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
        rows: dict[str, list[dict[str, Any]]] = {}
        for name, question in {"rules": _RULES.format(agree=agree), "conflicts": _CONFLICTS, "all": _COVERED}.items():
            answer = con.execute(question, asked)
            columns = [column[0] for column in answer.description or ()]
            rows[name] = [dict(zip(columns, row, strict=True)) for row in answer.fetchall()]
    return RuleSummary(rows["all"][0]["steps"], manifest.steps, rows["rules"], rows["conflicts"])


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
