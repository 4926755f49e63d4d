"""A soak: nights over a growing inbox, four readers and a pusher, side by side; what grows beyond the data.

    python benchmarks/long_soak.py --minutes 60

Every minute a recording of CartPole-v1 with scripted answers is dropped into an inbox, and a night of a deployment
takes it in, asks, and refines whenever there are enough new labels. Four readers open the store, ask in SQL and look at
its status without a pause; a pusher sends the store to an S3 server on loopback. Each is a process of its own that
lives as long as the soak. Memory (anonymous pages), open files, threads and children of each are looked at every few
seconds; those of the first third are compared with those of the last. Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import median
from typing import NamedTuple

from nightly import NAME, SETTINGS, drop, write_answers
from object_server import s3_server
from rich.console import Console
from rich.table import Table

from flows.datasets.collection import CollectConfig, gather
from flows.deployment.night import run_night
from flows.deployment.settings import read_deployment
from flows.reporting.status import look
from storage.datasets.reader import list_datasets
from storage.queries.query import run_query
from storage.remote.push import push_store
from storage.store import Store

ROOT = Path(__file__).resolve().parent.parent
READERS, EPISODES, EVERY_S, SAMPLED_S = 4, 8, 60.0, 5.0
QUESTIONS = (
    "SELECT dataset_id, count(*) FROM steps GROUP BY ALL",
    "SELECT avg(agrees::INT) FROM annotated_steps",
    "SELECT count(*), sum(cost_usd) FROM spending",
)


class Sample(NamedTuple):
    """A process at one moment."""

    role: str
    at: float  # seconds since the start
    megabytes: float  # anonymous memory
    files: int  # open ones, sockets included
    threads: int
    children: int


def nights(folder: Path) -> None:
    """A recording a minute, and a night over it."""
    elsewhere, store = Store.create(folder / "elsewhere"), Store.create(folder / "trajnote-store")
    policy = f"policy:{ROOT}/examples/cartpole/baseline"
    for number in count(len(list((folder / "inbox").glob("evening-*")))):
        began = time.monotonic()
        name, config = read_deployment(NAME, folder / "trajnote.toml")
        wanted = CollectConfig(
            env_id="CartPole-v1",
            policy=policy,
            mode="sampled",
            episodes=EPISODES,
            seed=number * EPISODES,
            dataset=f"evening-{number:04}",
        )
        dataset_id = gather(elsewhere, wanted).dataset_id
        write_answers(elsewhere, dataset_id, folder / "answers" / f"{dataset_id}.jsonl")
        drop(elsewhere.dataset_dir(dataset_id), folder / "inbox")
        done = run_night(store, name, config)
        say(folder, f"night {number}: asked {done.asked}, {done.labels} labels, {done.decision[:40]}")
        time.sleep(max(0.0, EVERY_S - (time.monotonic() - began)))


def read(folder: Path) -> None:
    """The questions of a person who looks, one after the other."""
    for number in count():
        store = Store.open(folder / "trajnote-store")
        run_query(store, QUESTIONS[number % len(QUESTIONS)])
        with suppress(Exception):  # a writer that takes long is no reason to end
            look(store)
        list_datasets(store)
        say(folder, f"read {number}")
        time.sleep(1.0)


def push(folder: Path) -> None:
    """The store to the server, whenever it is free."""
    for number in count():
        pushed = push_store(Store.open(folder / "trajnote-store"), "s3://notes/soak")
        say(folder, f"push {number}: snapshot {pushed.number}, {pushed.sent} of {pushed.files} files sent")
        time.sleep(10.0)


ROLES: dict[str, Callable[[Path], None]] = {"nights": nights, "reader": read, "pusher": push}


def say(folder: Path, line: str) -> None:
    """A line of a process's own log."""
    with (folder / f"{os.getpid()}.log").open("a") as file:
        file.write(f"{line}\n")


def play_role(role: str, folder: Path) -> None:
    """Do it until ended; what goes wrong is counted, and the next turn comes."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        try:
            ROLES[role](folder)
        except Exception as error:
            frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)][-4:]
            say(folder, f"error of {role}: {error!r} at {' '.join(frames)}"[:400])
            time.sleep(1.0)


def start(role: str, folder: Path, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--role", role, str(folder)]
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(command, env=environment, stdout=said, stderr=said)


def sample(role: str, pid: int, at: float) -> Sample | None:
    """How a process stands; None if it is gone."""
    own = Path(f"/proc/{pid}")
    try:
        lines = (own / "smaps_rollup").read_text().splitlines()[1:]
        status = (own / "status").read_text()
        files = len(list((own / "fd").iterdir()))
        children = (own / "task" / str(pid) / "children").read_text().split()
    except OSError:
        return None
    sizes = {name: int(value) / 1024 for name, value, *_ in (line.split() for line in lines)}
    threads = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads:"))
    return Sample(role, at, sizes["Pss_Anon:"], files, threads, len(children))


def soak(folder: Path, minutes: float) -> list[Sample]:
    """Run everybody for so long, and look at them."""
    samples: list[Sample] = []
    with s3_server() as settings:
        processes = {"nights": start("nights", folder, settings)}
        while not (folder / "trajnote-store" / "catalog.duckdb").exists():
            time.sleep(0.5)
        processes |= {f"reader {number}": start("reader", folder, settings) for number in range(READERS)}
        processes["pusher"] = start("pusher", folder, settings)
        began = time.monotonic()
        try:
            while (at := time.monotonic() - began) < minutes * 60:
                samples += [one for role, each in processes.items() if (one := sample(role, each.pid, at))]
                time.sleep(SAMPLED_S)
        finally:
            for each in processes.values():
                each.terminate()
            for each in processes.values():
                try:
                    each.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    each.kill()
    return samples


def compare(samples: list[Sample]) -> Table:
    """First and last third of each role, by medians; children by the most."""
    table = Table("process", "own MB, first third", "last", "open files", "last", "threads", "last", "children at most")
    end = max(one.at for one in samples)
    for role in dict.fromkeys(one.role for one in samples):
        own = [one for one in samples if one.role == role]
        first = [one for one in own if one.at < end / 3] or own
        last = [one for one in own if one.at > end * 2 / 3] or own
        cells = [role]
        for field in ("megabytes", "files", "threads"):
            cells += [f"{median(getattr(one, field) for one in part):.0f}" for part in (first, last)]
        table.add_row(*cells, str(max(one.children for one in own)))
    return table


def count_turns(folder: Path) -> str:
    """What was done, and what went wrong."""
    lines = [line for log in folder.glob("*.log") for line in log.read_text().splitlines()]
    kinds = {kind: sum(line.startswith(kind) for line in lines) for kind in ("night", "read", "push", "error")}
    errors = list(dict.fromkeys(line for line in lines if line.startswith("error")))
    return json.dumps(kinds) + "".join(f"\n{line}" for line in errors[:8])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--role", nargs=2, metavar=("ROLE", "FOLDER"), help="be this process of a soak")
    options = parser.parse_args()
    if options.role:
        play_role(options.role[0], Path(options.role[1]))
        return
    temporary = Path(tempfile.gettempdir())
    before = {path.name for path in temporary.glob("trajnote-*")}
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        for name in ("answers", "inbox"):
            (folder / name).mkdir()
        # one refinement for some six recordings of eight labels per episode
        (folder / "trajnote.toml").write_text(SETTINGS.replace("refine_after = 40", "refine_after = 400"))
        samples = soak(folder, options.minutes)
        Console(width=120).print(compare(samples))
        print(count_turns(folder))
        store = Store.open(folder / "trajnote-store")
        strays = [p for p in store.root.rglob("*") if p.name.endswith(".tmp") or p.name.startswith(".partial")]
        left = {path.name for path in temporary.glob("trajnote-*")} - before
        print(f"{len(list_datasets(store))} datasets; {len(strays)} stray files in the store; {len(left)} left in /tmp")
        print(f"{options.minutes:g} minutes, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
