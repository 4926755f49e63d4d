"""Pushes and pulls that are killed with SIGKILL before the n-th touch of the disk, then once more to the end.

A program of its own, because it forks: nothing here may have started a thread before. Prints, as JSON, what went wrong.

    python tests/killed_snapshots.py FOLDER KILLS
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crash_points import TOUCHES
from store_state import state_of
from toy_datasets import make_draft, make_episode, write

from storage.catalog import Catalog, insert_rows
from storage.remote.pull import pull_store
from storage.remote.push import push_store
from storage.store import Store
from storage.upkeep.verify import verify_store

NOTE = {"annotation_id": "n1", "run_id": "r", "dataset_id": "d1", "episode_id": 0, "step": 0, "critical": True}


def count_touches(root: Path, stop: Callable[[int], None]) -> None:
    """Call `stop` with the number of each touch below a folder that is about to happen."""
    number = itertools.count(1)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event in TOUCHES and (event == "touch" or str(arguments[0]).startswith(str(root))):
            stop(next(number))

    connect = Catalog.connect
    Catalog.connect = lambda catalog, read_only: (sys.audit("touch"), connect(catalog, read_only))[1]
    sys.addaudithook(count)


def kill_at(place: int) -> Callable[[int], None]:
    return lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == place else None


class World:
    """A store and a remote folder that can be set back, and what they hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.store, self.other, self.remote = (self.work / name for name in ("store", "other", "remote"))
        self.said = folder / "said.txt"

    def do(self, work: Callable[[], object], stop: Callable[[int], None] | None = None) -> int:
        """Run something in a forked process; its exit status."""
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code = 1
        try:
            if stop:
                count_touches(self.work, stop)
            work()
            code = 0
        except BaseException:
            self.said.write_text(traceback.format_exc())
        finally:
            os._exit(code)

    def prepare(self) -> None:
        """Snapshot 1 in both stores, then more in the first one."""
        store = Store.create(self.store)
        write(store, make_draft("d1"), [make_episode(0)])
        push_store(store, self.remote.as_uri())
        pull_store(self.other, self.remote.as_uri())
        shutil.copytree(self.store, self.folder / "first")
        write(store, make_draft("d2", seed=8), [make_episode(1)])
        with store.catalog.write() as con:
            insert_rows(con, "annotations", [NOTE | {"model": "m"}])
        shutil.copytree(self.work, self.folder / "before")

    def reset(self) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self.folder / "before", self.work)

    def push(self) -> None:
        push_store(Store.open(self.store), self.remote.as_uri())

    def pull(self) -> None:
        pull_store(self.other, self.remote.as_uri())

    def state(self, root: Path) -> str:
        path = self.folder / "state.json"
        self.do(lambda: path.write_text(_state(root)))
        return path.read_text()

    def state_of_remote(self) -> str:
        fresh = self.folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        if self.do(lambda: pull_store(fresh, self.remote.as_uri())):
            return self.said.read_text()
        return self.state(fresh)

    def touches(self, work: Callable[[], object]) -> int:
        path = self.folder / "touches"
        self.do(work, lambda number: path.open("w").write(str(number)) and None)
        return int(path.read_text())


def _state(root: Path) -> str:
    damages = [str(damage) for damage in verify_store(Store.open(root))]
    state = state_of(root)
    files = {name: sha for name, sha in state["files"].items() if name.startswith("rollouts") and ".tmp" not in name}
    return json.dumps({"damages": damages, "files": files, "tables": state["tables"]}, default=str)


def tables_of(state: str) -> object:
    return json.loads(state)["tables"]


def places(kills: int, total: int) -> list[int]:
    """Places from 1 to the last one, the last one included."""
    return [max(1, total * n // kills) for n in range(1, kills + 1)]


def main(folder: Path, kills: int) -> None:
    world = World(folder)
    world.do(world.prepare)
    first, second = world.state(folder / "first"), world.state(world.store)
    problems = [] if first != second and '"n1"' in second else ["the states are alike"]
    killed: list[int] = []
    for place in places(kills, world.touches(world.push)):
        world.reset()
        killed.append(world.do(world.push, kill_at(place)))
        if world.state_of_remote() not in (first, second):
            problems.append(f"push killed at {place}: the remote holds neither state: {world.said.read_text()}")
        if world.do(world.push) or world.state_of_remote() != second:
            problems.append(f"push killed at {place}, then again: {world.said.read_text()}")
    world.do(world.push)
    shutil.rmtree(folder / "before")
    shutil.copytree(world.work, folder / "before")
    for place in places(kills, world.touches(world.pull)):
        world.reset()
        killed.append(world.do(world.pull, kill_at(place)))
        if tables_of(world.state(world.other)) not in (tables_of(first), tables_of(second)):
            problems.append(f"pull killed at {place}: the catalog is in neither state")
        if world.do(world.pull) or world.state(world.other) != second:
            problems.append(f"pull killed at {place}, then again: {world.said.read_text()}")
    print(json.dumps({"killed": killed.count(-signal.SIGKILL), "problems": problems}))


if __name__ == "__main__":
    os.environ["TRAJNOTE_LOCK_WAIT"] = "5"
    main(Path(sys.argv[1]), int(sys.argv[2]))
