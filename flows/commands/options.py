"""Options that several commands share, so that they are spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

StoreOption = Annotated[
    Path, typer.Option("--store", envvar="TRAJNOTE_STORE", help="Folder of the store.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="Dataset id or a unique beginning of it; default: the newest one.")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one per core.")]
ProviderOption = Annotated[
    Literal["anthropic", "batch", "file", "recorded"], typer.Option("--provider", help="Who answers.")
]
ActingOption = Annotated[
    Literal["greedy", "sampled"],
    typer.Option("--mode", help="The likeliest action, or one drawn from the distribution."),
]
EnvKwargsOption = Annotated[str | None, typer.Option("--env-kwargs", help="Arguments of gymnasium.make, as JSON.")]
TrustOption = Annotated[
    str | None,
    typer.Option("--env", help="The dataset's environment, where it came with the data and you trust its module."),
]
DEFAULT_STORE = Path("trajnote-store")
