"""The nightly flow, and serving it: Prefect says when, `night.py` does the work, the store keeps what came of it.

The flow reads `trajnote.toml` when it runs, so that a change of it needs no new deployment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Interval, Schedule
from prefect.states import Completed
from prefect.types.entrypoint import EntrypointType

from storage.errors import BadInput, TrajnoteError
from storage.policies import AlreadyRunning
from storage.store import Store

from ..runtime import Report, listener
from .artifacts import (
    fail_with_message,
    log_warnings,
    notify_failure,
    notify_promotion,
    notify_warnings,
    publish,
    summarise_night,
)
from .night import Night, as_plain, run_night
from .settings import SETTINGS, DeploymentConfig, read_deployment, read_settings

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
