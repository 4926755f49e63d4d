"""Where the seconds of `trajnote demo` go, what it costs, and how long commands take that only ask.

    python benchmarks/demo.py
    python benchmarks/demo.py --roots . ../before
    python benchmarks/demo.py --episodes

The demo runs once in a new store, in this process, as the command runs it; a listener notes when each piece of work
begins. With `--roots` it runs as a whole process of several checkouts at the same time instead, so that what else the
machine does slows all alike; compared are core-seconds, beside what the environment's own steps cost. With `--episodes`
it plays some episodes in one process, in processor time. The short commands are whole processes, too; beside them is a
Python that does nothing, which no command can undercut. Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
        begun = {"start: imports, rollouts": started, **self.begun}
        ends = [*list(begun.values())[1:], ended]
        table = Table("work", "seconds", "share")
        for (work, begin), end in zip(begun.items(), ends, strict=True):
            table.add_row(work, f"{end - begin:.1f}", f"{(end - begin) / (ended - started):.0%}")
        table.add_row("all", f"{ended - started:.1f}", "100%")
        return table


def run_demo_timed(folder: Path) -> Table:
    """The demo as `trajnote demo` runs it."""
    from flows.demo import run_demo
    from flows.runtime.processes import listening

    watch = Stopwatch()
    with listening(watch):
        run_demo(folder)
    return watch.table(_STARTED, time.perf_counter())


def compare_checkouts(roots: Sequence[Path], folder: Path) -> Table:
    """The demo of each checkout, all at once: what they cost, and what they said."""
    commands = [
        [sys.executable, "-m", "flows.cli", "demo", "--json", "--store", str(folder / str(place))]
        for place in range(len(roots))
    ]
    running = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for command, root in zip(commands, roots, strict=True)
    ]
    table = Table("checkout", "seconds", "core-seconds", "environment steps", "in force", "labels did it")
    for place, (root, process) in enumerate(zip(roots, running, strict=True)):
        said = json.loads((process.stdout.read() if process.stdout else "").strip().splitlines()[-1])
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        core = used.ru_utime + used.ru_stime
        steps = count_steps(folder / str(place))
        table.add_row(
            str(root), f"{said['seconds']:.0f}", f"{core:.0f}", f"{steps:,}", said["policy_id"], said["credit"]
        )
    return table


def count_steps(store: Path) -> int:
    """Environment steps of all evaluations of a store."""
    from storage.store import Store

    with Store.open(store).catalog.read() as con:
        ((steps,),) = con.execute("SELECT sum(steps) FROM evaluations").fetchall()
    return int(steps)


def time_episodes(candidates: int = 24) -> Table:
    """A few seeds of many policies, as candidates are chosen, and many seeds of one, as the baseline is reported."""
    from dataclasses import replace

    import numpy as np

    from flows.demo import EXAMPLE
    from flows.simulation.workers import play_policies
    from refine.policies import MlpPolicy

    baseline = MlpPolicy.from_files({path.name: path.read_bytes() for path in (EXAMPLE / "baseline").iterdir()})
    rng = np.random.default_rng(0)
    noisy = [[bias + rng.normal(0, 0.3, bias.shape) for bias in baseline.biases] for _ in range(candidates)]
    policies = [replace(baseline, biases=tuple(biases)) for biases in noisy]
    table = Table("episodes", "steps", "us per step", "a bare step, us", "times a bare step")
    for name, who, seeds in (
        (f"{candidates} policies, 2 seeds each", policies, range(2)),
        (f"one policy, {2 * candidates} seeds", [baseline], range(2 * candidates)),
    ):
        lengths: list[int] = []
        bare, started = time_raw_steps(3000), time.process_time()
        list(play_policies("LunarLander-v3", {}, who, seeds, "sampled", 1, max_steps=1000, lengths=lengths))
        spent = (time.process_time() - started) / sum(lengths)
        bare = (bare + time_raw_steps(3000)) / 2
        table.add_row(name, f"{sum(lengths):,}", f"{spent * 1e6:.0f}", f"{bare * 1e6:.0f}", f"{spent / bare:.2f}")
    return table


def time_raw_steps(count: int = 20_000) -> float:
    """Seconds of one bare step of LunarLander-v3 with random actions, in one process."""
    import gymnasium
    import numpy as np

    env = gymnasium.make("LunarLander-v3").unwrapped
    actions = np.random.default_rng(0).integers(0, 4, count)
    env.reset(seed=0)
    started = time.process_time()
    for action in actions:
        _, _, terminated, _, _ = env.step(action)
        if terminated:
            env.reset()
    return (time.process_time() - started) / count


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
    parser.add_argument("--roots", type=Path, nargs="+", default=[], help="checkouts whose demos run at the same time")
    parser.add_argument("--episodes", action="store_true", help="play some episodes in this process only")
    options = parser.parse_args()
    console = Console(width=120)
    if options.episodes:
        console.print(time_episodes())
        return
    with tempfile.TemporaryDirectory(prefix="trajnote-benchmark-") as folder:
        if options.roots:
            console.print(compare_checkouts(options.roots, Path(folder)))
            console.print(f"a bare step: {time_raw_steps() * 1e6:.0f} us; load {os.getloadavg()[0]:.1f}")
            return
        store = Path(folder) / "store"
        console.print(run_demo_timed(store))
        console.print(time_commands(store, options.turns))


if __name__ == "__main__":
    main()
