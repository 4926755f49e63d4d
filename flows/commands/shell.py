"""The shell of `trajnote sql`: questions one after the other, with a history, completion, and what the tables mean."""

from __future__ import annotations

import readline
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from storage.catalog import described_tables
from storage.disk import visible
from storage.errors import TrajnoteError, did_you_mean
from storage.queries import ask
from storage.store import Store

from ..simulation import state_dir
from .output import print_lines, print_table

_PROMPT, _MORE = "sql> ", "...> "
_FIRST = 5
"""Tables that matter first."""
_LENGTH = 1_000  # lines of history
_KEYWORDS = (
    *("SELECT", "FROM", "WHERE", "GROUP BY", "ORDER BY", "HAVING", "LIMIT", "JOIN", "LEFT JOIN", "USING", "DISTINCT"),
    *("WITH", "AS", "AND", "OR", "NOT", "IS NULL", "DESCRIBE", "SUMMARIZE", "count", "avg", "min", "max", "sum"),
)
_HELP = (
    "SELECT ... ;           run a query; it ends with a semicolon and may have several lines",
    ".tables                list the tables and views, with one line on each",
    ".columns TABLE         list the columns of one, with one line on each",
    ".help, .quit           show this; leave the shell (also Ctrl-D)",
)


def run_shell(store: Store, answer: Callable[[str], None]) -> None:
    """Read and answer questions until the input ends; what goes wrong with one is a line, and the next may come.

    Args:
        store: what is asked.
        answer: prints the answer to one statement.
    """
    print_lines(f"{store.root}: read only. `.tables` lists the tables, `.help` the other commands.")
    history = _prepare(store)
    while (said := _read_statement()) is not None:
        with suppress(OSError):
            readline.write_history_file(history)
        if said in (".quit", ".exit"):
            return
        try:
            _obey(said, answer)
        except TrajnoteError as error:
            Console(stderr=True, soft_wrap=True).print(Text(visible(f"error: {error}"), style="red"))
        except KeyboardInterrupt:
            print_lines("", "stopped")


def _prepare(store: Store) -> Path:
    """Set completion up, and read the history of earlier shells; returns its file."""
    words = sorted({*_KEYWORDS, *_names(store), ".tables", ".columns", ".help", ".quit"})

    def complete(start: str, number: int) -> str | None:
        fitting = [word for word in words if word.lower().startswith(start.lower())]
        return fitting[number] if number < len(fitting) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n,();=<>")
    readline.parse_and_bind("tab: complete")
    history = state_dir() / "sql_history"
    with suppress(OSError):
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.read_history_file(history)
    readline.set_history_length(_LENGTH)
    return history


def _names(store: Store) -> set[str]:
    """All tables and columns, and the components of the observations."""
    with store.catalog.read() as con:
        components = {row["name"] for row in ask(con, "status/components")}
    return components | {name for each in described_tables() for name in (each.name, *each.columns)}


def _read_statement() -> str | None:
    """A statement without its semicolon, or a command with a dot; None at the end. Ctrl-C forgets what was begun."""
    lines: list[str] = []
    while True:
        try:
            line = input(_MORE if lines else _PROMPT)
        except EOFError:
            print_lines("")
            return None
        except KeyboardInterrupt:
            print_lines("")
            lines.clear()
            continue
        lines.append(line)
        whole = "\n".join(lines).strip()
        if whole.startswith(".") or whole.endswith(";"):
            return whole.rstrip("; \n")
        if not whole:
            lines.clear()


def _obey(said: str, answer: Callable[[str], None]) -> None:
    word, _, rest = said.partition(" ")
    if word == ".tables":
        print_tables()
    elif word in (".columns", ".schema"):
        _print_columns(rest.strip())
    elif said.startswith("."):
        print_lines(*(() if word == ".help" else (f"There is no command {word}.",)), *_HELP)
    elif said:
        answer(said)


def print_tables() -> None:
    """Print all tables and views with one line on each, those that matter first at the beginning."""
    rows = [{"name": each.name, "what it is": each.about} for each in described_tables()]
    print_table("start with these", rows[:_FIRST])
    print_table("all others", rows[_FIRST:])


def _print_columns(name: str) -> None:
    tables = {each.name: each for each in described_tables()}
    if name not in tables:
        print_lines(f"There is no table {name!r}.{did_you_mean(name, tables)} `.tables` lists all.")
        return
    print_lines(tables[name].about)
    print_table(name, [{"column": column, "what it is": words} for column, words in tables[name].columns.items()])
