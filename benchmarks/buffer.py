"""How long it takes to build a dataset of transitions and to sample it, as ratios to d3rlpy. It fails nothing.

    python benchmarks/buffer.py

Both hold the same made-up steps. The columnar buffer also holds the baseline's outputs at every step, which d3rlpy has
no use for; so it is built without the cost of computing them, too. Turns alternate, and each one's fastest counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import MDPDataset, ReplayBuffer
from threadpoolctl import threadpool_limits

from refine.labels.labels import Labels
from refine.policies.mlp import MlpPolicy
from refine.training.packing import build_table
from refine.training.reference.d3rlpy_setup import quiet
from refine.training.reference.losses import AnnotatedBuffer
from storage.datasets.reader import StepArrays
from storage.schema import Space

LENGTH, INPUTS, ACTIONS, WIDTH, BATCH = 1000, 8, 4, 64, 256
OBSERVATIONS = Space(kind="box", dtype="float32", size=INPUTS)
CHOICES = Space(kind="discrete", dtype="int64", size=1, n=ACTIONS)


def make_steps(count: int, rng: np.random.Generator) -> StepArrays:
    """So many transitions, in episodes that terminate."""
    index = np.arange(count + count // LENGTH)
    step = index % (LENGTH + 1)
    final = step == LENGTH
    return StepArrays(
        index // (LENGTH + 1),
        step.astype(np.int32),
        rng.normal(size=(len(index), INPUTS)).astype(np.float32),
        rng.integers(0, ACTIONS, len(index)),
        rng.normal(size=len(index)),
        step == LENGTH - 1,
        final & False,
        final,
        None,
    )


def make_labels(steps: StepArrays, rng: np.random.Generator) -> Labels:
    """A label for one step in a thousand."""
    rows = np.flatnonzero(~steps.is_final)[::1000]
    return Labels(rows, rng.integers(0, ACTIONS, len(rows)), np.ones(len(rows)), np.zeros(len(rows)))


def make_baseline(rng: np.random.Generator) -> MlpPolicy:
    """A policy of two hidden layers."""
    sizes = [(INPUTS, WIDTH), (WIDTH, WIDTH), (WIDTH, ACTIONS)]
    weights = tuple(rng.normal(size=size) / np.sqrt(size[0]) for size in sizes)
    return MlpPolicy(OBSERVATIONS, CHOICES, weights, tuple(np.zeros(size[1]) for size in sizes), "tanh", "logits")


def build_stock(steps: StepArrays) -> ReplayBuffer:
    """d3rlpy's dataset of the same transitions."""
    logged = ~steps.is_final
    return MDPDataset(
        observations=steps.observation[logged],
        actions=steps.action[logged, None],
        rewards=steps.reward[logged, None].astype(np.float32),
        terminals=steps.terminated[logged].astype(np.float32),
        action_space=ActionSpace.DISCRETE,
        action_size=ACTIONS,
    )


class SilentPolicy(MlpPolicy):
    """A baseline whose outputs cost nothing."""

    def forward(self, observations: Any) -> Any:
        """Zeros."""
        return np.zeros((len(observations), ACTIONS), np.float32)


def race(tasks: dict[str, Callable[[], Any]], times: int, turns: int) -> dict[str, float]:
    """Seconds of each task, in its fastest turn."""
    best = dict.fromkeys(tasks, np.inf)
    for _ in range(turns):
        for name, task in tasks.items():
            start = time.perf_counter()
            for _ in range(times):
                task()
            best[name] = min(best[name], (time.perf_counter() - start) / times)
    return best


def report(title: str, seconds: dict[str, float]) -> None:
    """A Markdown table whose first row is the competitor of the others."""
    first = next(iter(seconds.values()))
    print(f"\n| {title} | ms | times d3rlpy's |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value * 1e3:,.3f} | {first / value:.1f} |")


def compare_building(steps: StepArrays, labels: Labels, baseline: MlpPolicy, turns: int) -> None:
    """From columns of steps to something that can be sampled."""
    silent = SilentPolicy(**{field.name: getattr(baseline, field.name) for field in fields(baseline)})
    tasks = {
        "d3rlpy's MDPDataset": lambda: build_stock(steps),
        "columnar buffer": lambda: AnnotatedBuffer(build_table(steps, labels, silent)),
        "the same with the baseline's outputs": lambda: AnnotatedBuffer(build_table(steps, labels, baseline)),
    }
    report(f"building {len(steps) - len(steps.starts):,} transitions", race(tasks, 1, turns))


def compare_sampling(steps: StepArrays, labels: Labels, baseline: MlpPolicy, turns: int) -> None:
    """Batches of random transitions."""
    stock, columnar = build_stock(steps), AnnotatedBuffer(build_table(steps, labels, baseline))
    tasks = {
        "d3rlpy's ReplayBuffer": lambda: stock.sample_transition_batch(BATCH),
        "columnar buffer, as d3rlpy takes it": lambda: columnar.sample_transition_batch(BATCH),
        "columnar buffer, as the fast engine takes it": lambda: columnar.table.sample_columns(BATCH),
    }
    report(f"sampling {BATCH} of them", race(tasks, 50, turns))


def main() -> None:
    """Run and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000, help="of the dataset")
    parser.add_argument("--turns", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up steps, labels and baseline")
    options = parser.parse_args()
    started = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    steps = make_steps(options.transitions, rng)
    world = steps, make_labels(steps, rng), make_baseline(rng)
    with quiet(), threadpool_limits(1):
        compare_building(*world, options.turns)
        compare_sampling(*world, options.turns)
    spent = time.perf_counter() - started
    print(f"\nseed {options.seed}, fastest of {options.turns} turns, {spent:.0f} s")


if __name__ == "__main__":
    main()
