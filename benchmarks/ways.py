"""How long a command's way through the code is: modules whose functions run, connections to the catalog, decodings.

    python -m benchmarks.ways [--root OTHER_CHECKOUT] [--seeds 20]

Each command of the way from rollouts to a verdict is a process of its own in which every call is listened to. A module
counts once one of its functions has run in that process; what runs while modules are imported, such as the declaration
of a type, does not count. CartPole and its recorded answers are used. The counts are those of the machine's Python;
they depend on no clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = "examples/cartpole"
GOALS = {"collect": (25, None), "annotate run": (30, None), "refine": (40, 8), "nightly": (65, 20)}
NIGHT = """store = "night-store"
[deployments.nightly]
env_id = "CartPole-v1"
refine_after = 100
[deployments.nightly.collect]
policy = "policy:{example}/baseline"
mode = "greedy"
episodes = 20
per = "day"
[deployments.nightly.label]
provider = "recorded"
answers = "{example}/answers.jsonl"
[deployments.nightly.label.annotate]
model = "claude"
[deployments.nightly.improve.gate]
mode = "sampled"
"""
LISTENER = """
import atexit, json, os, sys, threading
from collections import Counter, defaultdict
root, out = {root!r}, {out!r}
rooms = tuple(os.path.join(root, room) + os.sep for room in ("storage", "annotate", "refine", "flows"))
ran, opened, importing = defaultdict(set), [0], Counter()
openers = ("engine.py:attach", "connection.py:attach", "connection.py:_start", "catalog.py:_connect")
def listen(frame, event, argument):
    code, thread = frame.f_code, threading.get_ident()
    if code.co_name == "<module>":
        importing[thread] += {{"call": 1, "return": -1}}.get(event, 0)
    elif event == "call" and importing[thread] <= 0:
        opened[0] += code.co_filename.rsplit("/", 1)[-1] + ":" + code.co_name in openers
        named = code.co_flags & 1 and code.co_name[0] != "<"
        if named and code.co_filename.startswith(rooms) and code.co_filename.endswith(".py"):
            ran[os.path.relpath(code.co_filename, root)].add(code.co_qualname)
def write():
    found = dict((name, sorted(functions)) for name, functions in sorted(ran.items()))
    open(out, "w").write(json.dumps([found, opened[0]]))
atexit.register(write)
sys.path.insert(0, root)
threading.setprofile(listen)
sys.setprofile(listen)
from flows.cli import main
sys.argv = ["trajnote", *sys.argv[1:]]
main()
"""


Way = tuple[dict[str, list[str]], int]
"""The modules of a command with the functions of each that ran, and the connections that it opened."""


def walk(root: Path, folder: Path, name: str, words: Sequence[str]) -> Way:
    """Run a command with a listener."""
    out = folder / f"{name.replace(' ', '-')}.json"
    code = LISTENER.format(root=str(root), out=str(out))
    environment = {**os.environ, "TRAJNOTE_STATE": str(folder / "state"), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    ran, opened = json.loads(out.read_text())
    return ran, opened


def ways(root: Path, folder: Path, seeds: int, names: Sequence[str] = tuple(GOALS)) -> dict[str, Way]:
    """The first commands, or all, in their order, each on what the one before has left."""
    store, example = str(folder / "store"), str(root / EXAMPLE)
    place = ["--store", store]
    gate = ["--select", str(seeds), "--accept", str(seeds), "--report", str(seeds)]
    (folder / "trajnote.toml").write_text(NIGHT.format(example=example))
    commands = {
        "collect": ["collect", "--env", "CartPole-v1", "--policy", f"policy:{example}/baseline", "--mode", "greedy",
                    "--episodes", "20", *place],
        "annotate run": ["annotate", "run", "--provider", "recorded", "--answers", f"{example}/answers.jsonl",
                         "--model", "claude", *place],
        "refine": ["refine", "--gate-mode", "sampled", *gate, *place],
        "nightly": ["nightly"],
    }  # fmt: skip
    return {name: walk(root, folder, name, words) for name, words in commands.items() if name in names}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout, for the numbers before a change")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--files", action="store_true", help="list the modules, and the functions of each that ran")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trajnote-ways-") as name:
        found = ways(given.root.resolve(), Path(name), given.seeds)
    table = Table("command", "modules", "at most", "connections", "at most")
    for command, (ran, opened) in found.items():
        modules, connections = GOALS[command]
        table.add_row(command, str(len(ran)), str(modules), str(opened), str(connections or ""))
    Console().print(table)
    if given.files:
        print(json.dumps({command: ran for command, (ran, _) in found.items()}, indent=1))


if __name__ == "__main__":
    main()
