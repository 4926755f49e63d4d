"""Runs a scenario again and again, killed before its 1st, 2nd, 3rd ... touch of the disk, then once more to the end.

A program of its own, because it forks: nothing here may have started a thread before. Prints, as JSON, how many places
there were and which of them did not end in the state of an uninterrupted run.

    python tests/crash_points.py SCENARIO FOLDER [EVERY]

EVERY 3 tries only every third place.
"""

from __future__ import annotations

import hashlib
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

from store_state import append_response
from toy_datasets import make_draft, make_episode

from storage.catalog import Catalog, insert_rows
from storage.datasets import StepsWriter, find_finished
from storage.ledger.runs import iterate_responses
from storage.policies.policies import save_policy
from storage.store import Store

TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.scandir", "touch"}
_TIMELESS = "COLUMNS(lambda name: name NOT LIKE '%_at' AND name <> 'manifest_sha256')"


def create(root: Path) -> None:
    Store.create(root)


def collect(root: Path) -> None:
    store, draft = Store.open(root), make_draft()
    if find_finished(store, draft) is None:
        with StepsWriter(store, draft, shard_bytes=400) as writer:
            for number in range(writer.episodes_done, 5):
                writer.write(make_episode(number))
            writer.finish()


def keep_policy(root: Path) -> None:
    save_policy(Store.open(root), "p1", {"a.bin": b"a" * 1000, "b.json": b"{}"}, {"kind": "baseline"})


def reply(root: Path) -> None:
    """Append what is missing of three replies, then register them: what an annotation run does."""
    store = Store.open(root)
    found = {stored.record["request_id"]: stored for stored in iterate_responses(store, "run")}
    for name in ("r_1", "r_2", "r_3"):
        file, line = found[name][:2] if name in found else append_response(store, "run", {"request_id": name})
        with store.catalog.write() as con:
            insert_rows(con, "responses", [{"response_id": name, "request_id": name, "file": file, "line": line}])


SCENARIOS: dict[str, Callable[[Path], None]] = {
    "create": create,
    "collect": collect,
    "keep_policy": keep_policy,
    "reply": reply,
}


def state_of(root: Path) -> dict[str, Any]:
    """Everything in a store but the times of the clock."""
    files = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("catalog.duckdb", "manifest.json")
    }
    manifests = [json.loads(path.read_text()) | {"created_at": ""} for path in sorted(root.rglob("manifest.json"))]
    with Store.open(root).catalog.read() as con:
        tables = {
            table: con.execute(f"SELECT {_TIMELESS} FROM {table} ORDER BY ALL").fetchall()
            for table in ("datasets", "episodes", "policies", "responses", "steps")
        }
    return {"files": files, "manifests": manifests, "tables": tables}


def in_child(work: Callable[[], None]) -> int:
    """Run something in a forked process; its exit status, negative when it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(place: int, root: Path) -> None:
    """Be killed before the given touch of the disk."""
    left = [place]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event in TOUCHES and (event == "touch" or str(arguments[0]).startswith(str(root))):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    fsync, connect = os.fsync, Catalog.connect
    os.fsync = lambda descriptor: (sys.audit("touch"), fsync(descriptor))[1]
    Catalog.connect = lambda catalog, read_only: (sys.audit("touch"), connect(catalog, read_only))[1]
    sys.addaudithook(count)


def main(scenario: str, folder: Path, every: int) -> None:
    template, smooth, rough, state = (folder / name for name in ("template", "smooth", "rough", "state.json"))
    run = SCENARIOS[scenario]

    def start(root: Path) -> None:
        shutil.rmtree(root, ignore_errors=True)
        if scenario != "create":
            shutil.copytree(template, root)

    def run_to_the_end(root: Path) -> str | None:
        def work() -> None:
            run(root)
            state.write_text(json.dumps(state_of(root), default=str))

        return state.read_text() if in_child(work) == 0 else None

    in_child(lambda: create(template))
    start(smooth)
    expected = run_to_the_end(smooth)
    wrong: list[int] = []
    for place in itertools.count(0, every):
        start(rough)
        died = in_child(lambda place=place: die_at(place, rough) or run(rough))
        if run_to_the_end(rough) != expected:
            wrong.append(place)
        if died != -signal.SIGKILL:
            print(json.dumps({"places": place, "wrong": wrong, "finished": died == 0 and expected is not None}))
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
