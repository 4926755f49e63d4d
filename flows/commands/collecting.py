"""`collect`, `import`, `export` and `replay`: how trajectories get in and out, and the proof that they are exact."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from storage import importing, remote

from .. import datasets, simulation
from .options import (
    DEFAULT_STORE,
    CollectOptions,
    DatasetNameOption,
    DatasetOption,
    EnvKwargsOption,
    JsonOption,
    NewCardOption,
    RunsOption,
    StoreOption,
    TrustOption,
    open_dataset,
    open_store,
    taking,
)
from .output import format_of, print_result, progress_bars

_ExportFormat = Literal["parquet", "csv", "minari", "d3rlpy"]
_EXPORT_ENDINGS: Mapping[str, _ExportFormat] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".h5": "d3rlpy",
    ".hdf5": "d3rlpy",
}


@taking(config=CollectOptions)
def collect(
    config: datasets.CollectConfig,
    store: StoreOption = DEFAULT_STORE,
    card: NewCardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play episodes of a policy and store them, replayable bit for bit; an interrupted run resumes where it stopped."""
    from storage.store import Store

    with Store.create_for(store) as opened, progress_bars() as report, redirect_stdout(sys.stderr):
        made = datasets.gather(opened, config, card=card, report=report)
    values = {"dataset_id": made.dataset_id, "episodes": made.episodes, "steps": made.steps}
    print_result(as_json, values, f"{made.dataset_id}: {made.episodes} episodes, {made.steps} steps in {store}")


def import_(
    path: Annotated[
        str,
        typer.Argument(
            help="Parquet, CSV, JSON lines, HDF5 of D4RL or d3rlpy, or the folder of a dataset; or its URL."
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetNameOption = None,
    env: Annotated[str | None, typer.Option("--env", help="Gymnasium id of the environment, if there is one.")] = None,
    env_kwargs: EnvKwargsOption = None,
    card: NewCardOption = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="Meaning of columns, such as observation=x,y or reward=r; repeatable."),
    ] = None,
    actions: Annotated[
        Literal["discrete", "continuous"] | None,
        typer.Option("--actions", help="Kind of actions, if the file does not say; default: by their type."),
    ] = None,
    first_action: Annotated[
        int | None, typer.Option("--first-action", help="Smallest discrete action, if not 0.")
    ] = None,
    autoreset: Annotated[
        Literal["drop", "keep"] | None,
        typer.Option("--autoreset", help="Drop or keep rows in which a vector environment reset itself."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import steps that were recorded elsewhere; everything is checked before anything is written."""
    from storage.store import Store

    kwargs, columns = simulation.parse_env_kwargs(env_kwargs), importing.parse_columns(column or [])
    report = importing.ImportReport()
    with remote.local_copy(path) as here, Store.create_for(store) as opened:
        made = datasets.take_in(
            opened,
            here,
            dataset_id=dataset,
            env_id=simulation.Named.of(env),
            env_kwargs=kwargs,
            card=card,
            columns=columns or None,
            choices=importing.Choices(actions=actions, first_action=first_action, autoreset=autoreset),
            report=report,
        )
    lost = report.sentences()
    numbers = {"dataset_id": made.dataset_id, "episodes": made.episodes, "steps": made.steps}
    line = f"{made.dataset_id}: {made.episodes} episodes, {made.steps} steps in {store}"
    print_result(as_json, {**numbers, "lost": lost, "report": report.as_json()}, line, *lost)


def export(
    path: Annotated[Path, typer.Argument(help="File to write, or, for Minari, a new folder.")],
    format_: Annotated[
        _ExportFormat | None,
        typer.Option(
            "--format",
            help="d3rlpy (.h5) is for ReplayBuffer.load; minari needs its extra; default: by the file's name.",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    with_labels: Annotated[
        bool, typer.Option("--with-labels", help="Include the annotations, joined to their steps.")
    ] = False,
    run: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a dataset for other programs, with its labels if wanted; `import` restores it bit for bit."""
    form: _ExportFormat = format_of(path, _EXPORT_ENDINGS, format_)
    opened = open_store(store)
    done = datasets.export_dataset(opened, path, form, dataset=dataset, with_labels=with_labels, runs=run)
    about = done.manifest
    numbers = {"episodes": about.episodes, "steps": about.steps, "labels": done.labels}
    print_result(
        as_json,
        {"dataset_id": about.dataset_id, "path": str(path), "format": form, **numbers, "notes": done.notes},
        f"{path}: {about.episodes} episodes, {about.steps} steps, {done.labels} labels of {about.dataset_id}",
        *done.notes,
    )


def replay(
    episode: Annotated[int, typer.Option("--episode", min=0, help="Episode of the dataset.")],
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    env: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play a stored episode again from its seed and actions, and check that every bit is the same."""
    result = simulation.replay_episode(*open_dataset(store, dataset), episode, simulation.Named.of(env))
    print_result(as_json, asdict(result), f"episode {episode} of {result.dataset_id}: {result.detail}")
    if not result.exact:
        raise typer.Exit(1)
