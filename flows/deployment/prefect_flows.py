"""The Prefect flows: collect, label, improve, their pipeline, rounds of it, and the nightly one with its schedule.

Each calls a plain function. Each task leaves artifacts that say what came of it; a refusal is a failed state in its own
words. What a run did is in the store; Prefect says when it ran. A run killed half-way is finished by the next one. The
nightly flow reads `trajnote.toml` when it runs, so that a change of it needs no new deployment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, serve, task
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Interval, Schedule
from prefect.states import Completed
from prefect.types.entrypoint import EntrypointType
from pydantic import Field, model_validator

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
from .artifacts import (
    fail_with_message,
    log_warnings,
    notify_failure,
    notify_promotion,
    notify_warnings,
    publish,
    summarise_dataset,
    summarise_labels,
    summarise_night,
    summarise_outcome,
)
from .night import Night, as_plain, run_night
from .settings import SETTINGS, DeploymentConfig, read_deployment, read_settings

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
    log_warnings(night.warnings)
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
