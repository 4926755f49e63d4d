"""One night of a deployment: take in what is new, ask what is open, enter what came back, refine, promote or keep.

Every step finds out for itself what is left to do, so a night that was killed anywhere is finished by the next one,
and a second one on the same evening changes nothing. `prefect_flows.py` says when nights happen.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refine.evaluation import share_over_nights
from storage.datasets import read_manifest
from storage.errors import Prerequisite, TrajnoteError, TrajnoteWarning
from storage.policies import (
    Decision,
    count_labels,
    deployment_lock,
    find_labelled,
    link_current,
    list_decisions,
    list_intakes,
    record_decision,
    sum_dollars,
)
from storage.schema import Manifest
from storage.store import Store

from ..labelling import LabelConfig, export, label
from ..refinement import GateConfig, Outcome, improve, show_comparison
from ..runtime import Report, running_on, silent
from ..simulation import Named, are_alike, find_home
from .intake import Memory, acting_policy, answers_of, take_in_new
from .settings import DeploymentConfig


@dataclass
class Night:
    """What a night has done, and how things stand after it."""

    deployment: str
    killed: str | None = None  # when the night before this one began, if it was killed
    took_in: Sequence[str] = ()  # datasets
    refused: Mapping[str, str] = field(default_factory=dict[str, str])  # file -> what is wrong with it
    asked: int = 0  # requests that went out now
    answered: int = 0  # requests that were answered now
    waiting: int = 0  # requests without an answer yet
    new_labels: int = 0
    labels: int = 0  # of all datasets of the deployment
    dollars: float = 0.0  # spent now
    total_dollars: float = 0.0
    comparison_id: str | None = None  # of tonight's refinement; None when there was none
    promoted: bool = False
    policy_id: str | None = None  # in force; None before the first decision
    decision: str = ""  # why it was promoted or kept, in words
    rows: Sequence[Mapping[str, object]] = ()  # the arms with their returns
    verdicts: Sequence[str] = ()
    report: Path | None = None
    notes: Sequence[str] = ()  # what a person should know
    warnings: Sequence[str] = ()  # what a person should change, repeated every night until it is
    seconds: float = 0.0


def run_night(store: Store, deployment: str, config: DeploymentConfig, report: Report = silent) -> Night:
    """Run a deployment once.

    Args:
        store: of the configuration.
        deployment: its name.
        config: what it does.
        report: shown the progress.

    Raises:
        AlreadyRunning: if it runs already; nothing was done then.
        TrajnoteError: whatever its steps raise; what they have done stays, and the next night goes on from there.
    """
    started = time.monotonic()
    with deployment_lock(store, deployment) as killed, running_on(config.runner), _hearing() as texts:
        night = _Night(store, deployment, config, report).run()
    notes = tuple(dict.fromkeys([*night.notes, *texts]))
    return replace(night, killed=killed, notes=notes, seconds=time.monotonic() - started)


@contextmanager
def _hearing() -> Generator[list[str]]:
    """The texts of the project's own warnings inside the block, complete once it has ended."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrajnoteWarning)
        yield texts
    for warning in caught:
        if issubclass(warning.category, TrajnoteWarning):
            texts.append(str(warning.message))
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


class _Night:
    """The steps in their order."""

    def __init__(self, store: Store, deployment: str, config: DeploymentConfig, report: Report) -> None:
        self.store = store
        self.deployment = deployment
        label = config.label.model_copy(update={"env_id": config.label.env_id or config.env_id})
        self.config = config.model_copy(update={"label": label})
        self.report = report
        self.night = Night(deployment)
        self.memory = Memory(store, deployment, self.config)
        self.settled = frozenset[str]()  # datasets about which nothing is left to ask
        self.admitted: dict[str, bool] = {}

    def run(self) -> Night:
        """Fetch, take in, ask, refine; then say how things stand."""
        with self.store.catalog.read():
            self.settled = self.memory.find_settled()
            self.admitted = dict.fromkeys(self.settled, True)  # they were, under these settings
            labels, dollars = self._totals()
            before = self._intakes()
        self._fetch()
        intake = take_in_new(self.store, self.deployment, self.config, self.report, memory=self.memory)
        self.night.took_in, self.night.refused = intake.datasets, intake.refused
        self._note(*intake.notes)
        self.night.warnings = [
            f"no dataset of {self.store.root} has a name with the prefix {prefix!r}, which `datasets` lists"
            for prefix in intake.unmatched
        ]
        try:
            for dataset_id in self._admit([*before, *intake.datasets]):
                if dataset_id not in self.settled:
                    self._ask(dataset_id)
        finally:
            self.memory.save()
        self._show(self._decide())
        self.night.new_labels = self.night.labels - labels
        self.night.dollars = self.night.total_dollars - dollars
        return self.night

    def _datasets(self) -> list[str]:
        """The deployment's datasets, the newest first, without those whose environment may not be made."""
        return self._admit(self._intakes())

    def _intakes(self) -> list[str]:
        return list(list_intakes(self.store, self.deployment).values())

    def _admit(self, intakes: Sequence[str]) -> list[str]:
        """As `_datasets`, of the datasets that were taken in, the oldest first."""
        known = dict.fromkeys(reversed(intakes))
        for dataset_id in known:
            if dataset_id not in self.admitted:
                self.admitted[dataset_id] = self._is_admitted(dataset_id)
        return [dataset_id for dataset_id in known if self.admitted[dataset_id]]

    def _is_admitted(self, dataset_id: str) -> bool:
        try:
            manifest = read_manifest(self.store, dataset_id)
            if manifest.env_id is not None:
                find_home(self.store, manifest, self._named(manifest))
        except TrajnoteError as error:
            self._note(f"left out: {error}")
            return False
        return True

    def _named(self, manifest: Manifest) -> Named | None:
        """The environment of the settings, if it is the dataset's."""
        named = self.config.env_id
        return named if named and manifest.env_id and are_alike(named, manifest.env_id) else None

    def _totals(self) -> tuple[int, float]:
        with self.store.catalog.read():
            datasets = self._datasets()
            return count_labels(self.store, datasets), sum_dollars(self.store, datasets)

    def _fetch(self) -> None:
        """Take in what earlier nights have sent in batches."""
        if self.config.label.provider == "batch" and self._datasets():
            from ..labelling import ingest  # the SDK takes a second to load

            done = ingest(self.store, self.config.label.base_url, self.config.label.batch)
            self.night.answered += done.answered
            self._note(*done.warnings, *done.failed)

    def _ask(self, dataset_id: str) -> None:
        """Ask what has no answer yet; batches are sent, not waited for."""
        stamp = self.memory.stamp_answers(dataset_id)
        if self.config.label.provider == "batch":
            from ..labelling import submit  # the SDK takes a second to load

            sent = submit(self.store, dataset_id, self.config.label)
            self.night.asked += sent.requests
            self.night.waiting += sent.open + sent.under_way
            self._note(*sent.warnings, *((sent.stopped,) if sent.stopped else ()))
            if not (sent.open or sent.under_way or sent.failed or sent.unknown or self.config.label.study):
                self.memory.settle(dataset_id, sent.run_id, stamp)
            return
        asked = self._label_config(dataset_id)
        if asked is None:
            return
        summary = label(self.store, dataset_id, asked, self.report)
        self.night.asked += summary.asked
        self.night.answered += summary.answered
        self.night.waiting += summary.pending
        self._note(*((summary.stopped,) if summary.stopped else ()))
        self._note(*((str(summary.failure),) if summary.failure else ()))
        if summary.done and not summary.pending and not (asked.study and asked.provider == "file"):
            self.memory.settle(dataset_id, summary.run_id, stamp)

    def _label_config(self, dataset_id: str) -> LabelConfig | None:
        """How a dataset is asked about; None where its answers are still to be written.

        The provider `file` works with a folder: requests go to `deployments/<name>/requests/<dataset_id>.jsonl`, and
        answers are expected in a file of the same name in the folder that `answers` names.
        """
        config = self.config.label
        if config.provider != "file":
            return config
        if config.answers is None:
            raise Prerequisite("The provider file needs a folder of answers.", "Name it with `answers` under [label].")
        requests = self.store.deployment_dir(self.deployment) / "requests" / f"{dataset_id}.jsonl"
        if (answers := answers_of(self.config, dataset_id)) is not None and answers.is_file():
            return config.model_copy(update={"answers": answers})
        waiting = export(self.store, dataset_id, config, requests)
        self.night.waiting += waiting
        self._note(f"{waiting} requests in {requests} wait for answers in {answers}")
        return None

    def _decide(self) -> list[Decision]:
        """Refine if there are enough new labels, and promote what the gate accepts against the policy in force.

        Returns:
            All decisions up to now.
        """
        new, datasets, decisions = self._new_labels()
        if new >= self.config.refine_after and self.settled:  # what is learned from is looked at again
            self.settled, self.admitted = frozenset(), {}
            new, datasets, decisions = self._new_labels()
        if new < self.config.refine_after:
            wanted = self.config.refine_after
            self.night.decision = (
                f"kept: {new} new labels since the last refinement; {wanted} are needed for another one"
            )
            return decisions
        gate = self.config.improve.gate
        before = acting_policy(decisions)
        outcome = improve(
            self.store,
            datasets[0],
            self.config.improve.model_copy(update={"gate": gate_of_night(gate, decisions)}),
            baseline=before or self.config.baseline,
            env_id=self._named(read_manifest(self.store, datasets[0])),
            also=datasets[1:],
            search_from=gate.seeds.select.start,
            report=self.report,
        )
        decision = decide(outcome, before.removeprefix("policy:") if before else None)
        record_decision(self.store, self.deployment, len(decisions), decision)
        self._enter_outcome(outcome, decision)
        return [*decisions, decision]

    def _new_labels(self) -> tuple[int, list[str], list[Decision]]:
        """How many labels there are since the last decision, the datasets that have some, newest first; decisions."""
        with self.store.catalog.read():
            decisions = list_decisions(self.store, self.deployment)
            datasets = find_labelled(self.store, self._datasets())
            self.night.labels, self.night.total_dollars = labels, _ = self._totals()
        return labels - (decisions[-1].labels if decisions else 0), datasets, decisions

    def _enter_outcome(self, outcome: Outcome, decision: Decision) -> None:
        self.night.comparison_id = outcome.comparison_id
        self.night.promoted, self.night.decision = decision.promoted, decision.reason
        shown = show_comparison(outcome)
        self.night.rows = shown.rows
        self.night.verdicts = [line for line in shown.sentences if not line.startswith("in force:")]

    def _show(self, decisions: Sequence[Decision]) -> None:
        """Have the link and the report show the last decision, also where the night that made it was killed."""
        if not decisions:
            return
        self.night.policy_id = decisions[-1].policy_id
        link_current(self.store, self.deployment, decisions[-1].policy_id)
        report = self.store.reports_dir / f"{decisions[-1].comparison_id}.html"
        if self.config.report and not report.exists():
            self._write_report(decisions[-1].comparison_id)
        self.night.report = report if report.exists() else None

    def _write_report(self, comparison_id: str) -> None:
        from ..reporting import write_report  # altair takes a second to load

        try:
            write_report(
                self.store,
                comparison_id,
                pictures=self.config.pictures,
                env_id=self.config.env_id,
                report=self.report,
            )
        except Prerequisite as error:
            self._note(f"no report was written: {error}")

    def _note(self, *notes: str) -> None:
        self.night.notes = tuple(dict.fromkeys([*self.night.notes, *notes]))


def gate_of_night(gate: GateConfig, decisions: Sequence[Decision]) -> GateConfig:
    """The gate of the next night: seeds that no other has used, and its share of the error rate of all nights."""
    kept = sum(not decision.promoted for decision in decisions)
    return gate.model_copy(update={"first_seed": None, "error_rate": share_over_nights(gate.error_rate, kept)})


def decide(outcome: Outcome, before: str | None) -> Decision:
    """The gate's decision as a promotion: what it accepts is in force from now on, else what was in force stays."""
    comparison = outcome.comparison
    accepted, arms = comparison.accepted, len(comparison.competing)
    done = f"promoted the arm {comparison.arm}" if accepted and arms > 1 else "promoted" if accepted else "kept"
    return Decision(
        comparison_id=outcome.comparison_id,
        policy_id=comparison.policy_id if accepted or before is None else before,
        previous_id=before,
        promoted=accepted,
        labels=outcome.n_labels,
        reason=f"{done}: {comparison.promoted.decision.reason}",
    )


def as_plain(night: Night) -> dict[str, Any]:
    """A night as JSON can say it."""
    return {**vars(night), "report": str(night.report) if night.report else None}


def describe_night(night: Night) -> list[str]:
    """What a night has done, in lines."""
    began = f"the night that began {night.killed} was killed; this one resumes it"
    return [
        *((began,) if night.killed else ()),
        f"imported {len(night.took_in)} datasets" + (f": {', '.join(night.took_in)}" if night.took_in else ""),
        *(f"warning: {warning}" for warning in night.warnings),
        *(f"refused {name}: {reason}" for name, reason in night.refused.items()),
        f"asked {night.asked} requests, {night.answered} answered, {night.waiting} waiting; "
        f"{night.new_labels} new labels, {night.labels} in all; ${night.dollars:.4f} now, ${night.total_dollars:.4f} "
        "in all",
        *night.notes,
        *((night.decision,) if not night.comparison_id else (night.decision.split(":")[0],)),
        *(night.verdicts if night.comparison_id else ()),
        f"in force: {night.policy_id or 'nothing yet'}",
        *((f"report: {night.report}",) if night.report else ()),
    ]
