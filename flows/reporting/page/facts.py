"""What a report is about, and what the catalog says of it: comparison, runs, spending, rejections, ancestors.

Labels are in `labels.py`, episodes in `reporting/viewer/episodes.py`. The questions are `storage/queries/report/*.sql`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from storage.annotations import has_rules, list_runs, summarise_rules
from storage.datasets import pick, read_manifest
from storage.errors import Prerequisite
from storage.queries import Row, ask
from storage.schema import Manifest
from storage.store import Store


@dataclass(frozen=True)
class Subject:
    """The subject of a report."""

    name: str  # as asked for; names the file
    dataset_id: str
    run_ids: tuple[str, ...]  # annotation runs whose labels are shown
    comparison_id: str | None  # None if nothing was judged yet
    refinement_id: str | None  # the one asked for; None: the one with the annotator's labels


def find_subject(store: Store, name: str | None) -> Subject:
    """Find the subject that a user means.

    Args:
        store: the store.
        name: id of a refinement, comparison, run or dataset, or a unique beginning of one; None for the newest
            comparison, or the newest dataset while there is none.

    Raises:
        BadInput: if the name fits nothing, or several.
        Prerequisite: if the store is empty.
    """
    with store.catalog.read() as con:
        known = {row["name"]: row for row in ask(con, "report/subjects")}
        if name is None:
            name = _newest(known.values())
        chosen = known[pick(name, sorted(known), "refinement, comparison, run or dataset")]
        runs = ask(con, "report/runs_of_comparison", comparison=chosen["comparison_id"], dataset=chosen["dataset_id"])
    run_ids = [row["run_id"] for row in runs] or list_runs(store, chosen["dataset_id"])
    return Subject(
        name=chosen["name"],
        dataset_id=chosen["dataset_id"],
        run_ids=(chosen["name"],) if chosen["kind"] == "run" else tuple(run_ids),
        comparison_id=chosen["comparison_id"],
        refinement_id=chosen["name"] if chosen["kind"] == "refinement" else None,
    )


def _newest(known: Collection[Row]) -> str:
    """The newest comparison, or the newest dataset while there is none."""
    for kind in ("comparison", "dataset"):
        made = [(row["created_at"], row["name"]) for row in known if row["kind"] == kind]
        if made:
            return str(max(made)[1])
    raise Prerequisite("The store is empty.", "Collect a dataset first: `trajnote collect` or `trajnote demo`.")


@dataclass(frozen=True)
class Facts:
    """Everything but labels and episodes in a report; rows are dictionaries by column."""

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
    rules: Sequence[Row] = ()  # of these runs, with their coverage
    ruled: Row | None = None  # steps that the rules match, and all steps

    @property
    def estimated(self) -> bool:
        """Whether the comparison is an estimate, without playing."""
        return self.comparison is not None and self.comparison["basis"] == "estimated"

    @property
    def judged(self) -> Row | None:
        """The refinement in question: the one asked for, or the one with the annotator's labels."""
        asked = [row for row in self.refinements if row["refinement_id"] == self.subject.refinement_id]
        own = [row for row in self.refinements if row["arm"] == "labels"]
        return next(iter([*asked, *own]), None)


def gather_facts(store: Store, subject: Subject) -> Facts:
    """Query the catalog, which is closed again on return."""
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
