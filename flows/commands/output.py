"""How a command speaks: people read tables, programs read one JSON line, progress goes to standard error.

What it says is made elsewhere; nothing here knows a dataset or a policy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from storage.disk import visible
from storage.errors import BadInput

from ..runtime import Report

Form = TypeVar("Form", bound=str)
_UNBROKEN = 28  # characters; a column whose cells are no longer than this is never broken over lines
_PROSE = 24  # characters that a column of longer cells needs at least, to be read as prose
_GAP = 2  # spaces between columns


def format_of(
    path: Path | None, endings: Mapping[str, Form], named: Form | None = None, default: Form | None = None
) -> Form:
    """The format of a file that is to be written: the one that its name ends in, which is the one that was named.

    Args:
        path: the file; None where there is none.
        endings: format of each ending that a name may have.
        named: the format that the user named; it alone decides where the ending is of no format.
        default: where nothing decides.

    Raises:
        BadInput: if name and format contradict each other, or neither says anything.
    """
    meant = endings.get(path.suffix.lower()) if path else None
    if named is not None and meant is not None and meant != named:
        fitting = " or ".join(ending for ending, form in endings.items() if form == named)
        raise BadInput(
            f"{path} has the ending of {meant}, but --format is {named}.",
            f"Leave --format out, or name a file that ends in {fitting}." if fitting else "Name another file.",
        )
    form = named or meant or (None if path and path.suffix else default)
    if form is None:
        raise BadInput(f"The name {path} does not say which format to use.", f"Endings that do: {', '.join(endings)}.")
    return form


@contextmanager
def progress_bars() -> Generator[Report]:
    """Progress bars on standard error, one per description, kept apart from what the command prints.

    Nothing is shown before the first report, so that a command that is refused says one line only.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=Console(stderr=True))
    known: dict[str, Any] = {}

    def report(description: str, done: int, total: int | None) -> None:
        if not known:
            bars.start()
        if description not in known:
            known[description] = bars.add_task(description, total=total)
        bars.update(known[description], completed=done, total=total)

    try:
        yield report
    finally:
        if known:
            bars.stop()


def print_table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as one table, or one under the other where the terminal is too narrow for their columns.

    Short cells are never broken. Nothing in them is read as markup or steers the terminal, for they may come from a
    language model.
    """
    console = Console()
    print_lines(title)
    if not rows:
        return
    cells = {name: [visible(format_cell(row[name])) for row in rows] for name in rows[0]}
    widths = {name: max(len(text) for text in [visible(name), *texts]) for name, texts in cells.items()}
    needed = sum((width if width <= _UNBROKEN else _PROSE) + _GAP for width in widths.values()) - _GAP
    if needed > console.width:
        _print_records(console, rows)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for name, width in widths.items():
        short, number = width <= _UNBROKEN, any(_is_number(row[name]) for row in rows)
        table.add_column(Text(visible(name)), overflow="fold", no_wrap=short, justify="right" if number else "left")
    for texts in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, texts))
    console.print(table)
    print_lines("")


def _print_records(console: Console, rows: Sequence[Mapping[str, object]]) -> None:
    """One line per value; a long value goes on under its beginning."""
    longest = max(len(visible(name)) for name in rows[0])
    for number, row in enumerate(rows, 1):
        console.print(Text(f"{number}", style="bold"))
        values = Table.grid(padding=(0, _GAP))
        values.add_column(min_width=longest, no_wrap=True)
        values.add_column(overflow="fold")
        for name, value in row.items():
            values.add_row(Text(visible(name)), Text(visible(format_cell(value))))
        console.print(values)


def format_cell(value: object) -> str:
    """One value as a person reads it: numbers to four significant digits, times to the second, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_format_item, cast(Sequence[object], value)))
    if isinstance(value, Mapping):
        return ", ".join(map(_format_item, cast(Mapping[object, object], value).items()))
    return str(value)


def _format_item(value: object) -> str:
    """One item of a list; the pairs of a map are `key: value`."""
    if isinstance(value, tuple) and len(value) == 2:
        return f"{format_cell(value[0])}: {format_cell(value[1])}"
    return f"[{format_cell(value)}]" if isinstance(value, list | tuple) else format_cell(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def print_lines(*lines: str) -> None:
    """Print plain lines: no markup, and nothing that steers a terminal.

    A terminal gets them broken between words, a file or a pipe whole.
    """
    console = Console(highlight=False)
    for line in lines:
        console.print(Text(visible(line)), soft_wrap=not console.is_terminal)


def print_result(as_json: bool, values: Mapping[str, object], *lines: str) -> None:
    """Print what a command has come to: values for programs, lines for people."""
    if as_json:
        print_json(values)
    else:
        print_lines(*lines)


def print_rows(
    as_json: bool, values: Mapping[str, object], title: str, rows: Sequence[Mapping[str, object]], *lines: str
) -> None:
    """Print what a command has come to: values for programs, a table and lines under it for people."""
    if as_json:
        print_json(values)
    else:
        print_table(title, rows)
        print_lines(*lines)


def print_json(result: Mapping[str, object]) -> None:
    """Print one JSON object on one line of standard output."""
    Console(soft_wrap=True, highlight=False).print(Text(json.dumps(strict(result), default=_plain)), soft_wrap=True)


def strict(value: object) -> object:
    """The same value for JSON, which has no NaN and no infinity: they are the texts "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in cast(Sequence[object], value)]
    return value


def _plain(value: object) -> object:
    """What JSON has no form for: decimals become numbers, everything else text."""
    return float(value) if isinstance(value, Decimal) else str(value)
