"""`report` and `watch`: looking at what came of it, and at what is under way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_STORE, JsonOption, StoreOption, TrustOption
from .output import print_json, print_lines, progress_bars


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(report)
    app.command()(watch)


def report(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[REFINEMENT|COMPARISON|RUN|DATASET]",
            help="Id of what it is about, or a unique beginning; default: the newest comparison.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[Path | None, typer.Option("--out", help="File; default: reports/ID.html of the store.")] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Rendered steps at most; 0 for none.")] = 1_600,
    env: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file that shows what was done: no network, no server, it opens from the disk.

    Needs the extra `plots`. Pictures of steps are rendered in an exact replay, where the environment can be rendered.
    """
    from storage.store import Store

    from ..reporting import write_report
    from ..simulation import Named

    with progress_bars() as bars:
        written = write_report(
            Store.open(store), subject, out=out, pictures=pictures, env_id=Named.of(env), report=bars
        )
    if as_json:
        print_json(vars(written))
    else:
        about = f"{written.labels} labels, {written.episodes} episodes, {written.pictures} pictures"
        print_lines(f"{about}, {written.bytes / 1e6:.1f} MB", str(written.path))


def watch(
    store: StoreOption = DEFAULT_STORE,
    once: Annotated[bool, typer.Option("--once", help="Look once, print, and stop.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    budget: Annotated[float | None, typer.Option(min=0, help="Cap in dollars to show the spending against.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is under way: runs, requests, batches, dollars, labels per minute, candidates, the gate.

    The catalog is read for a moment at each look; whoever works in the store is not kept waiting. Ctrl-C ends it.
    """
    from rich.console import Console

    from storage.store import Store

    from ..reporting import draw, look
    from ..reporting import watch as keep_watching

    opened = Store.open(store)
    if as_json:
        standing = look(opened)
        print_json(vars(standing) | {"in_flight_usd": standing.in_flight_usd})
    elif once:
        Console().print(draw(look(opened), budget))
    else:
        try:
            keep_watching(opened, Console(), every_s=every, budget_usd=budget)
        except KeyboardInterrupt:
            return
