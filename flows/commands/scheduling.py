"""`init`, `nightly` and `serve`: what runs every night. Which policy it has put in force shows `policy current`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .. import deployment as deploying
from .. import runtime
from .options import JsonOption
from .output import print_json, print_lines, print_result, print_rows, print_table, progress_bars

SettingsOption = Annotated[Path, typer.Option("--settings", help="File of deployments.")]
StoreOverride = Annotated[
    Path | None,
    typer.Option("--store", envvar="TRAJNOTE_STORE", help="Folder of the store, instead of the one in the settings."),
]
NameArgument = Annotated[
    str | None, typer.Argument(help="Name of the deployment; may be left out if there is only one.")
]
DEFAULT_SETTINGS = Path("trajnote.toml")


def init(settings: SettingsOption = DEFAULT_SETTINGS, as_json: JsonOption = False) -> None:
    """Write a commented `trajnote.toml` to edit: deployments, where their rollouts come from, and when they run."""
    deploying.write_template(settings)
    print_result(as_json, {"path": str(settings)}, f"{settings}: edit it, then try it with `trajnote nightly`")


def nightly(
    deployment: NameArgument = None,
    settings: SettingsOption = DEFAULT_SETTINGS,
    store: StoreOverride = None,
    promote: Annotated[
        Literal["labels", "best"] | None,
        typer.Option("--promote", help="What may be put in force, instead of what the settings say."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a deployment once: import what is new, annotate, refine, and promote or keep the policy in force.

    It does what a served deployment does, without a schedule. It finishes a night that was killed, and does nothing
    twice.
    """
    from storage.store import Store

    name, config = deploying.read_deployment(deployment, settings, store)
    if promote is not None:
        improve = config.improve.model_copy(update={"promote": promote})
        config = config.model_copy(update={"improve": improve})
    with progress_bars() as bars:
        if config.notify is None:
            night = deploying.run_night(Store.create(config.store), name, config, bars)
        else:
            night = _run_with_notices(name, config, bars)
    if as_json:
        print_json(deploying.as_plain(night))
        return
    print_lines(*deploying.describe_night(night))
    if night.rows:
        print_table("arms", night.rows)


def _run_with_notices(name: str, config: deploying.DeploymentConfig, report: runtime.Report) -> deploying.Night:
    """Run a night beside a server of Prefect, which keeps the block that sends notices."""
    runtime.quieten_prefect()
    with runtime.served(runtime.start_server(needed=False)):
        return deploying.run_and_notify(name, config, report)


def serve(
    settings: SettingsOption = DEFAULT_SETTINGS, store: StoreOverride = None, as_json: JsonOption = False
) -> None:
    """Run the deployments of `trajnote.toml` on this machine, each at its scheduled time, until interrupted.

    It starts a Prefect server of its own, with its pages, unless PREFECT_API_URL names yours.
    """
    known = deploying.read_settings(settings, store).deployments
    runtime.quieten_prefect()
    deploying.make_deployments(settings, store)  # a wrong schedule is refused before a server is started
    rows = [
        {"deployment": name, "cron": config.cron, "interval_s": config.interval_s, "timezone": config.timezone}
        for name, config in known.items()
    ]
    server = runtime.start_server(schedules=True)
    with runtime.served(server):
        address = server.wait() if server else "the server that PREFECT_API_URL names"
        pages = address.removesuffix("/api") if server else None
        print_rows(
            as_json,
            {"server": address, "pages": pages, "deployments": rows},
            f"serving with {address}; Ctrl-C ends it",
            rows,
            f"runs, logs and artifacts: {pages or 'in the web interface of that server'}",
        )
        deploying.serve_deployments(settings, store)
