"""Rounds: collect with the policy in force, annotate its failures, refine it again, as long as that gains something.

Every round is a pipeline with seeds that no other round uses; its gate compares with the policy in force. Each step
finds its earlier results, so a killed series goes on in the round where it was. Rounds of rules are rounds of feedback
(`feedback.py`): one dataset, a better list in each round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from annotate.prompting import Method
from refine.evaluation import Interval
from storage.annotations import has_rules
from storage.catalog import insert_rows
from storage.errors import BadInput, Prerequisite
from storage.ledger import count_waiting, total_run
from storage.schema import Frozen, content_id
from storage.store import Store

from ..datasets import CollectConfig, gather
from ..labelling import LabelConfig, export, label_some
from ..runtime import listener
from ..simulation import Named
from .feedback import Version, best_of, measure_version
from .refinement import ImproveConfig, Outcome, improve, starting_at


class RoundsConfig(Frozen):
    """A series of rounds; the settings for collecting, labelling and refining hold for each."""

    store: Path = Field(description="folder of the store")
    collect: CollectConfig = Field(description="the first round's; later ones have other seeds and the policy in force")
    label: LabelConfig = Field(description="with provider file, `answers` is a folder with two files per round")
    improve: ImproveConfig = Field(default_factory=ImproveConfig, description="each round's gate has seeds of its own")
    rounds: int = Field(default=2, ge=1, description="at most; the series ends when a round gains nothing")
    select: Method = Field(default="failing", description="which episodes are asked about from the second round on")


@dataclass(frozen=True)
class Work:
    """The three steps of a round; a flow passes its tasks instead."""

    collect: Callable[[Path, CollectConfig, str | None], str]
    label: Callable[[Path, str, LabelConfig], str]
    improve: Callable[[Path, str, list[str], ImproveConfig], Outcome]


@dataclass(frozen=True)
class Round:
    """One round, with the policies in force before and after it."""

    number: int  # from 1
    dataset_id: str
    run_ids: tuple[str, ...]
    outcome: Outcome
    version: Version | None = None  # of the list, in rounds of feedback

    @property
    def accepted(self) -> bool:
        """Whether the gate put another policy in force."""
        return self.outcome.comparison.accepted

    @property
    def gain(self) -> Interval:
        """Return of the new policy in force minus that of the old, on the round's report seeds."""
        return self.outcome.comparison.improvement.differences["baseline"]


@dataclass(frozen=True)
class Series:
    """The finished rounds, and why they ended."""

    rounds: Sequence[Round]
    ended: str  # why there are no more
    waits: bool = False  # for answers; the same command goes on once they are there

    @property
    def best(self) -> Round | None:
        """The round whose policy counts: the last one, or that of the best list; None without any."""
        versions = [made.version for made in self.rounds if made.version is not None]
        if not versions:
            return self.rounds[-1] if self.rounds else None
        return self.rounds[versions.index(best_of(versions))]


def run_rounds(config: RoundsConfig, work: Work | None = None) -> Series:
    """Go from round to round until one gains nothing, answers are missing, or all are done.

    Args:
        config: the series.
        work: the steps; the plain functions when None.

    Raises:
        BadInput: if two rounds would share a seed, and as raised by the steps.
    """
    check_seeds(config)
    work = work or plain_work()
    if config.label.annotate.kind == "rules":
        return _run_feedback(config, work)
    done: list[Round] = []
    policy = config.collect.policy
    for number in range(1, config.rounds + 1):
        planned = plan_round(config, number, policy)
        dataset_id = work.collect(config.store, planned.collect, planned.label.card)
        run_ids, waiting = _ask(planned, work, dataset_id, number)
        if waiting:
            return Series(done, waiting, waits=True)
        outcome = work.improve(config.store, dataset_id, run_ids, planned.improve)
        done.append(Round(number, dataset_id, tuple(run_ids), outcome))
        _record(config, done)
        if not done[-1].accepted:
            return Series(done, f"round {number} gained nothing: {outcome.comparison.promoted.decision.reason}")
        policy = Named(f"policy:{outcome.comparison.policy_id}")
    return Series(done, f"all {config.rounds} rounds are done")


def _run_feedback(config: RoundsConfig, work: Work) -> Series:
    """Ask for a list of rules, refine with it, show the annotator what came of it, and ask for a better one."""
    done: list[Round] = []
    dataset_id = work.collect(config.store, config.collect, config.label.card)
    for number in range(1, config.rounds + 1):
        planned = _with_feedback(plan_round(config, number, config.collect.policy), done)
        run_ids, waiting = _ask(planned, work, dataset_id, number)
        if waiting:
            return Series(done, waiting, waits=True)
        store = Store.open(config.store)
        if not has_rules(store, run_ids):
            return _end_without_rules(done, number, run_ids)
        outcome = work.improve(config.store, dataset_id, run_ids, planned.improve)
        version = measure_version(
            store,
            dataset_id,
            run_ids[0],
            outcome,
            card=config.label.card,
            env_id=config.collect.env_id,
            report=listener(),
        )
        done.append(Round(number, dataset_id, tuple(run_ids), outcome, version))
        _record(config, done)
        before = [made.version for made in done[:-1] if made.version is not None]
        if not version.gains(before):
            best = best_of(before)
            return Series(
                done,
                f"round {number} gained nothing: {version.played.mean:.4g} played and {version.refined.mean:.4g}"
                f" imitated, after {best.played.mean:.4g} and {best.refined.mean:.4g}",
            )
    return Series(done, f"all {config.rounds} rounds are done")


def _end_without_rules(done: Sequence[Round], number: int, run_ids: Sequence[str]) -> Series:
    """The series up to a reply that gave no rule.

    Raises:
        Prerequisite: if it was the first.
    """
    problem, hint = f"the run {', '.join(run_ids)} gave no valid rule", "The table `rejections` says why."
    if not done:
        raise Prerequisite(f"{problem[0].upper()}{problem[1:]}.", hint)
    return Series(done, f"round {number} gained nothing: {problem}. {hint.rstrip('.')}")


def _with_feedback(planned: RoundsConfig, done: Sequence[Round]) -> RoundsConfig:
    """The settings of a round of rules, whose request shows what came of the last list."""
    last = done[-1].version if done else None
    if last is None:
        return planned
    shown = {"feedback": last.text, "parent": last.list_id}
    asked: dict[str, object] = {"annotate": planned.label.annotate.model_copy(update=shown)}
    if planned.label.budget_usd is not None:
        asked["budget_usd"] = max(0.0, planned.label.budget_usd - _spent(planned.store, done))
    return planned.model_copy(update={"label": planned.label.model_copy(update=asked)})


def _spent(store: Path, done: Sequence[Round]) -> float:
    """Dollars that the rounds have cost."""
    with Store.open(store).catalog.read() as con:
        totals = [total_run(con, run_id) for made in done for run_id in made.run_ids]
    return sum(total.cost_usd for total in totals if total is not None)


def plain_work() -> Work:
    """The steps without Prefect."""
    return Work(
        collect=lambda store, config, card: (
            gather(Store.create(store), config, card=card, report=listener()).dataset_id
        ),
        label=lambda store, dataset_id, config: label_some(Store.open(store), dataset_id, config, listener()).run_id,
        improve=lambda store, dataset_id, run_ids, config: improve(
            Store.open(store), dataset_id, config, run_ids=run_ids, report=listener()
        ),
    )


def plan_round(config: RoundsConfig, number: int, policy: Named) -> RoundsConfig:
    """The settings of one round: the series' own, with the round's seeds, policy, episodes and files."""
    before, size = number - 1, len(config.improve.gate.seeds.whole)
    asked = config.label.model_copy(update={"select": config.select}) if before else config.label
    if asked.provider == "file" and asked.answers is not None:
        asked = asked.model_copy(update={"answers": asked.answers / f"round-{number}-answers.jsonl"})
    gate = config.improve.gate
    if gate.first_seed is not None:
        gate = starting_at(gate, gate.first_seed + before * size)
    shifted = {"policy": policy, "seed": config.collect.seed + before * config.collect.episodes}
    return config.model_copy(
        update={
            "collect": config.collect.model_copy(update=shifted),
            "label": asked,
            "improve": config.improve.model_copy(update={"gate": gate}),
        }
    )


def check_seeds(config: RoundsConfig) -> None:
    """Refuse a series before it starts if two of its uses of seeds would overlap.

    Raises:
        BadInput: naming the two uses.
    """
    first, judged = config.collect.seed, config.improve.gate.seeds.whole
    datasets = range(first, first + config.rounds * config.collect.episodes)
    gates = range(judged.start, judged.start + config.rounds * len(judged))
    if datasets.start < gates.stop and gates.start < datasets.stop:
        raise BadInput(
            f"{config.rounds} rounds collect with the seeds {datasets.start} to {datasets.stop - 1} and judge with"
            f" {gates.start} to {gates.stop - 1}; they must not share any.",
            "Choose another first seed, or fewer rounds.",
        )
    if config.collect.dataset is not None:
        raise BadInput("Each round has its own dataset, so they cannot share one name.", "Leave the name out.")


def _ask(planned: RoundsConfig, work: Work, dataset_id: str, number: int) -> tuple[list[str], str]:
    """The annotation run of a round, and what it waits for, if anything.

    With the file provider and no answers yet, the requests are written, and nothing is asked.
    """
    asked = planned.label
    if asked.provider == "file" and asked.answers is not None and not asked.answers.exists():
        return [], _ask_by_file(planned, dataset_id, number)
    run_ids = [work.label(planned.store, dataset_id, asked)]
    with Store.open(planned.store).catalog.read() as con:
        waiting = count_waiting(con, run_ids)
    if not waiting:
        return run_ids, ""
    if asked.provider == "file":
        return run_ids, _ask_by_file(planned, dataset_id, number)
    return run_ids, f"round {number} waits for {waiting} answers"


def _ask_by_file(planned: RoundsConfig, dataset_id: str, number: int) -> str:
    answers = planned.label.answers or Path()
    requests = answers.with_name(f"round-{number}-requests.jsonl")
    exported = export(Store.open(planned.store), dataset_id, planned.label, requests)
    return f"round {number} waits for {exported} answers: the requests are in {requests}, the answers go to {answers}"


def series_id(config: RoundsConfig, first: Round) -> str:
    """An id from what decides the rounds, without their number, so that a longer series continues this one."""
    own = config.improve.model_dump(mode="json", exclude={"workers"})
    made_of = [first.dataset_id, first.run_ids, own, config.select, config.label.limit, config.label.select_seed]
    return content_id("s_", made_of)


def _record(config: RoundsConfig, done: Sequence[Round]) -> None:
    """Write the newest round; writing it again changes nothing."""
    last = done[-1]
    comparison = last.outcome.comparison
    row = {
        "series_id": series_id(config, done[0]),
        "round": last.number,
        "env_id": config.collect.env_id,
        "dataset_id": last.dataset_id,
        "run_ids": list(last.run_ids),
        "comparison_id": last.outcome.comparison_id,
        "baseline_id": last.outcome.baseline_id,
        "policy_id": comparison.policy_id,
        "accepted": last.accepted,
        "gain": last.gain.mean,
        "low": last.gain.low,
        "high": last.gain.high,
    }
    with Store.open(config.store).catalog.write() as con:
        insert_rows(con, "rounds", [row])
