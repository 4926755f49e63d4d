"""What the catalog says about a subject: its comparison, runs, spending, rejections and ancestors, as plain rows.

Labels are in `labels.py`, episodes in `reporting/viewer/episodes.py`. Nothing is computed here that SQL can say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.annotations import has_rules, summarise_rules
from storage.catalog import Connection
from storage.datasets import read_manifest
from storage.schema import Manifest
from storage.store import Store

from .report_target import Subject

Row = dict[str, Any]

_ARMS = """
SELECT arm, mode, labels, draws, accepted, episodes, return_, low, high FROM arms WHERE comparison_id = ?
ORDER BY mode, return_, arm
"""
_CANDIDATES = """
SELECT refinement_id, arm, coalesce((config->>'draw')::INTEGER, 0) AS draw, candidates.number, candidates.policy_id,
    step, beta, coalesce(return_, consistency) AS return_, chosen
FROM candidates JOIN refinements USING (refinement_id) WHERE comparison_id = ?
ORDER BY arm, draw, beta, step
"""
_REFINEMENTS = """
SELECT refinement_id, arm, mode, config, run_ids, labels, accepted, policy_id, reason, finished_at
FROM refinements WHERE comparison_id = ? ORDER BY arm, (config->>'draw')::INTEGER
"""
_RUNS = "SELECT * FROM annotation_runs WHERE run_id IN (SELECT unnest(?)) ORDER BY created_at, run_id"
_SPENDING = "SELECT * FROM spending WHERE run_id IN (SELECT unnest(?)) ORDER BY run_id"
_QUESTIONS = """
SELECT run_id, count(*) AS requests, sum(input_tokens_estimate)::BIGINT AS input_tokens_estimate,
    count(*) FILTER (state = 'done') AS done, count(*) FILTER (state = 'failed') AS failed
FROM run_requests JOIN requests USING (request_id) WHERE run_id IN (SELECT unnest(?)) GROUP BY run_id
"""
_REJECTIONS = """
SELECT reason, count(*) AS n, count(DISTINCT request_id) AS replies, any_value(detail) AS detail,
    any_value(raw) AS raw
FROM rejections WHERE run_id IN (SELECT unnest(?)) GROUP BY reason ORDER BY n DESC, reason
"""
_POLICIES = """
WITH RECURSIVE ancestors AS (
    SELECT *, 0 AS generation FROM policies WHERE policy_id = ?
    UNION ALL
    SELECT policies.*, generation + 1 FROM policies JOIN ancestors ON policies.policy_id = ancestors.baseline_id
    WHERE generation < 20
) SELECT * FROM ancestors ORDER BY generation
"""
_PROMPTS = """
SELECT kind, any_value(prompt_version) AS prompt_version, any_value(body) AS body, count(*) AS n
FROM requests JOIN run_requests USING (request_id) WHERE run_id = ? GROUP BY kind ORDER BY kind
"""
_REPLAYS = """
SELECT episode_id, exact, detail FROM replays WHERE dataset_id = ?
QUALIFY row_number() OVER (PARTITION BY episode_id ORDER BY created_at DESC) = 1 ORDER BY episode_id
"""
_LEVEL = """
SELECT count(*) AS episodes, avg(return_) AS return_, min(return_) AS worst, max(return_) AS best,
    avg(length) AS length
FROM episodes WHERE dataset_id = ?
"""


@dataclass(frozen=True)
class Facts:
    """Everything small that a report says; rows are named by their columns."""

    subject: Subject
    manifest: Manifest
    level: Row  # of the dataset's episodes
    comparison: Row | None
    arms: Sequence[Row]
    refinements: Sequence[Row]
    candidates: Sequence[Row]
    runs: Sequence[Row]
    spending: Sequence[Row]
    questions: Sequence[Row]
    rejections: Sequence[Row]
    policies: Sequence[Row]  # the policy in force, then what it came from
    prompts: Sequence[Row]  # one request of each kind, of the first run
    replays: Sequence[Row]
    rules: Sequence[Row] = ()  # of these runs, with what they cover
    ruled: Row | None = None  # how many steps the rules match, of how many

    @property
    def estimated(self) -> bool:
        """Whether the comparison was judged by an estimate, without playing."""
        return self.comparison is not None and self.comparison["basis"] == "estimated"

    @property
    def judged(self) -> Row | None:
        """The refinement that the report is about: the one asked for, or the one with the annotator's labels."""
        asked = [row for row in self.refinements if row["refinement_id"] == self.subject.refinement_id]
        own = [row for row in self.refinements if row["arm"] == "labels"]
        return next(iter([*asked, *own]), None)


def gather_facts(store: Store, subject: Subject) -> Facts:
    """Ask the catalog; it is closed again when this returns."""
    manifest = read_manifest(store, subject.dataset_id)
    runs, comparison_id = list(subject.run_ids), subject.comparison_id
    rules = summarise_rules(store, subject.dataset_id, runs) if has_rules(store, runs) else None
    with store.catalog.read() as con:
        found = fetch(con, "SELECT * FROM comparisons WHERE comparison_id = ?", comparison_id)
        comparison = found[0] if found else None
        in_force = comparison["policy_id"] if comparison else None
        return Facts(
            subject=subject,
            manifest=manifest,
            level=fetch(con, _LEVEL, subject.dataset_id)[0],
            comparison=comparison,
            arms=fetch(con, _ARMS, comparison_id),
            refinements=fetch(con, _REFINEMENTS, comparison_id),
            candidates=fetch(con, _CANDIDATES, comparison_id),
            runs=fetch(con, _RUNS, runs),
            spending=fetch(con, _SPENDING, runs),
            questions=fetch(con, _QUESTIONS, runs),
            rejections=fetch(con, _REJECTIONS, runs),
            policies=fetch(con, _POLICIES, in_force),
            prompts=fetch(con, _PROMPTS, runs[0]) if runs else [],
            replays=fetch(con, _REPLAYS, subject.dataset_id),
            rules=rules.rules if rules else (),
            ruled={"covered": rules.covered, "steps": rules.steps} if rules else None,
        )


def fetch(con: Connection, question: str, *values: object) -> list[Row]:
    """The rows of an answer, each as a dictionary by column."""
    answer = con.execute(question, list(values))
    names = [column[0] for column in answer.description or ()]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
