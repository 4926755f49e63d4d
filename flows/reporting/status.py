"""`trajnote watch`: the status of a store, looked up and drawn again and again in a terminal until interrupted.

The catalog is open only while the questions are asked, so that other commands are not blocked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from refine.evaluation import Interval
from storage.catalog import Catalog
from storage.disk import visible
from storage.errors import CatalogLocked
from storage.policies import find_training
from storage.queries import Row, ask
from storage.store import Store

RATE_MINUTES = 5
"""Window for labels per minute."""
_RUNS = 8  # shown at most
_PATIENCE_S = 2.0  # a missed look costs little: the next one comes soon
_NUMBERS = ("requests", "answered", "open", "sent", "failed", "labels", "$", "policies")
_WIDE = ("snapshots", "model", "environment")  # these may break into lines


@dataclass(frozen=True)
class StoreStatus:
    """The status of a store at one moment."""

    at: datetime
    datasets: int
    spent_usd: float  # over all runs
    runs: Sequence[Row]  # unfinished ones first
    batches: Sequence[Row]  # in flight
    training: Row | None  # arms of a refinement under way: how many are trained, and of how many
    evaluations: Sequence[Row]  # since the last comparison: what a running refinement has played so far
    comparison: Row | None  # the newest
    arms: Sequence[Row]  # of it
    snapshots: Sequence[Row]  # of it: best selection return by arm and training step

    @property
    def in_flight_usd(self) -> float:
        """The most that batches in flight can cost, where prices are known."""
        return sum(row["worst_usd"] or 0.0 for row in self.batches)


def look(store: Store) -> StoreStatus:
    """Query the status.

    Raises:
        CatalogLocked: if another process writes for longer than two seconds; the next look may succeed.
    """
    with Catalog(store.catalog.path, wait_s=_PATIENCE_S).read() as con:
        comparison = next(iter(ask(con, "status/comparison")), None)
        judged = comparison["comparison_id"] if comparison else None
        return StoreStatus(
            at=datetime.now(UTC),
            **ask(con, "status/totals")[0],
            runs=ask(con, "status/runs", minutes=RATE_MINUTES, limit=_RUNS),
            batches=ask(con, "status/batches"),
            training=find_training(store),
            evaluations=ask(con, "status/evaluations"),
            comparison=comparison,
            arms=ask(con, "status/arms", comparison=judged),
            snapshots=ask(con, "status/snapshots", comparison=judged),
        )


def watch(store: Store, console: Console, *, every_s: float = 2.0, budget_usd: float | None = None) -> None:
    """Draw the status every few seconds, until interrupted.

    Args:
        store: the store.
        console: where to draw.
        every_s: seconds between two looks.
        budget_usd: the cap to show dollars against.
    """
    shown = draw(look(store), budget_usd)
    with Live(shown, console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            try:
                shown = draw(look(store), budget_usd)
                live.update(shown, refresh=True)
            except CatalogLocked:
                busy = Text("another process is writing the catalog; this is the last status", style="dim")
                live.update(Group(shown, busy), refresh=True)


def draw(status: StoreStatus, budget_usd: float | None = None) -> RenderableType:
    """The status as tables and lines; names are untrusted, so nothing in them is read as markup."""
    parts: list[RenderableType] = [_head(status, budget_usd)]
    if status.runs:
        parts.append(_table("annotation runs", [_run(row) for row in status.runs]))
        parts += [
            Text(visible(f"{row['run_id']} failed: {row['error'] or 'no reason was recorded'}"), style="red")
            for row in status.runs
            if row["error"] or row["state"] == "failed"
        ]
    if status.batches:
        parts.append(_table("batches in flight", [_batch(row) for row in status.batches]))
    if status.training:
        done, total, seconds = (status.training[name] for name in ("done", "total", "seconds"))
        parts.append(Text(f"refinement in progress: {done} of {total} arms trained, the last {_age(seconds)} ago"))
    if status.evaluations:
        parts.append(
            _table("refinement in progress: episodes played", [_evaluation(row) for row in status.evaluations])
        )
    if status.comparison is not None:
        parts += _gate(status, status.comparison)
    if len(parts) == 1:
        parts.append(Text("Nothing has been annotated or refined here yet."))
    return Group(*parts)


def _head(status: StoreStatus, budget_usd: float | None) -> Text:
    spent, flying = status.spent_usd, status.in_flight_usd
    line = Text(f"{status.at:%H:%M:%S} UTC   {status.datasets} datasets   spent ${spent:.2f}", style="bold")
    if flying:
        line.append(f", at most ${flying:.2f} in flight")
    if budget_usd is not None:
        used = (spent + flying) / budget_usd if budget_usd else 1.0
        line.append(f", cap ${budget_usd:.2f} ({used:.0%})", style="bold red" if used >= 1 else "bold")
    rate = sum(row["labels_per_minute"] for row in status.runs)
    line.append(f"   {rate:.1f} labels/min (last {RATE_MINUTES} min)")
    return line


def _run(row: Row) -> dict[str, str]:
    return {
        "run": row["run_id"],
        "state": row["state"],
        "model": row["model"] or "",
        "answered": f"{row['done'] or 0}/{row['requests']}",
        "open": str(row["pending"] or 0),
        "sent": str(row["in_batch"] or 0),
        "failed": str(row["failed"] or 0),
        "labels": str(row["labels"]),
        "$": f"{row['cost_usd']:.2f}",
    }


def _batch(row: Row) -> dict[str, str]:
    worst = row["worst_usd"]
    return {
        "batch": row["batch_id"],
        "run": row["run_id"] or "",
        "state": row["state"],
        "requests": str(row["requests"]),
        "at most": "" if worst is None else f"${worst:.2f}",
        "age": _age(row["seconds"]),
    }


def _evaluation(row: Row) -> dict[str, str]:
    purposes = {"select": "choose a candidate", "accept": "accept or reject", "report": "report"}
    return {
        "purpose": f"{purposes.get(row['purpose'], row['purpose'])}, {row['mode']}",
        "environment": row["env_id"] or "",
        "policies": str(row["policies"]),
        "episodes": str(row["episodes"]),
        "best return": f"{row['best']:.4g}",
        "last": f"{_age(row['seconds'])} ago",
    }


def _gate(status: StoreStatus, comparison: Row) -> list[RenderableType]:
    better, credit = "yes" if comparison["better"] else "not shown", comparison["credit"]
    arms = [
        {
            "arm": row["arm"].replace("_", " "),
            "labels": str(row["labels"]),
            "gate": f"{row['accepted']} of {row['draws']}" if row["draws"] else "",
            "return [95%]": str(Interval(row["return_"], row["low"], row["high"], row["episodes"])),
            "snapshots": _snapshots(status.snapshots, row["arm"]),
        }
        for row in status.arms
    ]
    title = f"last comparison {comparison['comparison_id']}, {comparison['env_id']}"
    verdicts = f"better than the baseline: {better}; the labels did it: {credit}"
    return [_table(title, arms), Text(visible(f"gate: {comparison['reason']}")), Text(verdicts)]


def _snapshots(snapshots: Sequence[Row], arm: str) -> str:
    """Best selection return by training step, where it was played; the tested candidate's is in brackets."""
    own = [row for row in snapshots if row["arm"] == arm]
    texts = [f"{row['step']}" if row["best"] is None else f"{row['step']}: {row['best']:.0f}" for row in own]
    return "  ".join(f"[{text}]" if row["chosen"] else text for text, row in zip(texts, own, strict=True))


def _table(title: str, rows: Sequence[dict[str, str]]) -> Table:
    table = Table(
        title=Text(visible(title)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in rows[0] if rows else ():
        right, wide = name in _NUMBERS, name in _WIDE
        table.add_column(name, justify="right" if right else "left", no_wrap=not wide, overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(value)) for value in row.values()))
    return table


def _age(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
