"""The refinements that `noise.py` compares: environments, their clean labels, and one refinement through the gate.

One `refine_and_judge` depends on its cell alone and writes nothing. The table is in `noise.py`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from annotate.prompting.requests import AnnotateConfig
from benchmarks.label_noise import Noise, corrupt_labels, share_changed
from flows.datasets.collection import CollectConfig, gather
from flows.demo import take_example
from flows.labelling.annotation import LabelConfig, label
from flows.policies import find_recorded_baseline
from flows.policies.loading import load_policy
from flows.refinement.comparison import GateConfig, Method, try_fields
from flows.refinement.evaluator import Candidate, Returns
from flows.simulation.actors import NetworkActor
from flows.simulation.environments import Spaces
from flows.simulation.workers import play_policies
from refine.config import RefineConfig
from refine.evaluation.gate import SeedPlan
from refine.labels.labels import Labels, labels_from_annotations
from refine.policies.mlp import MlpPolicy
from storage.annotations.annotations import load_annotations
from storage.datasets.columns import StepArrays
from storage.datasets.reader import read_manifest, read_steps
from storage.schema import Manifest
from storage.store import Store

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RECORDED = {"LunarLander-v3": "lunarlander", "CartPole-v1": "cartpole"}
MIRRORS = {"LunarLander-v3": (0, 3, 2, 1), "CartPole-v1": (1, 0)}
EXPERT_LABELS = 250
EXPERT_EPISODES = 30
SEEDS_APART = 1000

Kind = Noise | Literal["clean", "baseline"]
Recipe = Literal["plain", "robust"]
RECIPES: tuple[Recipe, ...] = ("plain", "robust")


class Effort(NamedTuple):
    """How much evidence the gate takes; None: its own number."""

    method: Method = "racing"
    select: int | None = None
    accept: int | None = None
    report: int = 100


class Cell(NamedTuple):
    """One refinement: everything that decides its row."""

    env_id: str
    kind: Kind
    rate: float
    recipe: Recipe
    seed: int  # of the noise, of the training, and of the gate's episodes
    first_seed: int
    effort: Effort

    @property
    def seeds(self) -> SeedPlan:
        """The gate's; each training seed has its own, so that refinements are independent."""
        first_seed = self.first_seed + SEEDS_APART * self.seed
        return GateConfig(first_seed=first_seed, **self.effort._asdict()).seeds


class Memory:
    """Plays policies of one environment in this process; each pair of policy and range of seeds once."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._known: dict[tuple[str, range], Returns] = {}

    def returns(self, contestants: Sequence[Candidate], seeds: range, purpose: str = "") -> list[Returns]:
        """As a judge answers."""
        missing = {c.sha256: c.actor for c in contestants if (c.sha256, seeds) not in self._known}
        home = self._manifest
        played = play_policies(
            str(home.env_id), home.env_kwargs, [*missing.values()], seeds, workers=1, max_steps=home.max_steps
        )
        self._known |= {(sha256, seeds): found for sha256, found in zip(missing, played, strict=True)}
        return [self._known[contestant.sha256, seeds] for contestant in contestants]


class Scene(NamedTuple):
    """A dataset, its clean labels, and the policy that made it."""

    manifest: Manifest
    steps: StepArrays
    labels: Labels
    baseline: MlpPolicy
    memory: Memory


class Home(NamedTuple):
    """Where scenes are found; small enough to send along with every cell."""

    store: Path
    datasets: dict[str, str]  # environment -> dataset
    experts: dict[str, str]  # environment -> specification of a policy, where no recorded answers are


def prepare(root: Path, env_ids: Sequence[str], baselines: Path | None) -> Home:
    """Put the datasets of some environments into a new store, with recorded answers where there are some.

    Args:
        root: folder of the store.
        env_ids: of the environments.
        baselines: folder with `ENV_ID/baseline` and `ENV_ID/expert`, for those without recorded answers.
    """
    store, datasets, experts = Store.create(root), dict[str, str](), dict[str, str]()
    for env_id in env_ids:
        if env_id in RECORDED:
            datasets[env_id] = _take_recorded(store, EXAMPLES / RECORDED[env_id])
        elif baselines is not None:
            asked = CollectConfig(
                env_id=env_id, policy=_policy(baselines, env_id, "baseline"), mode="sampled", episodes=EXPERT_EPISODES
            )
            datasets[env_id] = gather(store, asked).dataset_id
            experts[env_id] = _policy(baselines, env_id, "expert")
    return Home(root, datasets, experts)


def _policy(baselines: Path, env_id: str, name: str) -> str:
    return f"policy:{(baselines / env_id / name).resolve()}"


def _take_recorded(store: Store, folder: Path) -> str:
    dataset_id = take_example(store, folder).dataset_id
    asked = AnnotateConfig(model="claude")
    label(store, dataset_id, LabelConfig(provider="recorded", answers=folder / "answers.jsonl", annotate=asked))
    return dataset_id


@functools.lru_cache(maxsize=3)
def _scene(store_root: Path, dataset_id: str, expert: str | None) -> Scene:
    store = Store.open(store_root)
    manifest, steps = read_manifest(store, dataset_id), read_steps(store, dataset_id)
    baseline = find_recorded_baseline(store, str(manifest.policy_sha256))
    if baseline is None:
        raise RuntimeError(f"The store does not hold the baseline of {dataset_id}.")
    if expert is None:
        labels = labels_from_annotations(load_annotations(store, dataset_id), steps, manifest.action_space)
    else:
        labels = _ask_expert(expert, manifest, steps)
    return Scene(manifest, steps, labels, baseline, Memory(manifest))


def _ask_expert(expert: str, manifest: Manifest, steps: StepArrays) -> Labels:
    """The expert's greedy actions at states spread evenly over all logged steps."""
    acted = np.flatnonzero(~steps.is_final)
    rows = acted[np.linspace(0, len(acted) - 1, EXPERT_LABELS).round().astype(np.int64)]
    policy = load_policy(expert, Spaces(manifest.observation_space, manifest.action_space))
    if not isinstance(policy, NetworkActor):
        raise TypeError(f"{expert} is no network")
    suggestions = policy.act(steps.observation[rows]).actions.astype(np.float64)
    return Labels(rows, suggestions, np.ones(len(rows)), np.zeros(len(rows)))


def refine_and_judge(task: tuple[Home, Cell]) -> dict[str, Any]:
    """One refinement from its labels to its report: what is in force after the gate, and what it returns."""
    home, cell = task
    started = time.process_time()
    scene = _scene(home.store, home.datasets[cell.env_id], home.experts.get(cell.env_id))
    baseline = Candidate.of(scene.baseline, "baseline")
    found: dict[str, Any] = {"wrong": 0.0, "accepted": None, "winner": "", "candidates": 0}
    kept = baseline
    if cell.kind != "baseline":
        labels = _labels_of(cell, scene)
        kept, found = _refine(cell, scene, labels, baseline)
        found["wrong"] = share_changed(scene.labels, labels)
    (report,) = scene.memory.returns([kept], cell.seeds.report)
    return {**cell._asdict(), **found, "report": report.tolist(), "seconds": time.process_time() - started}


def _labels_of(cell: Cell, scene: Scene) -> Labels:
    if cell.kind in ("clean", "baseline"):
        return scene.labels
    space, mirror = scene.manifest.action_space, MIRRORS.get(cell.env_id)
    return corrupt_labels(scene.labels, cell.kind, cell.rate, scene.steps, space, seed=cell.seed, mirror=mirror)


def _refine(cell: Cell, scene: Scene, labels: Labels, baseline: Candidate) -> tuple[Candidate, dict[str, Any]]:
    from refine.training.train import refine_candidates  # seconds, and only where something is trained

    config = RefineConfig(seed=cell.seed, robust=cell.recipe == "robust")
    snapshots = refine_candidates(scene.steps, labels, scene.baseline, config)
    candidates = [Candidate.of(snapshot.policy, "refined") for snapshot in snapshots]
    play = scene.memory.returns
    (finding,) = try_fields(play, baseline, [candidates], cell.seeds, cell.effort.method)
    accepted, winner = finding.decision.accepted, finding.winner
    found = {
        "accepted": accepted,
        "winner": snapshots[winner].name,
        "candidates": len(candidates),
        "selection": [round(mean, 2) for mean in finding.selection],
        "names": [snapshot.name for snapshot in snapshots],
    }
    return candidates[winner] if accepted else baseline, found
