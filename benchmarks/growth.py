"""What grows with the steps and with the requests: memory, disk and seconds, each in a process of its own.

    python -m benchmarks.growth

Steps: episodes of 500 in the shape of LunarLander-v3 (the numbers are chance, seed 0) are written, read, planned, and
joined in SQL. Annotations: three of a request for each short episode, answered at once by a script, then joined to
their steps in SQL and placed beside them by position. Peak memory is the resident set of the process beyond what it had
after its imports, pages of mapped files included. `growth` is the time per step, or per annotation, divided by that of
the size before: 1 on a straight line, below 1 while constant costs still count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from annotate.cards.cards import Card, load_card
from annotate.prompting.requests import AnnotateConfig, Request
from annotate.providers.protocol import Reply
from annotate.runs.plan import plan_run
from annotate.runs.run import annotate_run
from refine.labels.labels import labels_from_annotations
from storage.annotations.annotations import load_annotations
from storage.datasets import StepsWriter
from storage.datasets.reader import iterate_episodes, read_manifest, read_steps
from storage.queries.query import run_query
from storage.schema import Episode, ManifestDraft, Space
from storage.store import Store

CARD, NAME = "LunarLander-v3", "made"
LENGTH, SHORT = 500, 25  # steps of an episode; of one that is only there to be asked about
LABELS = 3


class Cost(NamedTuple):
    """What one action cost."""

    seconds: float
    megabytes: float  # peak memory beyond that of the imports


def draft(card: Card, dataset_id: str) -> ManifestDraft:
    return ManifestDraft(
        dataset_id=dataset_id,
        source="collect",
        env_id=card.env_id,
        observation_space=Space(kind="box", dtype="float32", size=len(card.components)),
        action_space=Space(kind="discrete", dtype="int64", size=1, n=len(card.actions)),
        component_names=card.component_names,
        action_names=card.action_names,
        policy_mode="greedy",
    )


def episode(number: int, length: int, rng: np.random.Generator) -> Episode:
    return Episode(
        episode_id=number,
        seed=number,
        observations=rng.standard_normal((length + 1, 8), np.float32),
        actions=rng.integers(0, 4, length),
        rewards=rng.standard_normal(length),
        terminated=True,
        truncated=False,
    )


def write(root: Path, dataset_id: str, episodes: int, length: int) -> None:
    """Episodes that all differ, so that no two of them ask the same."""
    rng = np.random.default_rng(0)
    with StepsWriter(Store.open(root), draft(load_card(CARD), dataset_id)) as writer:
        for number in range(episodes):
            writer.write(episode(number, length, rng))
        writer.finish()


def read_all(root: Path, dataset_id: str) -> None:
    read_steps(Store.open(root), dataset_id)


def read_each(root: Path, dataset_id: str) -> None:
    sum(len(each) for each in iterate_episodes(Store.open(root), dataset_id))


def plan(root: Path, dataset_id: str, limit: int | None) -> None:
    plan_run(Store.open(root), dataset_id, load_card(CARD), AnnotateConfig(model="none"), limit=limit)


def ask_sql(root: Path) -> None:
    run_query(Store.open(root), "SELECT action, avg(observation[2]) FROM steps WHERE action IS NOT NULL GROUP BY ALL")


class Script:
    """Labels for every request, at once: the same ones every time."""

    name, recorded, paid = "script", True, False

    def prepare(self, known: Collection[str], pending: Collection[str], *, complete: bool) -> None:
        """It can answer anything."""

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """A reply of the Messages API to each."""
        label = {"suggested_action": "noop", "rationale": "it is calm", "implicit_reward": 0.0, "confidence": 0.9}
        usage = {"input_tokens": 3000, "output_tokens": 300}
        message = {"role": "assistant", "stop_reason": "end_turn", "model": "none", "usage": usage, "type": "message"}
        for request in requests:
            labels = [{"step": step, "critical": True, **label} for step in self.steps(request)]
            text = json.dumps({"assessment": "fine", "labels": labels})
            yield Reply(request.request_id, json.dumps({**message, "content": [{"type": "text", "text": text}]}))

    def steps(self, _: Request) -> Sequence[int]:
        """Which steps of the episode get a label."""
        return range(0, LABELS * 8, 8)

    def late(self) -> list[Reply]:
        """Nothing is late."""
        return []


def join(root: Path) -> None:
    run_query(Store.open(root), "SELECT count(*), avg(reward), sum(agrees::INT) FROM annotated_steps")


def place(root: Path, dataset_id: str) -> None:
    """Labels beside their steps by position, as a refinement does it."""
    store = Store.open(root)
    steps, notes = read_steps(store, dataset_id), load_annotations(store, dataset_id)
    labels_from_annotations(notes, steps, read_manifest(store, dataset_id).action_space)


def run_requests(root: Path, dataset_id: str) -> None:
    store = Store.open(root)
    planned = plan_run(store, dataset_id, load_card(CARD), AnnotateConfig(model="none"))
    summary = annotate_run(store, planned, Script())
    if summary.totals.labels != LABELS * len(planned.questions):
        raise SystemExit(f"{summary.totals.labels} labels of {len(planned.questions)} requests")


def weigh(work: Callable[[], None]) -> Cost:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Cost(time.perf_counter() - started, (peak - before) / 1024)


def apart(work: Callable[..., None], *arguments: Any) -> Cost:
    """Do it in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(weigh, partial(work, *arguments)).result()


def list_works(root: Path, steps: int, annotations: int) -> dict[str, tuple[Any, ...]]:
    """What is done with a store of so many steps, or of so many annotations, in order."""
    if steps:
        return {
            "write": (write, root, NAME, steps // LENGTH, LENGTH),
            "read one episode after the other": (read_each, root, NAME),
            "read all columns": (read_all, root, NAME),
            "read all columns again": (read_all, root, NAME),
            "annotate plan --limit 1": (plan, root, NAME, 1),
            "SQL over all steps": (ask_sql, root),
        }
    write(root, NAME, -(-annotations // LABELS), SHORT)
    return {
        "annotate plan": (plan, root, NAME, None),
        "plan, answer and enter the labels": (run_requests, root, NAME),
        "SQL over annotated steps": (join, root),
        "labels to their steps by position": (place, root, NAME),
    }


def grow(folder: Path, sizes: Sequence[int], unit: str) -> Table:
    """Every kind of work at every size."""
    costs: dict[str, dict[int, Cost]] = {}
    for size in sizes:
        store = Store.create(folder / f"{unit}-{size}")
        steps, annotations = (size, 0) if unit == "step" else (0, size)
        for work, (action, *arguments) in list_works(store.root, steps, annotations).items():
            costs.setdefault(work, {})[size] = apart(action, *arguments)
    table = Table("work", f"{unit}s", "seconds", f"us per {unit}", "growth", "peak MB")
    for work, found in costs.items():
        before = None
        for size, cost in found.items():
            each = cost.seconds / size
            growth = "" if before is None else f"{each / before:.2f}"
            row = (f"{size:,}", f"{cost.seconds:.2f}", f"{each * 1e6:,.2f}", growth, f"{cost.megabytes:.0f}")
            table.add_row("" if before else work, *row)
            before = each
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--annotations", type=int, nargs="*", default=[100, 1_000, 10_000, 100_000])
    options = parser.parse_args()
    console, started = Console(width=100), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="trajnote-benchmark-") as folder:
        console.print(grow(Path(folder), options.steps, "step"))
        console.print(grow(Path(folder), options.annotations, "annotation"))
    console.print(f"seed 0, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
