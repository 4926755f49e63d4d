"""What old things cost: a night, an opening and the everyday questions, by how many datasets are there already.

    python benchmarks/old_things.py [--datasets 1 100 1000] [--annotations 1000000]

Datasets of two short episodes in the shape of CartPole-v1 (the numbers are chance) are registered and labelled by a
scripted annotator in a first night. Then one more dataset arrives, and the second night is measured: it has one dataset
to ask about, whatever the number of old ones. Annotations that make up the number are made in SQL. Each measurement is
a process of its own; `core s` is its user and system time, children included. `--root` measures another checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nightly import write_answers
from rich.console import Console
from rich.table import Table

from annotate.cards import load_card
from flows.deployment.night import run_night
from flows.deployment.settings import read_deployment
from flows.reporting.status import look
from storage.datasets import StepsWriter, list_datasets
from storage.queries import run_query
from storage.schema import Episode, ManifestDraft, Space
from storage.store import Store

HERE = Path(__file__).resolve().parent.parent
ENV, NAME, LENGTH, EPISODES = "CartPole-v1", "yard", 12, 2
SETTINGS = f"""
[deployments.{NAME}]
datasets = ["made-"]
env_id = "{ENV}"
refine_after = 100000000
report = false
[deployments.{NAME}.label]
provider = "file"
answers = "answers"
[deployments.{NAME}.label.annotate]
model = "claude-haiku-4-5"
"""


def add_dataset(store: Store, answers: Path, number: int) -> None:
    """One more dataset, with the annotator's answers to it."""
    card = load_card(ENV)
    draft = ManifestDraft(
        dataset_id=f"made-{number:05d}",
        source="collect",
        env_id=ENV,
        observation_space=Space(kind="box", dtype="float32", size=len(card.components)),
        action_space=Space(kind="discrete", dtype="int64", size=1, n=len(card.actions)),
        component_names=card.component_names,
        action_names=card.action_names,
        policy_mode="greedy",
    )
    rng = np.random.default_rng(number)
    with StepsWriter(store, draft) as writer:
        for place in range(EPISODES):
            writer.write(
                Episode(
                    episode_id=place,
                    seed=number * EPISODES + place,
                    observations=rng.standard_normal((LENGTH + 1, 4), np.float32) / 10,
                    actions=rng.integers(0, 2, LENGTH),
                    rewards=np.ones(LENGTH),
                    terminated=True,
                    truncated=False,
                )
            )
        writer.finish()
    write_answers(store, draft.dataset_id, answers / f"{draft.dataset_id}.jsonl")


def add_until(folder: Path, number: int) -> None:
    """Datasets until there are so many."""
    store = Store.create(folder / "store")
    for place in range(len(list(store.rollouts_dir.glob("made-*"))), number):
        add_dataset(store, folder / "answers", place)


def night(folder: Path) -> None:
    name, config = read_deployment(NAME, folder / "trajnote.toml")
    done = run_night(Store.open(config.store), name, config)
    print(f"asked {done.asked}, {done.labels} labels, took in {len(done.took_in)}", file=sys.stderr)


def fill_up(folder: Path, annotations: int) -> None:
    """Labels of a run that came from elsewhere, until there are so many."""
    with Store.open(folder / "store").catalog.write() as con:
        ((have, datasets),) = con.execute(
            "SELECT (SELECT count(*) FROM annotations), (SELECT count(*) FROM datasets)"
        ).fetchall()
        each = -(-max(0, annotations - have) // datasets)
        con.execute(
            """INSERT INTO annotation_runs (run_id, dataset_id, provider, model, config, state)
               SELECT 'filled-' || dataset_id, dataset_id, 'import', 'made', '{}', 'done' FROM datasets"""
        )
        con.execute(
            """INSERT INTO annotations BY NAME
               SELECT concat_ws('-', dataset_id, n) AS annotation_id, 'filled-' || dataset_id AS run_id, dataset_id,
                   n % ? AS episode_id, n % ? AS step, true AS critical, [(n % 2)::DOUBLE] AS suggested_action,
                   if(n % 2 = 0, 'push_left', 'push_right') AS suggested_label, 0.9 AS confidence, 'made' AS model
               FROM datasets, range(?) AS made(n)""",
            [EPISODES, LENGTH, each],
        )


def list_works() -> dict[str, Callable[[Path], object]]:
    """The everyday questions, each with what it needs and nothing more."""

    def ask(sql: str) -> Callable[[Path], object]:
        return lambda folder: run_query(Store.open(folder / "store"), sql)

    return {
        "open": lambda folder: Store.open(folder / "store"),
        "store list": lambda folder: list_datasets(Store.open(folder / "store")),
        "watch, one look": lambda folder: look(Store.open(folder / "store")),
        "sql: count of steps": ask("SELECT count(*) FROM steps"),
        "sql: steps of one dataset": ask("SELECT avg(reward) FROM steps WHERE dataset_id = 'made-00000'"),
        "sql: count of annotations": ask("SELECT count(*) FROM annotations"),
        "sql: agreement by dataset": ask("SELECT dataset_id, avg(agrees::INT) FROM annotated_steps GROUP BY ALL"),
    }


def measure(root: Path, folder: Path, work: str, number: int = 0) -> dict[str, float]:
    """Seconds, core seconds and files opened of one piece of work in a process of its own."""
    command = [sys.executable, __file__, "--root", str(root), "--work", work, str(folder), str(number)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def work_here(work: str, folder: Path, number: int) -> None:
    """Do it and print what it cost; imports are not counted."""
    under, opened = str((folder / "store").resolve()), [0]

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        opened[0] += event == "open" and str(arguments[0]).startswith(under)

    works = {
        "add": partial(add_until, number=number),
        "night": night,
        "fill": partial(fill_up, annotations=number),
        **list_works(),
    }
    sys.addaudithook(hear)
    began, used = time.perf_counter(), _core_seconds()
    works[work](folder)
    taken = time.perf_counter() - began
    print(json.dumps({"seconds": taken, "cores": _core_seconds() - used, "files": opened[0]}))


def _core_seconds() -> float:
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in each)


def grow(root: Path, folder: Path, sizes: Sequence[int], annotations: int) -> Table:
    """The table: one line per piece of work, three columns per size."""
    (folder / "answers").mkdir()
    (folder / "trajnote.toml").write_text(f'store = "store"\n{SETTINGS}')
    lines: dict[str, list[str]] = {}
    for size in sizes:
        costs = {"make them": measure(root, folder, "add", size), "first night": measure(root, folder, "night")}
        measure(root, folder, "add", size + 1)
        costs["night, one new"] = measure(root, folder, "night")
        costs["night, nothing new"] = measure(root, folder, "night")
        if size == sizes[-1]:
            measure(root, folder, "fill", annotations)
        for name in list_works():
            costs[name] = measure(root, folder, name)
        for name, cost in costs.items():
            lines.setdefault(name, [name]).append(f"{cost['seconds']:.2f} / {cost['cores']:.2f} / {cost['files']:.0f}")
        print(size, json.dumps(costs), file=sys.stderr)
    table = Table("seconds / core s / files", *(f"{size:,} old" for size in sizes))
    for line in lines.values():
        table.add_row(*line)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--datasets", type=int, nargs="*", default=[1, 100, 1000])
    parser.add_argument("--annotations", type=int, default=1_000_000)
    parser.add_argument("--root", type=Path, default=HERE, help="another checkout, for the numbers before a change")
    parser.add_argument("--work", nargs=3, metavar=("WORK", "FOLDER", "NUMBER"), help="do this one alone")
    options = parser.parse_args()
    if options.work:
        work_here(options.work[0], Path(options.work[1]), int(options.work[2]))
        return
    with tempfile.TemporaryDirectory(prefix="trajnote-benchmark-") as name:
        Console(width=120).print(grow(options.root, Path(name), options.datasets, options.annotations))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
