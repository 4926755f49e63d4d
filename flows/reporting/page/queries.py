"""What the catalog says about a subject: its comparison, runs, spending, rejections and ancestors, as plain rows.

Labels are in `labels.py`, episodes in `reporting/viewer/episodes.py`. The questions are `storage/queries/report/*.sql`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storage.annotations import has_rules, summarise_rules
from storage.datasets import read_manifest
from storage.queries import Row, ask
from storage.schema import Manifest
from storage.store import Store

from .report_target import Subject


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
        found = ask(con, "report/comparison", comparison=comparison_id)
        comparison = found[0] if found else None
        return Facts(
            subject=subject,
            manifest=manifest,
            level=ask(con, "report/level", dataset=subject.dataset_id)[0],
            comparison=comparison,
            arms=ask(con, "report/arms", comparison=comparison_id),
            refinements=ask(con, "report/refinements", comparison=comparison_id),
            candidates=ask(con, "report/candidates", comparison=comparison_id),
            runs=ask(con, "report/runs", runs=runs),
            spending=ask(con, "report/spending", runs=runs),
            questions=ask(con, "report/requests", runs=runs),
            rejections=ask(con, "report/rejections", runs=runs),
            policies=ask(con, "report/ancestors", policy=comparison["policy_id"] if comparison else None),
            prompts=ask(con, "report/prompts", run=runs[0]) if runs else [],
            replays=ask(con, "report/replays", dataset=subject.dataset_id),
            rules=rules.rules if rules else (),
            ruled={"covered": rules.covered, "steps": rules.steps} if rules else None,
        )
