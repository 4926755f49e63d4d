"""The same work on one process and on every runner: are the bits the same, and how much faster is it?

    python -m benchmarks.machines

Collecting, playing for the gate, training draws, and replaying labels, in LunarLander-v3 with the shipped baseline and
labels of a heuristic rule. Runners whose package is missing are left out. Seeds: 0 (dataset), 1000 (collected), 500000
(played), 0 (training). `--prefect` also prints what one empty task costs under Prefect's own task runners. On cores
that others use, too, the ratios move by tens of percent from run to run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.datasets.collection import CollectConfig, gather
from flows.labelling.label_replays import ReplayConfig, replay_labels
from flows.policies.loading import load_policy
from flows.refinement.arms import Material, list_draws, train_draws
from flows.runtime.processes import Runner, core_count, parallel_map, running_on, shutdown_workers
from flows.simulation.environments import look_up_spaces
from flows.simulation.workers import play_policies
from refine.config import RefineConfig
from refine.labels.labels import labels_from_annotations
from storage.annotations.annotations import load_annotations, load_label_replays
from storage.catalog import insert_rows
from storage.datasets.reader import iterate_episodes, read_steps
from storage.store import Store

ENV = "LunarLander-v3"
BASELINE = f"policy:{Path(__file__).parent.parent / 'examples' / 'lunarlander' / 'baseline'}"
PACKAGES = {"threads": "concurrent", "processes": "concurrent", "dask": "distributed", "ray": "ray"}
EMPTY = 200  # items of no work
PREFECT_TASKS = 40


def suggest(store: Store, dataset_id: str, every: int) -> None:
    """A label at every so many steps: the side engine that turns the lander upright."""
    rows = [
        {
            "annotation_id": f"m-{episode.episode_id}-{step}",
            "run_id": "rule",
            "dataset_id": dataset_id,
            "episode_id": episode.episode_id,
            "step": step,
            "critical": True,
            "suggested_action": [3.0 if episode.observations[step, 4] > 0 else 1.0],
            "confidence": 0.9,
            "implicit_reward": 0.0,
            "model": "rule",
        }
        for episode in iterate_episodes(store, dataset_id)
        for step in range(0, len(episode), every)
    ]
    with store.catalog.write() as con:
        insert_rows(con, "annotation_runs", [{"run_id": "rule", "dataset_id": dataset_id, "provider": "file"}])
        insert_rows(con, "annotations", rows)


class Work:
    """What is shared out, each part with a hash over every bit of its result."""

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder, self.scale = folder, scale
        self.store = Store.create(folder / "store")
        self.dataset_id = gather(self.store, self.config(8, 0)).dataset_id
        suggest(self.store, self.dataset_id, 40)
        self.number = 0

    def config(self, episodes: int, seed: int) -> CollectConfig:
        """Episodes of the baseline."""
        return CollectConfig(env_id=ENV, policy=BASELINE, mode="sampled", episodes=episodes, seed=seed)

    def parts(self) -> dict[str, Callable[[int | None], str]]:
        """By name, each to be called with the number of workers."""
        return {"collect": self.collect, "play": self.play, "train": self.train, "replay": self.replay}

    def collect(self, workers: int | None) -> str:
        """A dataset in a store of its own."""
        self.number += 1
        store = Store.create(self.folder / f"collected-{self.number}")
        manifest = gather(store, self.config(max(8, round(96 * self.scale)), 1_000))
        return ",".join(shard.sha256 for shard in manifest.shards)

    def play(self, workers: int | None) -> str:
        """Returns of one policy, as the gate asks for them."""
        policy = load_policy(BASELINE, look_up_spaces(ENV))
        seeds = range(500_000, 500_000 + max(16, round(96 * self.scale)))
        return hashed(row.tobytes() for row in play_policies(ENV, {}, [policy], seeds, "sampled", workers))

    def train(self, workers: int | None) -> str:
        """Eight draws of the four arms."""
        steps = read_steps(self.store, self.dataset_id)
        spaces = look_up_spaces(ENV)
        labels = labels_from_annotations(load_annotations(self.store, self.dataset_id), steps, spaces.action)
        recipe = RefineConfig(seed=0, snapshots=(max(20, round(200 * self.scale)),)).completed(spaces.action)
        network: Any = load_policy(BASELINE, spaces)
        material = Material(self.store.root, self.dataset_id, labels, network.network, recipe)
        trained = parallel_map(partial(train_draws, material), [[draw] for draw in list_draws(3)], workers)
        return hashed(snapshot.policy.sha256.encode() for [candidates] in trained for snapshot in candidates)

    def replay(self, workers: int | None) -> str:
        """Advantages of labels; the runner says how many workers there are."""
        config = ReplayConfig(limit=max(32, round(96 * self.scale)), continuations=1)
        replay_labels(self.store, self.dataset_id, config)
        rows = sorted(load_label_replays(self.store, self.dataset_id), key=lambda row: row.annotation_id)
        found = hashed(json.dumps([row.annotation_id, row.advantages]).encode() for row in rows)
        with self.store.catalog.write() as con:
            con.execute("DELETE FROM label_replays")
        return found


def hashed(parts: Iterator[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def warm_up(kind: str) -> tuple[float, float]:
    """Seconds until the workers have done something, and milliseconds of one empty item after that."""
    started, _ = timed(lambda: list(parallel_map(nothing, range(8), runner=Runner(kind), threadsafe=True)))
    empty, _ = timed(lambda: list(parallel_map(nothing, range(EMPTY), runner=Runner(kind), threadsafe=True)))
    return started, empty / EMPTY * 1000


def compare(work: Work, kind: str) -> tuple[dict[str, float], bool]:
    """How much faster each part is than on one process right before it, and whether all bits are the same."""
    ratios: dict[str, float] = {}
    same = True
    for name, part in work.parts().items():
        alone_s, expected = timed(partial(part, 1))
        with running_on(kind):
            shared_s, found = timed(partial(part, None))
        ratios[name] = alone_s / shared_s
        same = same and found == expected
    return ratios, same


def measure(kinds: list[str], work: Work) -> list[tuple[str, ...]]:
    """One row per runner."""
    rows: list[tuple[str, ...]] = []
    work.train(1)  # loads the learner
    for kind in kinds:
        start_s, item_ms = warm_up(kind)
        with running_on(kind):
            for part in (work.play, work.train):  # workers load the environment and the learner once
                part(None)
        ratios, same = compare(work, kind)
        row = (kind, f"{start_s:.1f}", f"{item_ms:.1f}", *(f"{ratio:.2f}x" for ratio in ratios.values()))
        rows.append((*row, "yes" if same else "NO"))
        shutdown_workers()
    return rows


def nothing(item: int) -> int:
    return item


def measure_prefect() -> Iterator[tuple[str, float]]:
    """Milliseconds of one empty task under Prefect's task runners, each with two workers, on a server of our own."""
    from flows.runtime.prefect_server import quieten_prefect

    quieten_prefect()
    from flows.runtime.prefect_server import Server, served

    with served(Server()):
        for name, make in prefect_runners().items():
            yield name, time_tasks(make())


def prefect_runners() -> dict[str, Callable[[], Any]]:
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    found: dict[str, Callable[[], Any]] = {
        "ThreadPoolTaskRunner": lambda: ThreadPoolTaskRunner(2),
        "ProcessPoolTaskRunner": lambda: ProcessPoolTaskRunner(max_workers=2),
    }
    if importlib.util.find_spec("prefect_dask"):
        from prefect_dask import DaskTaskRunner  # pyright: ignore[reportMissingImports]

        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
        found["DaskTaskRunner"] = lambda: DaskTaskRunner(cluster_kwargs=options)
    if importlib.util.find_spec("prefect_ray"):
        from prefect_ray import RayTaskRunner  # pyright: ignore[reportMissingImports]

        found["RayTaskRunner"] = lambda: RayTaskRunner(
            init_kwargs={"address": "local", "num_cpus": 2, "include_dashboard": False}
        )
    return found


def time_tasks(runner: Any) -> float:
    from prefect import flow, task

    empty = task(nothing, name="empty", persist_result=False)

    @flow(task_runner=runner, persist_result=False, name="empty tasks")
    def run() -> float:
        list(empty.map(list(range(4))).result())
        seconds, _ = timed(lambda: empty.map(list(range(PREFECT_TASKS))).result())
        return seconds / PREFECT_TASKS * 1000

    return run()


def draw(rows: list[tuple[str, ...]]) -> Table:
    title = f"{core_count()} cores, load {os.getloadavg()[0]:.1f} of others and this"
    table = Table("runner", "start s", "ms per item", "collect", "play", "train", "replay", "same bits", title=title)
    for row in rows:
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the work")
    parser.add_argument("--runner", action="append", choices=[*PACKAGES, "none"], help="only this; may be given again")
    parser.add_argument("--prefect", action="store_true", help="also time empty tasks under Prefect's task runners")
    options = parser.parse_args()
    kinds = [
        kind for kind in options.runner or PACKAGES if kind in PACKAGES and importlib.util.find_spec(PACKAGES[kind])
    ]
    started = time.perf_counter()
    console = Console(width=100)
    if kinds:
        with tempfile.TemporaryDirectory(prefix="trajnote-benchmark-") as folder:
            console.print(draw(measure(kinds, Work(Path(folder), options.scale))))
    if options.prefect:
        for name, cost in measure_prefect():
            console.print(f"{name}: {cost:.1f} ms per empty task")
    console.print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
