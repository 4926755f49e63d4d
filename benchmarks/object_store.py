"""What pushes and pulls cost: a store of some 50 MB, to an S3 server on loopback and to a folder, beside plain copies.

    python benchmarks/object_store.py --megabytes 50

The server is moto's, a process of its own on this machine; it is written in Python, so it and not the network is the
limit. Everything lies in a temporary folder, which is removed at the end. Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from object_server import s3_server
from rich.console import Console
from rich.table import Table

from storage.catalog import insert_rows
from storage.datasets import StepsWriter
from storage.remote.pull import pull_store
from storage.remote.push import push_store
from storage.schema import Episode, ManifestDraft, Space, sha256_file
from storage.store import Store

SEED, COMPONENTS, LENGTH, NOTES = 0, 17, 1000, 20_000
T = TypeVar("T")
Row = tuple[str, str, "Cost", str, str]


def make_dataset(store: Store, name: str, megabytes: float, seed: int) -> None:
    """Random steps, which no compression makes smaller; shards of some 10 MB."""
    rng = np.random.default_rng(seed)
    box = Space(kind="box", dtype="float32", size=COMPONENTS)
    draft = ManifestDraft(
        dataset_id=name,
        source="collect",
        env_id=None,
        observation_space=box,
        action_space=Space(kind="box", dtype="float32", size=1),
        component_names=tuple(f"o{i}" for i in range(COMPONENTS)),
        action_names=("a",),
    )
    with StepsWriter(store, draft, shard_bytes=10_000_000) as writer:
        for number in range(max(1, int(megabytes * 1e6 / (LENGTH * 4 * (COMPONENTS + 3))))):
            observations = rng.standard_normal((LENGTH + 1, COMPONENTS), np.float32)
            actions, rewards = rng.standard_normal((LENGTH, 1), np.float32), rng.standard_normal(LENGTH)
            writer.write(Episode(number, number, observations, actions, rewards, terminated=True, truncated=False))
        writer.finish()


def annotate(store: Store, start: int, count: int) -> None:
    rows = [
        {
            "annotation_id": f"a{number}",
            "run_id": "run",
            "dataset_id": "steps",
            "episode_id": number // LENGTH,
            "step": number % LENGTH,
            "critical": True,
            "confidence": 0.5,
            "rationale": f"the agent is about to lose its balance at step {number}",
            "model": "none",
        }
        for number in range(start, start + count)
    ]
    with store.catalog.write() as con:
        insert_rows(con, "annotations", rows)


def count_notes(store: Store) -> int:
    with store.catalog.read() as con:
        found = con.execute("SELECT count(*) FROM annotations").fetchone()
    return found[0] if found else 0


class Cost(NamedTuple):
    """Seconds of the clock, and of this process on its processors: the second ones do not count the server."""

    seconds: float
    cpu_s: float


def timed(work: Callable[[], T]) -> tuple[Cost, T]:
    started, cpu = time.perf_counter(), time.process_time()
    result = work()
    return Cost(time.perf_counter() - started, time.process_time() - cpu), result


def measure(store: Store, url: str, folder: Path, copy_s: float) -> list[Row]:
    """All that happens to one remote, in order."""
    rows: list[Row] = []
    place = url.split(":", 1)[0]

    def add(what: str, cost: Cost, size: int, listed: str) -> None:
        speed = f"{size / cost.seconds / 1e6:.1f} MB/s" if size else ""
        rows.append((place, what, cost, speed, listed))

    cost, pushed = timed(lambda: push_store(store, url))
    first_s = cost.seconds
    add(
        f"first push, {pushed.sent_bytes / 1e6:.0f} MB, {copy_s / cost.seconds:.2f} of a copy",
        cost,
        pushed.sent_bytes,
        "0",
    )
    cost, _ = timed(lambda: push_store(store, url))
    add(f"push of nothing new, 1/{first_s / cost.seconds:.0f} of the first", cost, 0, "1")
    cost, checked = timed(lambda: push_store(store, url, check=True))
    add("the same with --check", cost, 0, str(checked.listed))
    annotate(store, count_notes(store), 100)
    cost, few = timed(lambda: push_store(store, url))
    add(f"push of 100 annotations, {few.sent_bytes / 1e6:.1f} MB", cost, few.sent_bytes, str(few.listed))
    cost, pulled = timed(lambda: pull_store(folder / f"pulled-{place}", url))
    add(f"pull into a new folder, {pulled.fetched_bytes / 1e6:.0f} MB", cost, pulled.fetched_bytes, "2")
    cost, _ = timed(lambda: pull_store(folder / f"pulled-{place}", url))
    add("pull of nothing new", cost, 0, "2")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=50.0)
    options = parser.parse_args()
    started = time.perf_counter()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="trajnote-benchmark-") as name, s3_server() as settings:
        os.environ.update(settings)
        folder = Path(name)
        store = Store.create(folder / "store")
        make_dataset(store, "steps", options.megabytes, SEED)
        annotate(store, 0, NOTES)
        files = [path for _, path in store.lasting_files()]
        size = sum(path.stat().st_size for path in files)
        hashed, _ = timed(lambda: [sha256_file(path) for path in files])
        copied, _ = timed(lambda: shutil.copytree(store.root, folder / "copy"))
        rows: list[Row] = [
            (
                "here",
                f"sha256 of {len(files)} files, {size / 1e6:.0f} MB",
                hashed,
                f"{size / hashed.seconds / 1e6:.1f} MB/s",
                "",
            ),
            ("here", "copy of the folder", copied, f"{size / copied.seconds / 1e6:.1f} MB/s", ""),
        ]
        rows += measure(store, (folder / "remote").as_uri(), folder, copied.seconds)
        (store.remotes_path).unlink()  # hash everything again, as the first push did
        rows += measure(store, "s3://notes/benchmark", folder, copied.seconds)
    table = Table("where", "what", "seconds", "CPU", "speed", "listed", title=f"seed {SEED}, {NOTES:,} annotations")
    for place, what, cost, speed, listed in rows:
        table.add_row(place, what, f"{cost.seconds:.3f}", f"{cost.cpu_s:.3f}", speed, listed)
    console.print(table)
    console.print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
