"""How long it takes to write, read and join steps and annotations, as ratios measured in one run.

    python benchmarks/storage_scan.py --steps 10000000 --annotations 500000

Everything lies in a temporary folder, which is removed at the end. Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from storage.catalog import insert_rows
from storage.datasets import StepsWriter
from storage.datasets.reader import iterate_episodes, read_episode, read_steps
from storage.queries.query import run_query
from storage.schema import Episode, Manifest, ManifestDraft, Space
from storage.store import Store

COMPONENTS, ACTIONS, LENGTH = 17, 6, 1000  # the sizes of Hopper-like tasks


def make_draft(dataset_id: str) -> ManifestDraft:
    return ManifestDraft(
        dataset_id=dataset_id,
        source="collect",
        env_id=None,
        observation_space=Space(kind="box", dtype="float32", size=COMPONENTS),
        action_space=Space(kind="box", dtype="float32", size=ACTIONS),
        component_names=tuple(f"o{i}" for i in range(COMPONENTS)),
        action_names=tuple(f"a{i}" for i in range(ACTIONS)),
    )


def make_episode(episode_id: int, rng: np.random.Generator) -> Episode:
    return Episode(
        episode_id=episode_id,
        seed=episode_id,
        observations=rng.standard_normal((LENGTH + 1, COMPONENTS), np.float32),
        actions=rng.standard_normal((LENGTH, ACTIONS), np.float32),
        rewards=rng.standard_normal(LENGTH),
        terminated=True,
        truncated=False,
    )


def write(store: Store, dataset_id: str, episodes: int, shard_bytes: int, progress: Progress) -> Manifest:
    """A dataset of ten different episodes again and again: what is measured is the writing, not the dice."""
    rng = np.random.default_rng(0)
    pool = [make_episode(i, rng) for i in range(10)]
    with StepsWriter(store, make_draft(dataset_id), shard_bytes=shard_bytes) as writer:
        for number in progress.track(range(episodes), description=f"write {dataset_id}"):
            writer.write(Episode(**{**vars(pool[number % 10]), "episode_id": number}))
        return writer.finish()


def annotate(store: Store, dataset_id: str, episodes: int, count: int) -> None:
    """Annotations at different steps, spread evenly."""
    places = np.linspace(0, episodes * LENGTH - 1, count).astype(np.int64)
    rows = [
        {
            "annotation_id": f"a{number}",
            "run_id": "run",
            "dataset_id": dataset_id,
            "episode_id": place // LENGTH,
            "step": place % LENGTH,
            "critical": True,
            "suggested_action": [0.0] * ACTIONS,
            "confidence": 0.5,
            "model": "none",
        }
        for number, place in enumerate(places.tolist())
    ]
    with store.catalog.write() as con:
        insert_rows(con, "annotation_runs", [{"run_id": "run", "dataset_id": dataset_id, "provider": "file"}])
        insert_rows(con, "annotations", rows)


def measure(work: Callable[[], Any], times: int = 1) -> float:
    """Seconds of the fastest of several runs."""
    found: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def scatter(store: Store, dataset_id: str, steps: Any) -> None:
    """Labels to their rows by position: keys from the catalog, arrays from memory."""
    with store.catalog.read() as con:
        keys = con.execute(
            "SELECT episode_id, step, confidence FROM annotations WHERE dataset_id = ?", [dataset_id]
        ).fetchnumpy()
    weights = np.zeros(len(steps))
    weights[steps.rows_of(keys["episode_id"], keys["step"])] = keys["confidence"]


def run(root: Path, steps: int, annotations: int, progress: Progress) -> list[tuple[str, str, float, str]]:
    episodes = max(10, steps // LENGTH)
    store = Store.create(root / "store")
    few_s = measure(lambda: write(store, "few", episodes, 100_000_000, progress))
    small = max(10, episodes // 10)
    write(store, "wide", small, 1_000_000_000, progress)
    write(store, "narrow", small, 1_000_000, progress)
    stages = progress.add_task("measure", total=10)

    def timed(work: Callable[[], Any], times: int = 2) -> float:
        seconds = measure(work, times)
        progress.advance(stages)
        return seconds

    label_s = timed(lambda: annotate(store, "few", episodes, annotations), times=1)
    column_s = timed(lambda: read_steps(store, "few"))
    each_s = timed(lambda: sum(len(episode) for episode in iterate_episodes(store, "few")))
    sample = range(0, episodes, max(1, episodes // 50))
    single_s = timed(lambda: [read_episode(store, "few", number) for number in sample]) / len(sample) * episodes
    many_s, one_s = (timed(lambda name=name: read_steps(store, name)) for name in ("narrow", "wide"))
    held = read_steps(store, "few")
    joins = {
        "payload": "SELECT sum(observation[1]) + sum(list_sum(action_vector)) FROM annotated_steps",
        "component": "SELECT avg(o3) FROM annotated_steps",
        "keys only": "SELECT count(*) FROM annotated_steps",
    }
    joined = {name: timed(lambda sql=sql: run_query(store, sql)) for name, sql in joins.items()}
    scatter_s = timed(lambda: scatter(store, "few", held))
    million = 1e6 / (episodes * LENGTH)
    return [
        ("write", "write columns, per million steps", few_s * million, "1"),
        ("write", f"insert {annotations:,} annotations", label_s, ""),
        ("read", "all columns at once", column_s, "1"),
        ("read", "one Episode after the other, in order", each_s, f"{each_s / column_s:.1f}"),
        ("read", f"read_episode for each (from {len(sample)})", single_s, f"{single_s / column_s:.0f}"),
        ("shards", f"one shard, {small * LENGTH:,} steps", one_s, "1"),
        (
            "shards",
            f"{len(list(store.dataset_dir('narrow').iterdir())) - 1} shards of 1 MB",
            many_s,
            f"{many_s / one_s:.1f}",
        ),
        ("join", "by position in NumPy", scatter_s, "1"),
        *(("join", f"SQL, {name}", seconds, f"{seconds / scatter_s:.1f}") for name, seconds in joined.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--annotations", type=int, default=500_000)
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="trajnote-benchmark-") as root, Progress(console=console) as progress:
        results = run(Path(root), options.steps, options.annotations, progress)
    table = Table(
        "what", "how", "seconds", "ratio", title=f"{options.steps:,} steps, {options.annotations:,} annotations"
    )
    for what, how, seconds, ratio in results:
        table.add_row(what, how, f"{seconds:.3f}", ratio)
    console.print(table)


if __name__ == "__main__":
    main()
