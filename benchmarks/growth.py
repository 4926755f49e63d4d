"""What grows with the steps and with the requests: memory, disk and seconds, each in a process of its own.

    python -m benchmarks.growth

Steps: episodes of 500 in the shape of LunarLander-v3 (the numbers are chance, seed 0) are written, read, planned, and
joined in SQL. Requests: one for each short episode, answered at once by a script with three labels each. Peak memory is
the resident set of the process beyond what it had after its imports.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from annotate.cards import Card, load_card
from annotate.planning import plan_run
from annotate.providers.protocol import Reply
from annotate.requests import AnnotateConfig, Request
from annotate.run import annotate_run
from storage.queries import run_query
from storage.schema import Episode, ManifestDraft, Space
from storage.steps import StepsWriter, iterate_episodes, read_steps
from storage.store import CATALOG, Store

CARD = "LunarLander-v3"
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
    """Three labels for every request, at once."""

    name, recorded, paid = "script", True, False

    def prepare(self, known: Collection[str], pending: Collection[str], *, complete: bool) -> None:
        """It can answer anything."""

    def answer(self, requests: Iterable[Request]) -> Generator[Reply]:
        """The same labels every time."""
        label = {"suggested_action": "noop", "rationale": "it is calm", "implicit_reward": 0.0, "confidence": 0.9}
        labels = [{"step": step, "critical": True, **label} for step in range(0, LABELS * 8, 8)]
        text = json.dumps({"assessment": "fine", "labels": labels})
        usage = {"input_tokens": 3000, "output_tokens": 300}
        message = {"role": "assistant", "stop_reason": "end_turn", "model": "none", "usage": usage, "type": "message"}
        raw = json.dumps({**message, "content": [{"type": "text", "text": text}]})
        yield from (Reply(request.request_id, raw) for request in requests)

    def late(self) -> list[Reply]:
        """Nothing is late."""
        return []


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


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0


def grow_steps(root: Path, steps: int) -> Table:
    store, name = Store.create(root / f"steps-{steps}"), f"made-{steps}"
    table = Table(f"{steps:,} steps", "seconds", "peak MB", "steps/s")
    works: dict[str, tuple[Any, ...]] = {
        "write": (write, store.root, name, steps // LENGTH, LENGTH),
        "read one episode after the other": (read_each, store.root, name),
        "read all columns at once": (read_all, store.root, name),
        "annotate plan --limit 1": (plan, store.root, name, 1),
        "SQL over all steps": (ask_sql, store.root),
    }
    for what, work in works.items():
        cost = apart(*work)
        table.add_row(what, f"{cost.seconds:.2f}", f"{cost.megabytes:.0f}", f"{steps / cost.seconds:,.0f}")
    table.caption = f"{size_of(store.dataset_dir(name)) / steps:.1f} bytes per step on the disk"
    return table


def grow_requests(root: Path, requests: int) -> Table:
    store, name = Store.create(root / f"requests-{requests}"), f"asked-{requests}"
    write(store.root, name, requests, SHORT)
    table = Table(f"{requests:,} requests", "seconds", "peak MB", "requests/s")
    works: dict[str, tuple[Any, ...]] = {
        "annotate plan": (plan, store.root, name, None),
        "plan, answer and enter the labels": (run_requests, store.root, name),
    }
    for what, work in works.items():
        cost = apart(*work)
        table.add_row(what, f"{cost.seconds:.2f}", f"{cost.megabytes:.0f}", f"{requests / cost.seconds:,.0f}")
    catalog, replies = (store.root / CATALOG).stat().st_size, size_of(store.root / "responses")
    table.caption = f"catalog {catalog / requests:,.0f}, raw replies {replies / requests:,.0f} bytes per request"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--requests", type=int, nargs="*", default=[1_000, 5_000])
    options = parser.parse_args()
    console, started = Console(width=100), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="trajnote-benchmark-") as folder:
        for steps in options.steps:
            console.print(grow_steps(Path(folder), steps))
        for requests in options.requests:
            console.print(grow_requests(Path(folder), requests))
    console.print(f"seed 0, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
