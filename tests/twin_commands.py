"""Starts the same command of `trajnote` twice in the same instant, then once more, as users and schedulers do.

A program of its own, because it forks. Prints, as JSON, the exit codes of the twins, what they said, and whether the
store is in the end what one undisturbed command leaves, with as many raw replies.

    python tests/twin_commands.py FOLDER COMMAND ...
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interrupted_commands import Command, in_child, prepare

from flows.cli import main as trajnote


def start(arguments: Sequence[str], gate: int, said: Path) -> int:
    """A forked command that begins when the gate opens; its process id."""
    child = os.fork()
    if child:
        return child

    def work() -> None:
        os.read(gate, 1)
        sys.argv = ["trajnote", *arguments]
        trajnote()

    os._exit(in_child(work, said) % 256)


def run_twins(command: Command) -> list[dict[str, Any]]:
    """Both at once; how each ended."""
    gate, opener = os.pipe()
    files = [command.folder / f"said-{number}.txt" for number in range(2)]
    children = [start(command.arguments, gate, said) for said in files]
    os.write(opener, b"xx")
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [{"code": code, "said": said.read_text()} for code, said in zip(codes, files, strict=True)]


def try_twins(name: str, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    prepared = folder / "arguments.json"
    in_child(lambda: prepared.write_text(json.dumps(prepare(name, folder))), folder / "prepared.txt")
    command = Command(folder, json.loads(prepared.read_text()))
    command.start_anew()
    command.run()
    expected = json.loads(command.state())
    command.start_anew()
    twins = run_twins(command)
    last = command.run()
    found = json.loads(command.state())
    parts = [part for part in expected if found[part] != expected[part]]
    return {"twins": twins, "last": last, "different": parts, "files": len(found["files"])}


def main(folder: Path, names: Sequence[str]) -> None:
    print(json.dumps({name: try_twins(name, folder / name) for name in names}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
