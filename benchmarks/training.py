"""How long one training step takes, as ratios to stock d3rlpy measured in one run. It prints and fails nothing.

    python benchmarks/training.py
    python benchmarks/training.py --whole

Every contestant trains networks of two hidden layers on batches of 320 of 20,000 made-up steps, in one thread, whose
processor time counts. They take turns, so that a busy machine slows all alike, and each one's fastest turn counts. What
they learn is not compared. `--only` names parts of the tables' titles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from d3rlpy.algos import DiscreteBCConfig, DiscreteCQLConfig, TD3PlusBCConfig
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import MDPDataset
from d3rlpy.models import VectorEncoderFactory
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax

from refine.config import RefineConfig
from refine.labels.labels import Labels
from refine.policies.mlp import MlpPolicy
from refine.training.fast.engine import create_training
from refine.training.packing import build_table
from refine.training.reference.d3rlpy_setup import NoopAdapterFactory, quiet
from refine.training.reference.factory import create_algorithm
from refine.training.reference.losses import AnnotatedBuffer
from refine.training.train import refine
from storage.datasets.reader import StepArrays
from storage.schema import Space

STEPS, LENGTH, INPUTS, ACTIONS, BATCH, QUOTA, BETA = 20_000, 200, 8, 4, 320, 64, 0.1
OBSERVATIONS = Space(kind="box", dtype="float32", size=INPUTS)
CHOICES = Space(kind="discrete", dtype="int64", size=1, n=ACTIONS)
FORCES = Space(kind="box", dtype="float32", size=ACTIONS, low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS)

Train = Callable[[int], Any]
"""Makes so many training steps."""


@dataclass(frozen=True)
class World:
    """Made-up steps, labels for one in fifty of them, and a baseline."""

    steps: StepArrays
    labels: Labels
    baseline: MlpPolicy

    @classmethod
    def of(cls, actions: Space, width: int, seed: int) -> World:
        """The world of one kind of actions and one width of hidden layers."""
        rng = np.random.default_rng(seed)
        index = np.arange(STEPS)
        final = index % LENGTH == LENGTH - 1
        rows = np.flatnonzero(~final)[::50]

        def act(count: int) -> Any:
            return rng.integers(0, ACTIONS, count) if actions.is_discrete else rng.uniform(-1, 1, (count, ACTIONS))

        points = rng.normal(size=(STEPS, INPUTS)).astype(np.float32)
        ends = index % LENGTH == LENGTH - 2
        columns = (points, act(STEPS), rng.normal(size=STEPS), ends, final & False, final, None)
        steps = StepArrays(index // LENGTH, (index % LENGTH).astype(np.int32), *columns)
        labels = Labels(rows, act(len(rows)), np.ones(len(rows)), np.zeros(len(rows)))
        sizes = [(INPUTS, width), (width, width), (width, ACTIONS)]
        weights = tuple(rng.normal(size=size) / np.sqrt(size[0]) for size in sizes)
        biases = tuple(np.zeros(size[1]) for size in sizes)
        head = "logits" if actions.is_discrete else "tanh"
        return cls(steps, labels, MlpPolicy(OBSERVATIONS, actions, weights, biases, "tanh", head))

    def buffer(self) -> AnnotatedBuffer:
        """The columnar buffer of `refine`."""
        return AnnotatedBuffer(build_table(self.steps, self.labels, self.baseline, quota=QUOTA))


def stock(config: Any, world: World) -> Train:
    """d3rlpy as it comes: its algorithm, its replay buffer."""
    discrete = world.baseline.action_space.is_discrete
    dataset = MDPDataset(
        observations=world.steps.observation,
        actions=world.steps.action.reshape(STEPS, -1),
        rewards=world.steps.reward[:, None].astype(np.float32),
        terminals=(np.arange(STEPS) % LENGTH == LENGTH - 1).astype(np.float32),
        action_space=ActionSpace.DISCRETE if discrete else ActionSpace.CONTINUOUS,
        action_size=ACTIONS,
    )
    algorithm = config.create()
    algorithm.build_with_dataset(dataset)
    return fitting(algorithm, dataset)


def columnar(algorithm: Any, world: World) -> Train:
    """`refine`'s reference: d3rlpy's algorithm with the annotated loss, through the columnar buffer."""
    config = RefineConfig(algorithm=algorithm, batch_size=BATCH, annotated_per_batch=QUOTA, critic_steps=0)
    return fitting(create_algorithm(world.baseline, config, BETA), world.buffer())


def fitting(algorithm: Any, buffer: Any) -> Train:
    return lambda count: algorithm.fit(buffer, count, count, logger_adapter=NoopAdapterFactory(), show_progress=False)


def bare_loop(world: World) -> Train:
    """One file of torch in the manner of CORL: tensors, random indices, autograd, Adam; the same annotated loss."""
    layers: list[nn.Module] = []
    for weight in world.baseline.weights[:-1]:
        layers += [nn.Linear(*weight.shape), nn.Tanh()]
    network = nn.Sequential(*layers, nn.Linear(*world.baseline.weights[-1].shape))
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    points = torch.from_numpy(world.steps.observation)
    references = log_softmax(torch.from_numpy(world.baseline.forward(world.steps.observation)), 1)
    rows, said = torch.from_numpy(world.labels.rows), torch.from_numpy(world.labels.suggestions)

    def train(count: int) -> None:
        for _ in range(count):
            labelled, others = torch.randint(len(rows), (QUOTA,)), torch.randint(STEPS, (BATCH - QUOTA,))
            logits = network(torch.cat([points[rows[labelled]], points[others]]))
            known, baseline = log_softmax(logits[QUOTA:], 1), references[others]
            divergence = (baseline.exp() * (baseline - known)).sum(1).mean()
            loss = cross_entropy(logits[:QUOTA], said[labelled]) + BETA * divergence
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return train


def fast(world: World, copies: int, **changes: Any) -> Train:
    """`refine`'s fast path, with several trainings at once."""
    options = {"betas": (BETA,) * copies, "batch_size": BATCH, "annotated_per_batch": QUOTA, "critic_steps": 0}
    training, buffer = create_training(world.baseline, RefineConfig(**options | changes)), world.buffer()

    def train(count: int) -> None:
        for _ in range(count):
            training.step(buffer.table.sample_columns(BATCH))

    return train


def at_once(world: World, numbers: Sequence[int], **changes: Any) -> dict[str, tuple[Train, int]]:
    """The fast path with so many trainings at once, and how many they are."""
    return {
        "fast path, one training" if number == 1 else f"fast path, {number} trainings at once, each": (
            fast(world, number, **changes),
            number,
        )
        for number in numbers
    }


def race(contestants: dict[str, tuple[Train, int]], count: int, turns: int) -> dict[str, float]:
    """Processor seconds per step of each and of each of its trainings, in its fastest turn."""
    best = dict.fromkeys(contestants, np.inf)
    for turn in range(turns + 1):
        for name, (train, trainings) in contestants.items():
            start = time.process_time()
            train(count if turn else 5)
            if turn:  # the first one is for warming up
                best[name] = min(best[name], (time.process_time() - start) / count / trainings)
    return best


def report(title: str, seconds: dict[str, float]) -> None:
    """A Markdown table whose first row is the competitor of the others."""
    first = next(iter(seconds.values()))
    print(f"\n| {title} | us per step | times stock |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value * 1e6:,.0f} | {first / value:.1f} |")


def wanted(title: str, options: argparse.Namespace) -> bool:
    """Whether a table was asked for."""
    return not options.only or any(words in title for words in options.only)


def compare_cloning(width: int, options: argparse.Namespace) -> None:
    """All ways to clone suggestions."""
    if not wanted("cloning", options):
        return
    world = World.of(CHOICES, width, options.seed)
    encoder = VectorEncoderFactory([width, width], activation="tanh")
    contestants = {
        "d3rlpy's DiscreteBC, its ReplayBuffer": (stock(DiscreteBCConfig(BATCH, encoder_factory=encoder), world), 1),
        "the reference: annotated, columnar buffer": (columnar("recipe", world), 1),
        "bare torch loop, annotated": (bare_loop(world), 1),
        **at_once(world, (1, 2, 8, 16)),
    }
    report(f"cloning, {width} wide", race(contestants, options.steps, options.turns))


def compare_critics(width: int, options: argparse.Namespace) -> None:
    """The algorithms with a critic. Before the actors move it learns alone, once for all betas: the critic's start."""
    encoder = VectorEncoderFactory([width, width], activation="tanh")
    discrete, continuous = World.of(CHOICES, width, options.seed), World.of(FORCES, width, options.seed)
    cql = {"": DiscreteCQLConfig(BATCH, encoder_factory=encoder)}
    td3 = {
        note: TD3PlusBCConfig(
            BATCH, actor_encoder_factory=encoder, critic_encoder_factory=encoder, update_actor_interval=interval
        )
        for note, interval in (("", 2), (", the actor in every step", 1))
    }
    for algorithm, configs, world in (("discrete_cql", cql, discrete), ("td3_plus_bc", td3, continuous)):
        if not wanted(algorithm, options):
            continue
        contestants = {
            **{f"d3rlpy's, its ReplayBuffer{note}": (stock(config, world), 1) for note, config in configs.items()},
            "the reference: annotated, columnar buffer": (columnar(algorithm, world), 1),
            **at_once(world, (1, 2), algorithm=algorithm),
            "fast path, the critic's start": (fast(world, 1, algorithm=algorithm, critic_steps=10**6), 1),
        }
        report(f"{algorithm}, {width} wide", race(contestants, options.steps, options.turns))


def compare_whole(width: int, options: argparse.Namespace) -> None:
    """One refinement of mode RA with its default betas and steps, by both engines."""
    print(f"\n| mode RA, {width} wide | reference, s | fast, s | times the reference |\n|---|---|---|---|")
    for actions in (CHOICES, FORCES):
        world, seconds = World.of(actions, width, options.seed), []
        for engine in ("reference", "fast"):
            start = time.perf_counter()
            refine(world.steps, world.labels, world.baseline, RefineConfig(mode="RA", engine=engine))
            seconds.append(time.perf_counter() - start)
        kind = "discrete" if actions.is_discrete else "continuous"
        print(f"| {kind} | {seconds[0]:.1f} | {seconds[1]:.1f} | {seconds[0] / seconds[1]:.1f} |", flush=True)


def main() -> None:
    """Run and print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="training steps per turn")
    parser.add_argument("--turns", type=int, default=24, help="turns of each contestant")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256], help="units of each hidden layer")
    parser.add_argument("--only", nargs="+", help="only tables whose title has one of these words")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up steps and the networks")
    parser.add_argument("--whole", action="store_true", help="time whole refinements instead of steps; minutes")
    options = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    with quiet(), threadpool_limits(1):
        for width in options.widths:
            for compare in (compare_whole,) if options.whole else (compare_cloning, compare_critics):
                compare(width, options)
    spent = time.perf_counter() - started
    turns = "once each" if options.whole else f"fastest of {options.turns} turns of {options.steps} steps"
    print(f"\nseed {options.seed}, {turns}, {spent:.0f} s")


if __name__ == "__main__":
    main()
