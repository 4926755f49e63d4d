"""Datasets that are larger than the memory allowed for them, annotated and refined as one: peak memory of every stage.

    python -m benchmarks.streaming --steps 100000000 --datasets 20

Episodes of 500 in the shape of LunarLander-v3 (8 numbers, 4 actions, logits; the numbers are chance, seed 0) are
written, annotated by a script that gives 8 labels for each of some episodes, judged (`annotate quality`), and refined
with all arms, through a small gate in the real environment and by an estimate. Each stage is a process of its own with
its workers. `own` is memory that only they can use (anonymous pages of all of them together); `with files` adds the
pages of mapped files that they share, which the operating system drops as soon as anybody needs the room. Nothing is
learned from chance; what counts is the memory.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from annotate.cards.cards import load_card
from annotate.prompting.requests import AnnotateConfig, Request
from annotate.runs.plan import plan_run
from annotate.runs.run import annotate_run
from benchmarks.growth import Script, draft, episode
from flows.labelling.quality import check_labels
from flows.refinement.arms import ArmDraw, Material, list_draws, train_draws
from flows.refinement.comparison import GateConfig
from flows.refinement.estimation import EstimateConfig, estimate_refinement, refit_number, train_and_score
from flows.refinement.refinement import ImproveConfig, gather_material, improve
from flows.runtime import parallel_map
from flows.simulation import Named
from refine.config import RefineConfig
from refine.evaluation import OpeConfig
from storage.datasets import StepsWriter
from storage.datasets.reader import read_manifest
from storage.queries.query import run_query
from storage.store import Store

CARD, NAME, LENGTH, DIFFERENT, EPISODES, LABELS = "LunarLander-v3", "made", 500, 200, 2_000, 8
HOME = Path(__file__).parents[1]
BASELINE = HOME / "examples" / "lunarlander" / "baseline"
SHORT = RefineConfig(snapshots=(100,))  # longer trainings take longer, not more memory
SAMPLED_S = 0.25


class Peak(NamedTuple):
    """The most memory at one time, in bytes, and how long it took."""

    own: int
    with_files: int
    seconds: float


def write(root: Path, names: Sequence[str], steps: int) -> None:
    """A few different episodes again and again: what is measured is the memory, not the dice."""
    rng, store = np.random.default_rng(0), Store.create(root)
    for name in names:
        some = [
            replace(episode(number, LENGTH, rng), policy_outputs=rng.standard_normal((LENGTH, 4), np.float32))
            for number in range(DIFFERENT)
        ]
        wanted = draft(load_card(CARD), name).model_copy(update={"policy_output": "logits"})
        with StepsWriter(store, wanted) as writer:
            for number in range(steps // LENGTH // len(names)):
                writer.write(replace(some[number % DIFFERENT], episode_id=number))
            writer.finish()


class Adviser(Script):
    """Eight labels for every request, at rows that its table shows."""

    def steps(self, request: Request) -> list[int]:
        """Spread over the rows."""
        rows = re.findall(r"^(\d+) ", request.params["messages"][0]["content"], re.MULTILINE)
        return [int(rows[place]) for place in np.unique(np.linspace(0, len(rows) - 1, LABELS).astype(int))]


def annotate(root: Path, names: Sequence[str], _: int) -> None:
    """Plan over every dataset, ask about some of its episodes, enter the labels."""
    store, labels = Store.open(root), 0
    for name in names:
        plan = plan_run(store, name, load_card(CARD), AnnotateConfig(model="none"), limit=EPISODES // len(names))
        labels += annotate_run(store, plan, Adviser()).totals.labels
    print(f"{labels:,} labels", flush=True)


def judge(root: Path, names: Sequence[str], _: int) -> None:
    """What `annotate quality` measures."""
    for name in names:
        check_labels(Store.open(root), name)


def refine(root: Path, names: Sequence[str], _: int) -> None:
    """All arms, with few episodes: the gate's memory does not depend on the steps."""
    gate = GateConfig(method="racing", select=4, accept=12, report=10, placebo_draws=2, first_seed=10**9)
    store, config = Store.open(root), ImproveConfig(refine=SHORT, gate=gate)
    outcome = improve(store, names[0], config, also=names[1:], baseline=Named(f"policy:{BASELINE}"))
    print(f"{len(outcome.comparison.trials)} refinements with {outcome.n_labels:,} labels", flush=True)


def estimate(root: Path, names: Sequence[str], _: int) -> None:
    """All arms, without a simulator; more folds and refits would take longer, not more memory."""
    store, config = Store.open(root), EstimateConfig(refine=SHORT, folds=2, placebo_draws=2, ope=OpeConfig(resamples=5))
    found = estimate_refinement(store, names[0], config, also=names[1:], baseline=Named(f"policy:{BASELINE}"))
    print(f"{len(found.trials)} refinements, {found.baseline.episodes:,} episodes", flush=True)


def train(root: Path, names: Sequence[str], _: int) -> None:
    """What a refinement holds: two arms, trained by two processes, and nothing played."""
    material, draws = gather(root, names)
    trained = parallel_map(partial(train_draws, material), [[draw] for draw in draws])
    print(f"{sum(len(candidates) for [candidates] in trained)} candidates", flush=True)


def score(root: Path, names: Sequence[str], _: int) -> None:
    """What an estimate holds: two arms scored on held-out labels, and two refits."""
    material, draws = gather(root, names)
    scored = list(parallel_map(partial(train_and_score, material, 2), draws))
    refits = parallel_map(partial(refit_number, material, [material.baseline], OpeConfig(), "greedy"), range(2))
    print(f"{len(scored)} arms, {len(list(refits))} refits", flush=True)


def gather(root: Path, names: Sequence[str]) -> tuple[Material, list[ArmDraw]]:
    """The pool's labels and baseline, and two arms."""
    store, baseline = Store.open(root), Named(f"policy:{BASELINE}")
    config = RefineConfig(snapshots=(30,))
    found = gather_material(store, read_manifest(store, names[0]), config, None, also=names[1:], baseline=baseline)
    return found.material, list_draws(1, labels=found.material.labels)[:2]


def ask(root: Path, names: Sequence[str], _: int) -> None:
    """A question about every step."""
    run_query(Store.open(root), "SELECT action_name, count(*), avg(reward) FROM steps GROUP BY ALL")


def watch(module: str, *arguments: object) -> Peak:
    """Run a module in a fresh process and look at that process and its children all the while."""
    started, seen = time.perf_counter(), [(0, 0)]
    process = subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], cwd=HOME)
    while process.poll() is None:
        found = [_memory(pid) for pid in _family(process.pid)]
        seen.append((sum(own for own, _ in found), sum(both for _, both in found)))
        time.sleep(SAMPLED_S)
    if process.returncode:
        raise SystemExit(f"{module} {' '.join(map(str, arguments))} ended with {process.returncode}")
    return Peak(max(own for own, _ in seen), max(both for _, both in seen), time.perf_counter() - started)


def _family(pid: int) -> list[int]:
    """A process and all that it has started."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(other for child in listed for other in _family(int(child)))]


def _memory(pid: int) -> tuple[int, int]:
    """Bytes of a process: anonymous ones, and its share of everything (proportional set size)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    sizes = {name: int(value) * 1024 for name, value, *_ in (line.split() for line in lines)}
    return sizes["Pss_Anon:"], sizes["Pss:"]


STAGES: dict[str, Callable[[Path, Sequence[str], int], None]] = {
    "write": write,
    "annotate": annotate,
    "judge labels": judge,
    "refine": refine,
    "refine once more": refine,
    "estimate": estimate,
    "ask in SQL": ask,
}
BRIEF: dict[str, Callable[[Path, Sequence[str], int], None]] = {
    "write": write,
    "annotate": annotate,
    "judge labels": judge,
    "train": train,
    "score": score,
}
"""As much memory in less time."""


def main() -> None:
    """Run and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000_000)
    parser.add_argument("--datasets", type=int, default=1)
    parser.add_argument("--brief", action="store_true", help="two arms only, and nothing is played")
    parser.add_argument("--stage", nargs=2, metavar=("STAGE", "STORE"), help="do this one alone; nothing is watched")
    parser.add_argument("--folder", type=Path, help="where the store is made; default: the temporary folder")
    options = parser.parse_args()
    if options.stage:
        names = [f"{NAME}{number:02}" for number in range(options.datasets)]
        (STAGES | BRIEF)[options.stage[0]](Path(options.stage[1]), names, options.steps)
        return
    with tempfile.TemporaryDirectory(prefix="trajnote-benchmark-", dir=options.folder) as folder:
        root, table = Path(folder) / "store", Table("stage", "seconds", "own MB", "with files MB", "steps/s")
        for name in BRIEF if options.brief else STAGES:
            sizes = ("--steps", options.steps, "--datasets", options.datasets)
            peak = watch("benchmarks.streaming", "--stage", name, root, *sizes)
            print(f"{name}: {peak.own / 1e6:,.0f} MB", flush=True)
            rate = f"{options.steps / peak.seconds:,.0f}"
            table.add_row(name, f"{peak.seconds:.1f}", f"{peak.own / 1e6:,.0f}", f"{peak.with_files / 1e6:,.0f}", rate)
        shards, columns = (sum(file.stat().st_size for file in (root / part).rglob("*")) for part in SIZES)
        Console(width=100).print(table)
    sizes = f"{shards / 1e9:.1f} GB of shards, {columns / 1e9:.1f} GB of mapped columns"
    print(f"{options.steps:,} steps in {options.datasets} datasets: {sizes}")
    print(f"{os.cpu_count()} cores, {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB, seed 0")


SIZES = ("rollouts", "columns")


if __name__ == "__main__":
    main()
