"""Runs commands of `trajnote` again and again, stopped at another touch of the disk each time, then once to its end.

A program of its own, because it forks: nothing here may have started a thread before. All that is heavy is imported
once. Prints, as JSON, how many touches each command has, which stops were not followed by the state of an uninterrupted
run, and what else was wrong.

    python tests/interrupted_commands.py FOLDER KILLS INTERRUPTS COMMAND ...
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rich.progress
import rich.table  # noqa: F401
import toy_environment as toy
from crash_points import TOUCHES
from store_state import state_of

import annotate.runs.run  # noqa: F401
import flows.refinement.refinement  # noqa: F401
import refine.training.train  # noqa: F401
from annotate.importing.labels import import_annotations
from flows.cli import main as trajnote
from flows.cli import make_app
from refine import config as refine_config
from storage.catalog.connection import Catalog
from storage.store import Store

END = -1  # the number of the instant before a command's process ends
LAST = (END, signal.SIGKILL)
LINE = "interrupted: run the same command again to resume"
refine_config.DISCRETE_DEFAULTS = {"betas": (0.1,), "snapshots": (5, 10)}  # seconds of training show nothing more
refine_config.LATE_SNAPSHOTS = (5, 10)


def prepare(command: str, folder: Path) -> list[str]:
    """Make what a command starts from: files beside the store, and the store itself; returns its arguments."""
    toys = gather_once(folder.parent / "toys")
    (made,) = toys.glob("store/rollouts/*")
    if command == "collect":
        baseline = toys / "baseline"
        return [command, "--env", toy.TOY, "--policy", f"policy:{baseline}", "--episodes", "12", "--mode", "sampled"]
    if command == "import":
        return [command, str(made)]
    store = Store.open(shutil.copytree(toys / "store", folder / "template"))
    if command == "annotate":
        card = toys / "card.toml"
        answers = toy.write_answers(store, made.name, card, folder / "answers.jsonl")
        return [command, "--provider", "recorded", "--answers", str(answers), "--model", "toy", "--card", str(card)]
    labels = toy.write_labels(store, made.name, folder / "labels.jsonl")
    if command == "annotations":
        return [command, "import", str(labels)]
    if command == "evaluate":
        return [command, "baseline", "--episodes", "20", "--workers", "1"]
    import_annotations(store, labels)
    sizes = ["--select", "4", "--accept", "10", "--report", "10", "--draws", "2"]
    return ["refine", *sizes, "--workers", "1"]


def gather_once(toys: Path) -> Path:
    """A folder with a store of toy episodes, their baseline and their card, for all commands."""
    if not toys.exists():
        store = Store.create(toys / "store")
        (toys / "card.toml").write_text(toy.CARD)
        toy.gather_toys(store, toys, card=str(toys / "card.toml"))
    return toys


def in_child(work: Callable[[], object], said: Path) -> int:
    """Run something in a forked process that writes what it says into a file; its exit status."""
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        code = 1
        try:
            work()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_touches(root: Path, stop: Callable[[int], None]) -> None:
    """Call `stop` with the number of each touch of a store's files that is about to happen."""
    numbers = itertools.count(1)  # threads touch files, too, and each number is given once

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event in TOUCHES and (event == "touch" or str(arguments[0]).startswith(str(root))):
            stop(next(numbers))

    fsync, connect = os.fsync, Catalog.connect
    os.fsync = lambda descriptor: (sys.audit("touch"), fsync(descriptor))[1]
    Catalog.connect = lambda catalog, read_only: (sys.audit("touch"), connect(catalog, read_only))[1]
    sys.addaudithook(count)


class Command:
    """A command with its arguments, and the folder in which it is tried."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.folder = folder
        self.root = folder / "store"
        self.said = folder / "said.txt"
        self.arguments = [*arguments, "--store", str(self.root)]

    def start_anew(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        if (self.folder / "template").exists():
            shutil.copytree(self.folder / "template", self.root)

    def run(self, stop: Callable[[int], None] = lambda number: None) -> int:
        def work() -> None:
            count_touches(self.root, stop)
            sys.argv = ["trajnote", *self.arguments]
            try:
                trajnote()
            finally:
                stop(END)

        return in_child(work, self.said)

    def state(self) -> str:
        path = self.folder / "state.json"
        done = in_child(
            lambda: path.write_text(json.dumps(state_of(self.root), default=str)), self.folder / "error.txt"
        )
        return path.read_text() if done == 0 else (self.folder / "error.txt").read_text()

    def count(self) -> int:
        """How many touches an uninterrupted run has."""
        path = self.folder / "touches"
        self.run(lambda number: path.open("w").write(str(number)) and None if number != END else None)
        return int(path.read_text())


def stop_at(place: int, sent: signal.Signals) -> Callable[[int], None]:
    """Stop at a touch, or, with SIGKILL, at the end of a run whose threads needed fewer touches this time."""
    return lambda number: os.kill(os.getpid(), sent) if number == place or (number, sent) == LAST else None


def spread(count: int, total: int, shift: float = 1.0) -> list[int]:
    """Places at equal distances, the last one included where the shift is 1; a smaller one moves all to the front."""
    return [max(1, int(total * (n + shift) / count)) for n in range(count)]


def try_command(name: str, folder: Path, kills: int, interrupts: int, shift: float) -> dict[str, Any]:
    folder.mkdir()
    prepared = folder / "arguments.json"
    in_child(lambda: prepared.write_text(json.dumps(prepare(name, folder))), folder / "prepared.txt")
    command = Command(folder, json.loads(prepared.read_text()))
    command.start_anew()
    total = command.count()
    expected = command.state()
    problems = [] if json.loads(expected)["files"] else ["nothing was written"]
    if command.run() != 0 or command.state() != expected:
        problems.append(f"a second run: {command.said.read_text()}")
    stops = [(place, signal.SIGKILL) for place in spread(kills, total, shift)]
    stops += [(place, signal.SIGINT) for place in spread(interrupts + 1, total)[:-1]]
    for place, sent in stops:
        command.start_anew()
        code = command.run(stop_at(place, sent))
        said = command.said.read_text()
        if code != (130 if sent == signal.SIGINT else -signal.SIGKILL):
            problems.append(f"{sent.name} at {place} ended with {code}: {said}")
        if sent == signal.SIGINT and (said.strip().splitlines()[-1:] != [LINE] or "Traceback" in said):
            problems.append(f"{sent.name} at {place} said: {said}")
        if command.run() != 0:
            problems.append(f"after {sent.name} at {place}: {command.said.read_text()}")
        if command.state() != expected:
            problems.append(f"after {sent.name} at {place} there is another state")
    return {"touches": total, "stops": len(stops), "problems": problems}


def main(folder: Path, kills: int, interrupts: int, names: Sequence[str]) -> None:
    make_app()  # imports the modules of all commands
    shifts = [(place + 1) / len(names) for place in range(len(names))]  # few kills are at other places of each command
    tried = zip(names, shifts, strict=True)
    print(json.dumps({name: try_command(name, folder / name, kills, interrupts, shift) for name, shift in tried}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
