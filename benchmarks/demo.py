"""Where the seconds of `trajnote demo` go, and how long commands take that only ask.

    python benchmarks/demo.py

The demo runs once in a new store, in this process, as the command runs it; a listener notes when each piece of work
begins. The short commands are whole processes, `python -X importtime` is not used; beside them is a Python that does
nothing, which no command can undercut. Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

_STARTED = time.perf_counter()
_COMMANDS = {"--help": ["--help"], "sql, one sum over a view": ["sql", "SELECT count(*) FROM steps"]}


class Stopwatch:
    """A listener that notes when each piece of work was first told of; it ends where the next one begins."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}

    def __call__(self, description: str, done: int, total: int | None, /) -> None:
        """Called as work advances."""
        self.begun.setdefault(description, time.perf_counter())

    def table(self, started: float, ended: float) -> Table:
        """One row per piece of work, in order, with its share of the whole."""
        begun = {"start: imports, rollouts, Prefect's server": started, **self.begun}
        ends = [*list(begun.values())[1:], ended]
        table = Table("work", "seconds", "share")
        for (work, begin), end in zip(begun.items(), ends, strict=True):
            table.add_row(work, f"{end - begin:.1f}", f"{(end - begin) / (ended - started):.0%}")
        table.add_row("all", f"{ended - started:.1f}", "100%")
        return table


def run_demo_timed(folder: Path) -> Table:
    """The demo as `trajnote demo` runs it."""
    from flows.runtime.prefect_server import quieten_prefect, start_server

    quieten_prefect()
    server = start_server()
    from flows.demo import run_demo
    from flows.runtime.processes import listening

    watch = Stopwatch()
    with listening(watch):
        run_demo(folder, None, server)
    return watch.table(_STARTED, time.perf_counter())


def time_commands(store: Path, turns: int) -> Table:
    """Whole processes; the fastest of some turns."""
    contestants = {"python -c pass": [sys.executable, "-c", "pass"]}
    contestants |= {
        f"trajnote {name}": [sys.executable, "-m", "flows.cli", *words] for name, words in _COMMANDS.items()
    }
    table, first = Table("command", "seconds", "of a Python that does nothing"), 0.0
    for name, words in contestants.items():
        extra = [] if "sql" not in words else ["--store", str(store)]
        found: list[float] = []
        for _ in range(turns):
            started = time.perf_counter()
            subprocess.run([*words, *extra], check=True, stdout=subprocess.DEVNULL)
            found.append(time.perf_counter() - started)
        first = first or min(found)
        table.add_row(name, f"{min(found):.2f}", f"{min(found) / first:.0f}")
    return table


def main() -> None:
    """Run and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of each short command; the fastest one counts")
    options = parser.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory(prefix="trajnote-benchmark-") as folder:
        store = Path(folder) / "store"
        console.print(run_demo_timed(store))
        console.print(time_commands(store, options.turns))


if __name__ == "__main__":
    main()
