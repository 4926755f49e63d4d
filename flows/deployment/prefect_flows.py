"""The Prefect flows: collect, label, improve, their pipeline, rounds of it, and the nightly one with its schedule.

Each calls a plain function. What a run did is in the store; Prefect says when it ran. A run killed half-way is finished
by the next one. The nightly flow reads `trajnote.toml` when it runs, so that a change of it needs no new deployment.

Each piece of work leaves a markdown and a table artifact, and a failure has its reason in words. The store has
everything already: an artifact that cannot be left is no reason to fail. No secret gets in, because nothing is said
here that the command line does not print. Notices of failures and promotions go to one of Prefect's own blocks, loaded
by name; its address and secrets stay in the block. A notice that cannot be delivered changes nothing but a note.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import flow, serve, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.blocks.core import Block
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.schedules import Cron, Interval, Schedule
from prefect.states import Completed, Failed
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.asyncutils import run_coro_as_sync
from pydantic import Field, model_validator

from annotate.runs import RunSummary
from storage.datasets import catalogued_episodes
from storage.errors import BadInput, TrajnoteError
from storage.policies import AlreadyRunning
from storage.schema import Frozen
from storage.store import Store

from ..datasets import CollectConfig, gather
from ..labelling import LabelConfig, label_some
from ..refinement import (
    ImproveConfig,
    Outcome,
    RoundsConfig,
    Series,
    Work,
    improve_and_relabel,
    run_rounds,
    show_comparison,
)
from ..runtime import Report, listener
from .night import Night, as_plain, describe_night, run_night
from .settings import SETTINGS, DeploymentConfig, read_deployment, read_settings

P = ParamSpec("P")
R = TypeVar("R")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#])")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What is said of one piece of work."""

    title: str
    lines: Sequence[str]
    rows: Sequence[Mapping[str, object]]
    report: Path | None = None


def publish(key: str, summary: Summary) -> None:
    """Leave a summary as two artifacts, `<key>` and `<key>-table`; every run adds a version of them."""
    name = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
    try:
        create_markdown_artifact(as_markdown(summary), key=name, description=summary.title)
        if summary.rows:
            rows = [{name: _cell(value) for name, value in row.items()} for row in summary.rows]
            create_table_artifact(rows, key=f"{name}-table", description=summary.title)
    except (PrefectException, OSError, RuntimeError) as error:
        _LOG.warning("no artifact was written: %s", error)


def as_markdown(summary: Summary) -> str:
    """A heading and a list; what comes from files and models is text, never markup."""
    lines = [f"- {_escape(line)}" for line in summary.lines]
    if summary.report is not None:
        lines.append(f"- report: [{_escape(summary.report.name)}]({summary.report.as_uri()})")
    return "\n".join([f"## {_escape(summary.title)}", "", *lines])


def fail_with_message(work: Callable[P, R]) -> Callable[P, R]:
    """Have a flow that is refused end in a failed state whose message is the error's own sentence.

    Prefect would say the same with the exception's class before it and log a traceback. Whoever calls the flow gets
    the same exception as ever. (A task that returns a state hands it to its flow, so tasks just raise.)
    """

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return work(*args, **kwargs)
        except TrajnoteError as error:
            return Failed(message=str(error), data=error)  # pyright: ignore[reportReturnType] -- Prefect raises it

    # Prefect would look up the names of the types in this module
    run.__signature__ = inspect.signature(work, eval_str=True)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = inspect.get_annotations(work, eval_str=True)
    return run


def summarise_dataset(store: Store, dataset_id: str) -> Summary:
    """A dataset: episodes, steps and the mean return with its interval."""
    from refine.evaluation import interval  # scipy takes a while to load

    episodes = catalogued_episodes(store, dataset_id)
    returns = interval([episode.return_ for episode in episodes]) if len(episodes) > 1 else episodes[0].return_
    steps = sum(episode.length for episode in episodes)
    counted: dict[str, object] = {"dataset": dataset_id, "episodes": len(episodes), "steps": steps}
    line = f"{len(episodes)} episodes, {steps} steps, return {returns}"
    return Summary(f"dataset {dataset_id}", [line], [counted | {"return [95%]": returns}])


def summarise_labels(summary: RunSummary) -> Summary:
    """An annotation run: requests, labels and dollars."""
    dollars = summary.totals.cost_usd
    row: dict[str, object] = {
        "run": summary.run_id,
        "dataset": summary.dataset_id,
        "model": summary.model,
        "answered": summary.answered,
        "open": summary.pending,
        "labels": summary.totals.labels,
        "rejections": summary.totals.rejections,
        "dollars": dollars,
    }
    lines = [
        f"{summary.totals.labels} labels and {summary.totals.rejections} rejections from {summary.episodes} episodes",
        f"{summary.answered} requests answered now, {summary.reused} before, {summary.pending} open",
        f"${dollars or 0:.4f}" + (f", stopped: {summary.stopped}" if summary.stopped else ""),
    ]
    return Summary(f"labels of {summary.dataset_id}", lines, [row])


def summarise_outcome(outcome: Outcome) -> Summary:
    """A refinement: the arms with their returns, the gate and the verdicts."""
    shown = show_comparison(outcome)
    start = f"{outcome.n_labels} labels; baseline: {outcome.baseline.origin}"
    return Summary(f"refinement of {outcome.dataset_id}", [start, *shown.sentences], shown.rows)


def summarise_night(night: Night) -> Summary:
    """A night: what it did; the table has the arms of a refinement, or the counts where there was none."""
    counts: dict[str, object] = {
        "datasets": len(night.took_in),
        "asked": night.asked,
        "answered": night.answered,
        "waiting": night.waiting,
        "new labels": night.new_labels,
        "labels": night.labels,
        "dollars": round(night.dollars, 6),
        "in force": night.policy_id,
    }
    lines = [line for line in describe_night(night) if not line.startswith("report: ")]
    return Summary(f"night of {night.deployment}", lines, [*night.rows] or [counts], night.report)


def _escape(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _cell(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def notify(block: str | None, subject: str, body: str) -> str | None:
    """Send a notice through a block with `notify` (Slack, Teams, e-mail, ...) or `call` (Webhook).

    Args:
        block: `block-type/name`; nothing is sent when None.
        subject: one line.
        body: the text.

    Returns:
        Why it could not be delivered, without the block's address; None if it was, or nothing was to be sent.
    """
    if block is None:
        return None
    try:
        loaded: Any = _wait(Block.load(block))
        if hasattr(loaded, "notify"):
            _wait(loaded.notify(body, subject))
            return None
        if not hasattr(loaded, "call"):
            return f"the notice was not delivered: the block {block} has neither `notify` nor `call`"
        answer = _wait(loaded.call({"subject": subject, "text": f"{subject}\n{body}"}))
        status = getattr(answer, "status_code", 200)
        return None if status < 400 else f"the notice was not delivered: {block} was answered with {status}"
    except Exception as error:  # whatever a block of any kind raises; its text may hold the address
        return f"the notice was not delivered: the block {block} failed with {type(error).__name__}"


def notify_promotion(block: str | None, night: Night) -> str | None:
    """Send a notice if a night has promoted a policy; returns as `notify`."""
    if not night.promoted:
        return None
    return notify(block, f"trajnote {night.deployment}: {night.policy_id} is in force", "\n".join(night.verdicts))


def notify_warnings(block: str | None, night: Night) -> str | None:
    """Send a notice of what a night warns of, if there is anything; returns as `notify`."""
    if not night.warnings:
        return None
    return notify(block, f"trajnote {night.deployment} warns", "\n".join(night.warnings))


def notify_failure(block: str | None, deployment: str, error: Exception) -> str | None:
    """Send a notice of a failure; returns as `notify`."""
    return notify(block, f"trajnote {deployment} failed", f"{error}" or type(error).__name__)


def _wait(value: Any) -> Any:
    return run_coro_as_sync(value) if inspect.iscoroutine(value) else value


STORE = Path("trajnote-store")


class PipelineConfig(Frozen):
    """One pass to a judged refinement, from an environment and a policy or from a dataset that is there."""

    store: Path = Field(default=STORE, description="folder of the store")
    collect: CollectConfig | None = Field(default=None, description="what to collect")
    dataset_id: str | None = Field(default=None, description="the dataset, where nothing is to be collected")
    label: LabelConfig
    improve: ImproveConfig = Field(default_factory=ImproveConfig)

    @model_validator(mode="after")
    def _one_origin(self) -> PipelineConfig:
        if (self.collect is None) == (self.dataset_id is None):
            raise BadInput("A pipeline either collects a dataset or names one.")
        return self


@task(name="collect", persist_result=False)
def collect_task(store: Path, config: CollectConfig, card: str | None = None) -> str:
    """Collect a dataset under its card's names; returns its id."""
    opened = Store.create(store)
    dataset_id = gather(opened, config, card=card, report=listener()).dataset_id
    publish(f"collect-{dataset_id}", summarise_dataset(opened, dataset_id))
    return dataset_id


@task(name="label", persist_result=False)
def label_task(store: Path, dataset_id: str, config: LabelConfig) -> str:
    """Annotate a dataset; returns the id of the run."""
    summary = label_some(Store.open(store), dataset_id, config, listener())
    publish(f"label-{dataset_id}", summarise_labels(summary))
    return summary.run_id


@task(name="improve", persist_result=False)
def improve_task(store: Path, dataset_id: str, run_ids: list[str], config: ImproveConfig) -> Outcome:
    """Refine and judge."""
    rounds = improve_and_relabel(Store.open(store), dataset_id, config, run_ids=run_ids, report=listener())
    outcome = rounds.best.outcome
    publish(f"improve-{dataset_id}", summarise_outcome(outcome))
    return outcome


@flow(name="collect", persist_result=False)
@fail_with_message
def collect_flow(config: CollectConfig, store: Path = STORE, card: str | None = None) -> str:
    """Collect a dataset under its card's names; returns its id."""
    return collect_task(store, config, card)


@flow(name="label", persist_result=False)
@fail_with_message
def label_flow(dataset_id: str, config: LabelConfig, store: Path = STORE) -> str:
    """Annotate a dataset; returns the id of the run."""
    return label_task(store, dataset_id, config)


@flow(name="improve", persist_result=False)
@fail_with_message
def improve_flow(dataset_id: str, run_ids: list[str], config: ImproveConfig, store: Path = STORE) -> dict[str, Any]:
    """Refine and judge; returns the outcome as plain values."""
    return show_comparison(improve_task(store, dataset_id, run_ids, config)).values


@flow(name="pipeline", persist_result=False)
@fail_with_message
def pipeline_flow(config: PipelineConfig) -> Outcome:
    """Collect, label, improve."""
    dataset_id = config.dataset_id or ""
    if config.collect is not None:
        dataset_id = collect_task(config.store, config.collect, config.label.card)
    run_id = label_task(config.store, dataset_id, config.label)
    return improve_task(config.store, dataset_id, [run_id], config.improve)


@flow(name="rounds", persist_result=False)
def rounds_flow(config: RoundsConfig) -> Series:
    """The pipeline again and again, each time with the policy that is in force, while that gains something."""
    return run_rounds(config, Work(collect_task, label_task, improve_task))


SKIPPED = "Skipped"


@flow(name="nightly", persist_result=False)
@fail_with_message
def nightly_flow(deployment: str | None = None, settings: Path = SETTINGS, store: Path | None = None) -> dict[str, Any]:
    """Run a deployment of `trajnote.toml` once; while it runs already, this ends at once in the state `Skipped`."""
    name, config = read_deployment(deployment, settings, store)
    try:
        night = run_and_notify(name, config, listener())
    except AlreadyRunning as error:
        return Completed(name=SKIPPED, message=str(error))  # pyright: ignore[reportReturnType] -- Prefect takes states
    for warning in night.warnings:
        get_run_logger().warning("%s", warning)
    publish(f"nightly-{name}", summarise_night(night))
    return as_plain(night)


def run_and_notify(name: str, config: DeploymentConfig, report: Report) -> Night:
    """Run a night, and send notices of a promotion, warnings or a failure; the failure is raised again."""
    try:
        night = run_night(Store.create(config.store), name, config, report)
    except AlreadyRunning:
        raise
    except Exception as error:
        undelivered = notify_failure(config.notify, name, error)
        if undelivered and isinstance(error, TrajnoteError):
            error.hint = f"{error.hint} ({undelivered})".strip()
        raise
    undelivered = [notify_promotion(config.notify, night), notify_warnings(config.notify, night)]
    night.notes = tuple(dict.fromkeys([*night.notes, *filter(None, undelivered)]))
    return night


def make_deployments(settings: Path = SETTINGS, store: Path | None = None) -> list[RunnerDeployment]:
    """The deployments of a file, each allowed to run once at a time; all in one store if it is named.

    Raises:
        BadInput: if the file or a schedule is wrong.
    """
    known = read_settings(settings, store).deployments
    where = {"settings": str(settings.resolve()), **({"store": str(store.absolute())} if store else {})}
    return [_deployment(name, config, where) for name, config in known.items()]


def serve_deployments(settings: Path = SETTINGS, store: Path | None = None) -> None:
    """Run the deployments of a file on time, until interrupted.

    Raises:
        BadInput: as `make_deployments`.
    """
    serve(*make_deployments(settings, store), print_starting_message=False)  # pyright: ignore[reportUnusedCoroutine]


def _deployment(name: str, config: DeploymentConfig, where: Mapping[str, str]) -> RunnerDeployment:
    one_at_a_time = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    return RunnerDeployment.from_flow(
        nightly_flow,
        name,
        schedules=_schedules(name, config),
        parameters={"deployment": name, **where},
        concurrency_limit=one_at_a_time,
        entrypoint_type=EntrypointType.MODULE_PATH,
        description=nightly_flow.description,
        paused=False,
    )


def _schedules(name: str, config: DeploymentConfig) -> list[Schedule]:
    """When a deployment runs; never by itself without a schedule."""
    try:
        if config.cron is not None:
            CronSchedule(cron=config.cron)  # it checks the line, as the server would later
            return [Cron(config.cron, timezone=config.timezone)]
        if config.interval_s is not None:
            return [Interval(config.interval_s, timezone=config.timezone)]
    except ValueError as error:
        raise BadInput(
            f"The schedule of {name} cannot be used: cron is {config.cron!r}, interval_s {config.interval_s!r}.",
            "A cron line has five fields, for example `0 2 * * *`; interval_s is a number of seconds.",
        ) from error
    return []
