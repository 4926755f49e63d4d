"""How a command speaks: people read tables, programs read one JSON line, progress goes to standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..progress import Report


@contextmanager
def progress_bars() -> Generator[Report]:
    """Progress bars on standard error, one per description, kept apart from what the command prints."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        known: dict[str, Any] = {}

        def report(description: str, done: int, total: int | None) -> None:
            if description not in known:
                known[description] = bars.add_task(description, total=total)
            bars.update(known[description], completed=done, total=total)

        yield report


def print_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as one table; nothing in them is read as markup, for they may come from a language model."""
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(format_cell(value)) for value in row.values()))
    Console().print(table)


def format_cell(value: object) -> str:
    """One value as a person reads it: numbers to four significant digits, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return str(value)


def print_lines(*lines: str) -> None:
    """Print plain lines, unwrapped and without markup."""
    for line in lines:
        Console(soft_wrap=True).print(Text(line))


def print_json(result: Mapping[str, object]) -> None:
    """Print one JSON object on one line of standard output."""
    Console(soft_wrap=True, highlight=False).print(Text(json.dumps(result, default=str)), soft_wrap=True)
