"""What the parts of the recipe are worth: with recorded labels, and with lists of rules that speak for every step.

    python -m benchmarks.recipe --labels Pendulum-v1 LunarLander-v3-continuous
    python -m benchmarks.recipe --lists FOLDER Pendulum-v1 Reacher-v5=150 Walker2d-v5

Each training starts from the example's baseline and passes the board's gate of its training seed; other seeds report. A
list is FOLDER/EXAMPLE.json, as `trajnote rules import` takes it, or else the example's own rules. `=150` collects so
many episodes of the baseline in place of the example's. The parts are taken away in turn: the noise that is fitted, the
steps of dense advice, the loss that ends at the bounds. Rows are JSON lines (`--out`); what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from annotate.importing import import_rules
from annotate.prompting import AnnotateConfig
from flows.datasets import CollectConfig, gather
from flows.demo import RECORDED_MODEL
from flows.labelling import LabelConfig, label
from flows.refinement.refinement import find_labels
from flows.simulation import Named
from refine.config import CONTINUOUS_DEFAULTS, DISCRETE_DEFAULTS, RefineConfig
from refine.labels import Labels
from refine.policies import MlpPolicy, Mode
from refine.policies.sb3_models import use_one_thread
from refine.training.fast import cloning
from refine.training.train import refine
from storage.datasets import StepArrays, read_manifest, read_steps
from storage.errors import Prerequisite
from storage.schema import Array, Space
from storage.store import Store

from .board.entries import list_entries
from .board.playing import Offer, pass_gate, play
from .board.scenes import Scene, Sources, set_scene


@dataclass(frozen=True)
class Case:
    """One environment with its steps and labels."""

    scene: Scene
    steps: StepArrays
    labels: Labels
    report: int  # test episodes of each training seed

    @property
    def name(self) -> str:
        """Of the environment, on the board."""
        return self.scene.entry.name

    def refine(self, seed: int, config: Mapping[str, Any]) -> dict[str, object]:
        """Train, pass the gate, and report on its last range of seeds."""
        started = time.process_time()
        snapshots = refine(self.steps, self.labels, self.scene.baseline, RefineConfig(seed=seed, **config))
        seconds = time.process_time() - started
        gated = pass_gate(self.scene, [Offer(each.name, each.policy) for each in snapshots], seed)
        loud = replace(gated.policy, log_std=self.scene.baseline.log_std)
        sampled = self._mean(gated.policy, seed, "sampled")
        same = loud.sha256 == gated.policy.sha256
        return {
            "accepted": gated.accepted,
            "greedy": self._mean(gated.policy, seed, "greedy"),
            "sampled": sampled,
            "sampled with the baseline's noise": sampled if same else self._mean(loud, seed, "sampled"),
            "core s": round(seconds, 1),
        }

    def _mean(self, policy: MlpPolicy, seed: int, mode: Mode) -> float:
        seeds = self.scene.entry.gate(seed).seeds.report[: self.report]
        return float(play(self.scene, policy, seeds, mode).returns.mean())


@contextmanager
def errors_beyond_bounds() -> Generator[None]:
    """The squared error of before, which pulls a mean beyond a bound back to it."""
    with mock.patch.object(cloning, "cutting_bounds", _endless):
        yield


def _endless(space: Space) -> tuple[Array, Array]:
    return np.full(space.size, -np.inf), np.full(space.size, np.inf)


def set_case(folder: Path, name: str, lists: Path | None, report: int) -> Case:
    """Take an environment, NAME or NAME=EPISODES, into a store of its own, with labels or a list of rules."""
    name, _, episodes = name.partition("=")
    sources, entry = Sources(Path("baselines")), list_entries()[name]
    store = Store.create(folder / name)
    scene = set_scene(store, entry, sources)
    example, dataset_id = sources.example(entry), scene.manifest.dataset_id
    if episodes:
        spec = Named(f"policy:{example / 'baseline'}")
        dataset_id = gather(
            store, CollectConfig(env_id=entry.env_id, policy=spec, mode="sampled", episodes=int(episodes))
        ).dataset_id
    steps = read_steps(store, dataset_id)
    if lists is None:
        if scene.labels is None:
            raise Prerequisite(scene.unlabelled)
        return Case(scene, steps, scene.labels, report)
    own = lists / f"{example.name}.json"
    if own.is_file():
        import_rules(store, dataset_id, own)
    else:
        asked = AnnotateConfig(model=RECORDED_MODEL, kind="rules")
        label(store, dataset_id, LabelConfig(provider="recorded", answers=example / "rules.jsonl", annotate=asked))
    opinions = find_labels(store, [dataset_id], None, "A", rules=True)
    labels = opinions.labels(read_manifest(store, dataset_id), steps, "A")
    return Case(scene, steps, labels, report)


def train_all(case: Case, seed: int, *, dense: bool) -> Iterator[dict[str, object]]:
    """One row per variant of the recipe."""
    discrete = case.scene.baseline.action_space.is_discrete
    few = dict(DISCRETE_DEFAULTS if discrete else CONTINUOUS_DEFAULTS) if dense else {}
    if not discrete:
        with errors_beyond_bounds():
            yield {"recipe": "before"} | case.refine(seed, few)
    yield {"recipe": "before" if discrete else "no error beyond bounds"} | case.refine(seed, few)
    if dense:
        yield {"recipe": "more steps, too"} | case.refine(seed, {})


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Means over the training seeds, and the range of the greedy returns."""
    for kind in dict.fromkeys((row["environment"], row["advice"], row["recipe"]) for row in rows):
        own = [row for row in rows if (row["environment"], row["advice"], row["recipe"]) == kind]
        greedy, *sampled = (
            np.array([row[name] for row in own]) for name in ("greedy", "sampled", "sampled with the baseline's noise")
        )
        digits = 2 if abs(greedy.mean()) < 20 else 0
        numbers = [f"{greedy.mean():.{digits}f} [{greedy.min():.{digits}f}, {greedy.max():.{digits}f}]"]
        numbers += [f"{each.mean():.{digits}f}" for each in sampled]
        accepted = f"{sum(row['accepted'] for row in own)} of {len(own)}"
        seconds = f"{np.mean([row['core s'] for row in own]):.0f}"
        print(f"| {' | '.join([*kind, accepted, *numbers, seconds])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="*", help="NAME or NAME=EPISODES")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--labels", action="store_true", help="the examples' recorded labels")
    kind.add_argument("--lists", type=Path, help="folder of lists of rules")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5), help="training seeds")
    parser.add_argument("--report", type=int, default=100, help="test episodes of each, at most")
    parser.add_argument("--out", type=Path, default=Path("recipe.jsonl"))
    asked = parser.parse_args()
    if asked.environments and not asked.labels and asked.lists is None:
        parser.error("name --labels or --lists FOLDER")
    use_one_thread()
    advice = "labels" if asked.labels else "rules"
    known = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    done = {(row["environment"], row["advice"], row["seed"]) for row in known}
    with tempfile.TemporaryDirectory() as folder, asked.out.open("a") as out:
        for name in asked.environments:
            case = set_case(Path(folder), name, asked.lists, asked.report)
            for seed in (seed for seed in asked.seeds if (case.name, advice, seed) not in done):
                for row in list(train_all(case, seed, dense=not asked.labels)):
                    known.append({"environment": case.name, "advice": advice, "seed": seed} | row)
                    print(json.dumps(known[-1]), file=out, flush=True)
    print_table(known)


if __name__ == "__main__":
    main()
