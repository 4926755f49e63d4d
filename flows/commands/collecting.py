"""`collect`, `import`, `export` and `replay`: how trajectories get in and out, and the proof that they are exact."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import (
    DEFAULT_STORE,
    DatasetNameOption,
    DatasetOption,
    EnvKwargsOption,
    JsonOption,
    NewCardOption,
    RunsOption,
    StoreOption,
    TrustOption,
    collect_options,
    taking,
)
from .output import format_of, print_json, print_lines, progress_bars

if TYPE_CHECKING:
    from ..datasets import CollectConfig

_ExportFormat = Literal["parquet", "csv", "minari", "d3rlpy"]
_EXPORT_ENDINGS: Mapping[str, _ExportFormat] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".h5": "d3rlpy",
    ".hdf5": "d3rlpy",
}


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(collect)
    app.command("import")(import_rows)
    app.command()(export)
    app.command()(replay)


@taking(config=collect_options)
def collect(
    config: CollectConfig,
    store: StoreOption = DEFAULT_STORE,
    card: NewCardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play episodes of a policy and keep them, bit for bit and replayable; interrupted runs go on where they were."""
    from storage.store import Store

    from ..datasets import gather

    with Store.create_for(store) as opened, progress_bars() as report, redirect_stdout(sys.stderr):
        manifest = gather(opened, config, card=card, report=report)
    if as_json:
        print_json({"dataset_id": manifest.dataset_id, "episodes": manifest.episodes, "steps": manifest.steps})
    else:
        print_lines(f"{manifest.dataset_id}: {manifest.episodes} episodes, {manifest.steps} steps in {store}")


def import_rows(
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
        typer.Option("--column", help="What columns of a plain file mean: observation=x,y or reward=r; repeatable."),
    ] = None,
    actions: Annotated[
        Literal["discrete", "continuous"] | None,
        typer.Option("--actions", help="What actions are where the file does not say; default: by their type."),
    ] = None,
    first_action: Annotated[
        int | None, typer.Option("--first-action", help="Smallest of the discrete actions, if it is not 0.")
    ] = None,
    autoreset: Annotated[
        Literal["drop", "keep"] | None,
        typer.Option("--autoreset", help="Leave out, or keep, rows in which a vector environment reset itself."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import steps that were recorded elsewhere; everything is checked before anything is written."""
    from storage.importing import Choices, ImportReport, parse_columns
    from storage.remote import local_copy
    from storage.store import Store

    from ..datasets import take_in
    from ..simulation import Named, parse_env_kwargs

    kwargs, columns, report = parse_env_kwargs(env_kwargs), parse_columns(column or []), ImportReport()
    with local_copy(path) as here, Store.create_for(store) as opened:
        manifest = take_in(
            opened,
            here,
            dataset_id=dataset,
            env_id=Named.of(env),
            env_kwargs=kwargs,
            card=card,
            columns=columns or None,
            choices=Choices(actions=actions, first_action=first_action, autoreset=autoreset),
            report=report,
        )
    said = report.sentences()
    if as_json:
        numbers = {"dataset_id": manifest.dataset_id, "episodes": manifest.episodes, "steps": manifest.steps}
        print_json({**numbers, "lost": said, "report": report.as_json()})
    else:
        print_lines(f"{manifest.dataset_id}: {manifest.episodes} episodes, {manifest.steps} steps in {store}", *said)


def export(
    path: Annotated[Path, typer.Argument(help="File to write, or, for Minari, a new folder.")],
    format_: Annotated[
        _ExportFormat | None,
        typer.Option(
            "--format",
            help="d3rlpy (.h5) is what ReplayBuffer.load reads; minari needs its extra; default: by the file's name.",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    with_labels: Annotated[
        bool, typer.Option("--with-labels", help="With the annotations, joined to their steps.")
    ] = False,
    run: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a dataset for other programs, with its labels if wanted; `import` gives it back bit for bit."""
    from storage.store import Store

    from ..datasets import export_dataset

    form: _ExportFormat = format_of(path, _EXPORT_ENDINGS, format_)
    done = export_dataset(Store.open(store), path, form, dataset=dataset, with_labels=with_labels, runs=run)
    told = done.manifest
    if as_json:
        numbers = {"episodes": told.episodes, "steps": told.steps, "labels": done.labels}
        print_json({"dataset_id": told.dataset_id, "path": str(path), "format": form, **numbers, "notes": done.notes})
    else:
        line = f"{path}: {told.episodes} episodes, {told.steps} steps, {done.labels} labels of {told.dataset_id}"
        print_lines(line, *done.notes)


def replay(
    episode: Annotated[int, typer.Option("--episode", min=0, help="Episode of the dataset.")],
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    env: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play a stored episode again from its seed and actions, and check that every bit is the same."""
    from dataclasses import asdict

    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..simulation import Named, replay_episode

    opened = Store.open(store)
    result = replay_episode(opened, resolve_dataset(opened, dataset), episode, Named.of(env))
    if as_json:
        print_json(asdict(result))
    else:
        print_lines(f"episode {episode} of {result.dataset_id}: {result.detail}")
    if not result.exact:
        raise typer.Exit(1)
