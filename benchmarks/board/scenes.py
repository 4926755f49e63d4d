"""What all rows of one environment share: its dataset, its baseline, its expert and the labels, taken into a store.

An example's rollouts are taken as they are; where there is none, the baseline's sampled episodes are collected.

An expert answers for the oracle: a trained policy, or a controller by hand where PPO finds none. Both mountain cars
need a long way without any reward before the first one; pushing the way the car is moving pumps energy into it and
reaches the goal from every start. Both landers have Gymnasium's own heuristic, since PPO hovers for longer than two
cores can train it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from annotate.costs import estimate_calls, price
from annotate.importing import import_rules
from annotate.prompting.requests import DEFAULT_MODEL, AnnotateConfig
from flows.datasets.collection import CollectConfig, gather
from flows.demo import RECORDED_MODEL, take_example
from flows.labelling.annotation import LabelConfig, label, plan
from flows.simulation.trust import Named
from refine.labels.labels import Labels, labels_from_annotations
from refine.policies.mlp import MlpPolicy
from storage.annotations.annotations import load_annotations
from storage.datasets.reader import StepArrays, read_steps
from storage.errors import Prerequisite, TrajnoteError
from storage.schema import Array, Manifest, content_id
from storage.store import Store

from .entries import Entry, plain_name

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FIRST_LIST = "rules.jsonl"
ROUNDS = 2
"""Of relabelling, as `--relabel 2`."""
FURTHER_SEED = 1_000_000  # of episodes beyond the dataset's; far from other datasets, gates and trainings
STATES_PER_EPISODE = 8  # that the oracle labels where no annotator has


class Expert(Protocol):
    """What the oracle asks."""

    @property
    def sha256(self) -> str:
        """Names it in the rows' keys."""
        ...

    def advise(self, observations: Array) -> Array:
        """Its actions, (N,) or (N, m), at (N, n) observations."""
        ...


@dataclass(frozen=True)
class TrainedExpert:
    """The greedy actions of a policy."""

    policy: MlpPolicy

    @property
    def sha256(self) -> str:
        """The policy's."""
        return self.policy.sha256

    def advise(self, observations: Array) -> Array:
        """Its greedy actions."""
        return self.policy.act(observations).actions


@dataclass(frozen=True)
class Controller:
    """A rule by hand, known by the environment that it is for."""

    env: str

    @property
    def sha256(self) -> str:
        """Of its name, for its rule is in the code."""
        return content_id("x_", ["controller", self.env])

    def advise(self, observations: Array) -> Array:
        """Its actions."""
        return CONTROLLERS[self.env](observations)


def _land(observations: Array, *, continuous: bool) -> Array:
    """Gymnasium's heuristic, state by state."""
    from gymnasium.envs.box2d.lunar_lander import LunarLander, heuristic

    environment = LunarLander(continuous=continuous)
    return np.array([heuristic(environment, state) for state in observations])


CONTROLLERS: Mapping[str, Callable[[Array], Array]] = {
    "MountainCar-v0": lambda seen: np.where(seen[:, 1] < 0, 0, 2),
    "LunarLander-v3": partial(_land, continuous=False),
    "LunarLander-v3-continuous": partial(_land, continuous=True),
    "MountainCarContinuous-v0": lambda seen: np.where(seen[:, 1:] < 0, -1.0, 1.0),
}


@dataclass(frozen=True)
class Sources:
    """Where policies and answers come from."""

    baselines: Path  # NAME/{baseline,expert}, as `python -m benchmarks.baselines` writes them
    answers: Path | None = None  # recorded answers in place of the example's
    rules: str = FIRST_LIST  # the list of rules, in the example's folder
    feedback_steps: int = 0  # environment steps that the list took
    rounds: int = ROUNDS
    episodes: int = 0  # of the baseline that rules learn from; as many as there are when 0
    study: bool = False  # labels after a study of the dataset, in place of those without
    examples: Path = EXAMPLES

    def example(self, entry: Entry) -> Path:
        """The folder of an environment's example, which may not be there."""
        folders = sorted(self.examples.iterdir()) if self.examples.is_dir() else []
        named = (folder for folder in folders if plain_name(folder.name) in entry.example_names)
        return next(named, self.examples / entry.example_names[0])

    def labels(self, entry: Entry) -> Path:
        """The file of recorded answers."""
        return self.answers or self.example(entry) / ("studied.jsonl" if self.study else "answers.jsonl")

    def policies(self, entry: Entry, role: str) -> list[Path]:
        """The folders that may hold a policy, the example's first."""
        return [self.example(entry) / role, self.baselines / entry.name / role]

    def trainings(self, entry: Entry) -> list[Path]:
        """The folders that may hold the training that a baseline was taken from."""
        checkpoints = sorted((self.baselines / entry.name / "checkpoints").glob("*"))
        return [*self.policies(entry, "baseline"), *checkpoints]


@dataclass(frozen=True)
class Scene:
    """Everything that the rows of one environment start from, small enough to send to another process."""

    entry: Entry
    store_root: Path
    manifest: Manifest
    baseline: MlpPolicy
    expert: Expert | None
    model_zip: Path | None  # the baseline's training in Stable-Baselines3
    labels: Labels | None  # of the annotator
    critical: NDArray[np.int64]  # rows of the steps that it marked as critical
    dollars: float | None  # estimated
    unlabelled: str  # why there are no labels of an annotator; empty when there are
    rules_run: str | None = None  # the run that gave the annotator's list of rules
    unruled: str = ""  # why there is none
    rules: str = FIRST_LIST  # the list's file
    feedback_steps: int = 0  # environment steps that the list took
    rounds: int = ROUNDS  # of relabelling
    further: tuple[str, ...] = ()  # datasets of the baseline that rules learn from, beside the first
    episodes: int = 0  # of the baseline that rules learn from, in all; those of the dataset when 0
    study: bool = False  # whether the labels were given after a study of the dataset

    @property
    def title(self) -> str:
        """The environment's name on the board, with a later list than the first, a study, and more episodes."""
        parts = [
            self.entry.name,
            *([] if self.rules == FIRST_LIST else [Path(self.rules).stem]),
            *(["studied"] if self.study else []),
            *([f"{self.episodes} episodes"] if self.further else []),
        ]
        return ", ".join(parts)

    def title_of(self, arm: str) -> str:
        """The name in a row of one arm: the baseline is the same with every list."""
        return self.entry.name if arm == "baseline" else self.title

    @property
    def content_id(self) -> str:
        """Named by everything that decides a row of it."""
        labels = {} if self.labels is None else {k: np.asarray(v).tolist() for k, v in vars(self.labels).items()}
        policies = [self.baseline.sha256, self.expert.sha256 if self.expert else None]
        sizes = [self.entry.select, self.entry.accept, self.entry.report, self.entry.mode]
        return content_id("s_", [self.manifest.dataset_id, policies, labels, self.critical.tolist(), sizes])

    def read_steps(self) -> StepArrays:
        """The logged steps."""
        return read_steps(Store.open(self.store_root), self.manifest.dataset_id)


def set_scene(store: Store, entry: Entry, sources: Sources) -> Scene:
    """Take an environment's dataset, policies and labels into the store; a second call changes nothing.

    Raises:
        Prerequisite: when there is no baseline.
    """
    folder = _find_policy(sources.policies(entry, "baseline"), entry)
    manifest = _take_dataset(store, entry, sources, folder)
    baseline = _read_policy(folder)
    scene: dict[str, Any] = {"labels": None, "critical": np.zeros(0, np.int64), "dollars": None, "unlabelled": ""}
    try:
        scene |= _take_labels(store, manifest, sources.labels(entry), entry.card, study=sources.study)
    except TrajnoteError as error:
        scene["unlabelled"] = error.problem
    try:
        scene["rules_run"] = _take_rules(store, manifest, sources.example(entry) / sources.rules, entry.card)
    except TrajnoteError as error:
        scene["unruled"] = error.problem
    return Scene(
        entry=entry,
        store_root=store.root,
        manifest=manifest,
        baseline=baseline,
        expert=_find_expert(sources.policies(entry, "expert"), entry),
        model_zip=_find_model(sources.trainings(entry), baseline),
        rules=sources.rules,
        feedback_steps=sources.feedback_steps,
        rounds=sources.rounds,
        further=_collect_further(store, entry, manifest, folder, sources.episodes),
        episodes=sources.episodes,
        study=sources.study,
        **scene,
    )


def spread_states(steps: StepArrays, count: int = STATES_PER_EPISODE) -> NDArray[np.int64]:
    """Rows in the middle of `count` equal windows of every episode; fewer where an episode is shorter."""
    windows = (np.arange(count) + 0.5) / count
    rows = steps.starts[:, None] + (windows * steps.lengths[:, None]).astype(np.int64)
    return np.unique(rows)


def logged_labels(rows: NDArray[np.int64], steps: StepArrays, baseline: MlpPolicy) -> Labels:
    """The logged actions at some rows as labels of weight 1: what plain cloning imitates."""
    return suggested_labels(rows, steps.action[rows], baseline)


def suggested_labels(rows: NDArray[np.int64], actions: Array, baseline: MlpPolicy) -> Labels:
    """Actions at some rows as labels of weight 1, without implicit rewards."""
    dtype = np.int64 if baseline.action_space.is_discrete else np.float64
    return Labels(rows, np.asarray(actions, dtype=dtype), np.ones(len(rows)), np.zeros(len(rows)))


def _find_policy(folders: Sequence[Path], entry: Entry) -> Path:
    for folder in folders:
        if (folder / "policy.json").is_file():
            return folder
    raise Prerequisite(
        f"no baseline of {entry.name}",
        f"Train one: python -m benchmarks.baselines {entry.name}; looked for in {' and '.join(map(str, folders))}.",
    )


def _find_expert(folders: Sequence[Path], entry: Entry) -> Expert | None:
    if entry.name in CONTROLLERS:
        return Controller(entry.name)
    found = next((folder for folder in folders if (folder / "policy.json").is_file()), None)
    return None if found is None else TrainedExpert(_read_policy(found))


def _find_model(folders: Sequence[Path], baseline: MlpPolicy) -> Path | None:
    """The first `model.zip` that lies beside a policy equal to the baseline."""
    for folder in folders:
        model = folder / "model.zip"
        if model.is_file() and (folder / "policy.json").is_file() and _read_policy(folder).sha256 == baseline.sha256:
            return model.resolve()
    return None


def _read_policy(folder: Path) -> MlpPolicy:
    return MlpPolicy.from_files({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})


def _take_dataset(store: Store, entry: Entry, sources: Sources, baseline: Path) -> Manifest:
    example = sources.example(entry)
    if (example / "rollouts").is_dir():
        return take_example(store, example)
    return _gather_baseline(store, entry, baseline, entry.episodes)


def _collect_further(store: Store, entry: Entry, manifest: Manifest, baseline: Path, episodes: int) -> tuple[str, ...]:
    """What the baseline plays on until there are so many episodes; nothing where there are as many already."""
    missing = episodes - manifest.episodes
    return (_gather_baseline(store, entry, baseline, missing, seed=FURTHER_SEED).dataset_id,) if missing > 0 else ()


def _gather_baseline(store: Store, entry: Entry, baseline: Path, episodes: int, *, seed: int = 0) -> Manifest:
    config = CollectConfig(
        env_id=entry.env_id,
        env_kwargs=entry.env_kwargs,
        policy=Named(f"policy:{baseline}"),
        mode="sampled",
        episodes=episodes,
        seed=seed,
    )
    return gather(store, config, card=entry.card)


def _take_rules(store: Store, manifest: Manifest, answers: Path, card: str | None) -> str:
    """A recorded list of rules, as an answer or as `rules import` takes it; returns the run that gave it."""
    if not answers.is_file():
        raise Prerequisite(f"no recorded rules in {answers.parent.name}/{answers.name}")
    if answers.suffix == ".json":
        return import_rules(store, manifest.dataset_id, answers, RECORDED_MODEL).run_id
    asked = AnnotateConfig(model=RECORDED_MODEL, kind="rules")
    config = LabelConfig(provider="recorded", answers=answers, annotate=asked, card=card)
    return label(store, manifest.dataset_id, config).run_id


def _take_labels(store: Store, manifest: Manifest, answers: Path, card: str | None, *, study: bool) -> dict[str, Any]:
    """Recorded answers as labels, the rows that were marked as critical, and what the answers would have cost."""
    if not answers.is_file():
        raise Prerequisite(f"no recorded answers in {answers.parent.name}/{answers.name}")
    asked = AnnotateConfig(model=RECORDED_MODEL)
    config = LabelConfig(provider="recorded", answers=answers, annotate=asked, card=card, study=study)
    run_id = label(store, manifest.dataset_id, config).run_id  # before the plan, which shows an answered study
    requests = plan(store, manifest.dataset_id, config).plan.requests
    notes = load_annotations(store, manifest.dataset_id, [run_id])
    steps = read_steps(store, manifest.dataset_id)
    marked = [(note.episode_id, note.step) for note in notes if note.critical]
    critical = steps.rows_of([e for e, _ in marked], [s for _, s in marked]) if marked else np.zeros(0, np.int64)
    return {
        "labels": labels_from_annotations(notes, steps, manifest.action_space),
        "critical": np.unique(critical),
        "dollars": price(DEFAULT_MODEL, estimate_calls(requests, asked.windows)),
    }
