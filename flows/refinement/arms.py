"""The arms of a comparison: the labels of each, the candidates trained with them, and how placebos are ranked.

Training arms is one call that any process can make; `comparison.py` judges the candidates. Arms are ranked by few
common episodes, and placebos are drawn until it is clear. The annotator's arm and every draw of a placebo are entered
in the same way, on the same seeds, without a search: only then is the labels' rank among the draws exact. Ranked is the
mean return of what each training ends with, actions drawn where there is a distribution: a greedy policy that hovers is
moved by almost any labels, its distribution is not. What the ranks prove is in `refine/evaluation`.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

import refine
from refine.config import RefineConfig, Snapshot
from refine.evaluation import Rank, rank_labels
from refine.labels import (
    Arm,
    Labels,
    ReferenceArm,
    RuleLabels,
    label_random_states,
    rule_arm_labels,
    rule_arm_lists,
)
from refine.policies import MlpPolicy, Mode, RulePolicy
from storage.datasets import ENOUGH_ROWS, StepArrays, read_manifest, read_pool
from storage.disk import Hold, decode_json, map_arrays, share_arrays
from storage.errors import BadInput, DamagedStore
from storage.policies import load_training, note_training, save_training
from storage.schema import content_id, sha256_bytes
from storage.store import Store

from ..runtime import Report
from .evaluator import Candidate, Returns

AnyArm = Arm | ReferenceArm | Literal["rules_played"]
RULES_PLAYED: Literal["rules_played"] = "rules_played"
"""The arm of the annotator's rules themselves, which are not trained."""
PLACEBOS: tuple[Arm, ...] = ("no_labels", "shuffled", "random", "permuted")
CHANCE: tuple[AnyArm, ...] = ("shuffled", "random", "permuted", "random_states")
"""Arms that depend on chance, so that each is drawn several times."""
_UNRANKED_DRAWS = 3  # of an arm of chance that only informs
_TOGETHER, _NARROW = 6, 128  # draws at once; units of a layer up to which that is faster
_PLACEBO_STREAM = 0x9AC  # keeps the placebos' random numbers apart from the learner's


@dataclass(frozen=True)
class ArmDraw:
    """One refinement of one arm; arms that depend on chance have several draws."""

    arm: AnyArm
    number: int  # from 0

    @property
    def name(self) -> str:
        """Its name in tables and reasons."""
        return f"{self.arm} {self.number + 1}" if self.arm in CHANCE else self.arm


def list_draws(
    placebo_draws: int, references: Sequence[ReferenceArm] = (), *, labels: Labels | None = None
) -> list[ArmDraw]:
    """The labels, plain cloning and the oracle once each, placebos that depend on chance `placebo_draws` times.

    Args:
        placebo_draws: of each of them.
        references: arms that only inform.
        labels: only those of rules with formulas have the arm `permuted`.
    """
    has_formulas = isinstance(labels, RuleLabels) and labels.has_formulas
    placebos = PLACEBOS if has_formulas else PLACEBOS[:-1]
    arms: list[AnyArm] = ["labels", *placebos, *references]
    counts = dict.fromkeys(CHANCE, placebo_draws) | {"random_states": min(placebo_draws, _UNRANKED_DRAWS)}
    return [ArmDraw(arm, n) for arm in arms for n in range(counts.get(arm, 1))]


@dataclass(frozen=True)
class Oracle:
    """An expert's actions at the labelled states."""

    labels: Labels
    spec: str  # how the expert was named
    sha256: str  # hash of what decides its actions


@dataclass(frozen=True)
class Material:
    """What all arms of a comparison share, to be sent to other processes; a million labels or more travel as files."""

    store_root: Path
    dataset_id: str
    labels: Labels
    baseline: MlpPolicy
    config: RefineConfig
    oracle: Oracle | None = None  # only the arm of that name needs it
    also: tuple[str, ...] = ()  # further datasets whose steps and labels count, after those of the first
    baseline_id: str | None = None  # the baseline's id in the store; has no effect on the result
    units: Mapping[str, str] = field(default_factory=dict)  # of the components' columns; for the arm `permuted`
    log_dir: Path | None = None  # where the training with the annotator's labels is logged; has no effect on the result

    def is_logged(self, draw: ArmDraw) -> bool:
        """Whether the training of a draw is logged, so that a cached one will not do."""
        return self.log_dir is not None and draw.arm == "labels"

    @property
    def dataset_ids(self) -> tuple[str, ...]:
        """All datasets, in the order of their rows."""
        return (self.dataset_id, *self.also)

    @property
    def played_rules(self) -> RulePolicy | None:
        """The annotator's lists of rules, played; None for labels of single steps."""
        return RulePolicy(self.labels.lists, self.baseline) if isinstance(self.labels, RuleLabels) else None

    @property
    def together(self) -> int:
        """Draws that are best trained at once: small networks share what a batch costs, wide ones fill the cache."""
        width = max(weight.shape[1] for weight in self.baseline.weights)
        alike = self.config.shares_batches and self.log_dir is None
        return _TOGETHER if alike and width <= _NARROW else 1

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "_shared"}
        return state | ({"labels": self._shared.labels} if len(self.labels) > ENOUGH_ROWS else {})

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        labels = state["labels"]
        self.__dict__.update(state, labels=labels.open() if isinstance(labels, _LabelFiles) else labels)

    @cached_property
    def _shared(self) -> _Shared:
        """Files of the labels, which stay as long as this object."""
        labels, folder = self.labels, Store.locate(self.store_root).labels_dir / content_id("", self.labels.identity)
        columns = {name: value for name, value in vars(labels).items() if isinstance(value, np.ndarray)}
        others = {name: value for name, value in vars(labels).items() if name not in columns}
        return _Shared(share_arrays(folder, columns), _LabelFiles(type(labels), folder, tuple(columns), others))

    @cached_property
    def content_id(self) -> str:
        """Named by everything that decides the candidates of an arm, except the oracle."""
        made_of: list[object] = [self.dataset_id, self.labels.identity, self.baseline.sha256, self.config]
        made_of += [dict(self.units)] if self.units else []
        return content_id("m_", [*made_of, list(self.also)] if self.also else made_of)


class _LabelFiles(NamedTuple):
    """Labels whose columns are files, which every process maps."""

    kind: type[Labels]
    folder: Path
    columns: Sequence[str]
    others: Mapping[str, Any]  # fields that are no columns

    def open(self) -> Labels:
        """The labels, their columns mapped."""
        return self.kind(**map_arrays(self.folder, self.columns), **self.others)


class _Shared(NamedTuple):
    """Labels as files, and what keeps those."""

    hold: Hold
    labels: _LabelFiles


def train_draws(material: Material, draws: Sequence[ArmDraw]) -> list[list[Snapshot]]:
    """Refine the baseline with the labels of draws; each gets the same bits whichever others are trained beside it.

    Args:
        material: dataset, labels, baseline and configuration.
        draws: `Material.together` of them at most; one that is logged is alone.

    Returns:
        The candidates of each draw, in the order of training.
    """
    from refine.training import refine_each  # only the processes that train need it

    steps = read_once(Store.locate(material.store_root), material.dataset_ids)
    labels = [labels_of(material, draw, steps) for draw in draws]
    log_dir = material.log_dir if all(map(material.is_logged, draws)) else None
    return refine_each(steps, labels, material.baseline, material.config, log_dir=log_dir)


def tell_trained(store: Store, report: Report, done: int, total: int) -> None:
    """Show and note how many draws are trained."""
    report("train the arms", done, total)
    note_training(store, done, total)


def read_once(store: Store, dataset_ids: Sequence[str]) -> StepArrays:
    """The rows of datasets as `read_pool` has them; what this process has read last is not read again.

    Raises:
        BadInput, DamagedStore: as `read_pool`.
    """
    manifests = tuple(read_manifest(store, dataset_id).model_dump_json() for dataset_id in dataset_ids)
    return _read_last(store.root, tuple(dataset_ids), manifests)


@lru_cache(maxsize=1)
def _read_last(root: Path, dataset_ids: tuple[str, ...], _manifests: tuple[str, ...]) -> StepArrays:
    return read_pool(Store.locate(root), dataset_ids)


def labels_of(material: Material, draw: ArmDraw, steps: StepArrays) -> Labels:
    """The labels that one draw of an arm is trained with.

    Raises:
        BadInput: for the arm `oracle` without an expert.
    """
    baseline, rng = material.baseline, _chance_of(material, draw)
    if draw.arm == "random_states":
        return label_random_states(material.labels, steps, baseline.observation_space, rng)
    if draw.arm == RULES_PLAYED:
        raise BadInput("Rules that are played are not trained.")
    if draw.arm != "oracle":
        space, units = baseline.action_space, material.units
        return rule_arm_labels(draw.arm, material.labels, steps, space, rng, units=units, draw=draw.number)
    if material.oracle is None:
        raise BadInput("The arm oracle needs an expert's actions.", "Name its policy with --expert.")
    return material.oracle.labels


def rules_of(material: Material, draw: ArmDraw) -> RulePolicy | None:
    """What one draw of an arm imitates, played: the annotator's rules, or a placebo's; None if it has no rules."""
    if not isinstance(material.labels, RuleLabels) or draw.arm in ("random_states", "oracle", RULES_PLAYED):
        return None
    steps = read_once(Store.locate(material.store_root), material.dataset_ids)
    space, rng = material.baseline.action_space, _chance_of(material, draw)
    lists = rule_arm_lists(draw.arm, material.labels, steps, space, rng, units=material.units)
    return None if lists is None else RulePolicy(lists, material.baseline)


def _chance_of(material: Material, draw: ArmDraw) -> np.random.Generator:
    return np.random.default_rng([material.config.seed, _PLACEBO_STREAM, draw.number])


_BOOK = "snapshots.json"
_LIBRARIES = ("numpy", "torch", "d3rlpy")


def find_candidates(store: Store, material: Material, draw: ArmDraw) -> list[Snapshot] | None:
    """The cached candidates of a draw; None if there are none, or its training is to be logged."""
    files = None if material.is_logged(draw) else load_training(store, _training_id(material, draw))
    if files is None:
        return None
    try:
        return [
            Snapshot(MlpPolicy.from_files(_files_of(files, number)), step, beta, reading)
            for number, (step, beta, reading) in enumerate(decode_json(files[_BOOK]))
        ]
    except (DamagedStore, KeyError, TypeError, ValueError):
        return None


def keep_candidates(store: Store, material: Material, draw: ArmDraw, snapshots: Sequence[Snapshot]) -> None:
    """Cache the candidates of a draw, in the order of training."""
    book = [[snapshot.step, snapshot.beta, snapshot.reading] for snapshot in snapshots]
    files = {_BOOK: json.dumps(book).encode()}
    for number, snapshot in enumerate(snapshots):
        files |= {f"{number}/{name}": content for name, content in snapshot.policy.to_files().items()}
    save_training(store, _training_id(material, draw), files)


def _files_of(files: Mapping[str, bytes], number: int) -> dict[str, bytes]:
    start = f"{number}/"
    return {name.removeprefix(start): content for name, content in files.items() if name.startswith(start)}


def _training_id(material: Material, draw: ArmDraw) -> str:
    expert = material.oracle.sha256 if draw.arm == "oracle" and material.oracle else None
    return content_id("t_", [material.content_id, draw.arm, draw.number, expert, _learner()])


@lru_cache
def _learner() -> dict[str, str]:
    """The code and the library versions that decide a training."""
    folder = Path(refine.__file__).parent
    code = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return {"code": sha256_bytes(code), **{name: importlib.metadata.version(name) for name in _LIBRARIES}}


RANKED, CHOSEN = 4, 2
"""Episodes by which arms are ranked, of what their trainings end with, and by which the best of the entered candidates
is chosen, in the gate's way of acting; the first ones of the selection."""
BATCH = 5
"""Draws of each placebo that are trained and played before the ranks are looked at."""
Enter = Callable[[Sequence[ArmDraw]], "list[Entry]"]
PlayIn = Callable[[Sequence[Candidate], range, Mode], list[Returns]]


class Entrant(NamedTuple):
    """One arm, or one draw of it, with its candidates."""

    draw: ArmDraw
    candidates: Sequence[Candidate]
    snapshots: Sequence[Snapshot]  # of the same order; rules that may be put in force come after them

    @property
    def ranked(self) -> list[Candidate]:
        """The candidates whose returns are ranked."""
        return [self.candidates[place] for place in last_of_each(self.snapshots, len(self.candidates))]

    @property
    def identity(self) -> tuple[str, ...]:
        """Hashes of what was trained; equal labels are trained to equal policies."""
        return tuple(snapshot.policy.sha256 for snapshot in self.snapshots)


@dataclass(frozen=True)
class Entry:
    """An entrant, compared with others."""

    entrant: Entrant
    common: float  # what is ranked: the mean return of its ranked candidates
    tried: Sequence[Returns]  # of every entered candidate, in the gate's way of acting
    before: Returns  # the baseline's on the same seeds

    @property
    def draw(self) -> ArmDraw:
        """Which draw of which arm."""
        return self.entrant.draw

    @property
    def selection(self) -> list[float]:
        """Mean return of each candidate."""
        return [float(returns.mean()) for returns in self.tried]

    @property
    def best(self) -> int:
        """Index of the candidate with the highest mean."""
        return int(np.argmax(self.selection))

    @property
    def winner(self) -> Candidate | None:
        """The best candidate; None where the baseline returns as much."""
        return self.entrant.candidates[self.best] if self.selection[self.best] > self.before.mean() else None


def last_of_each(snapshots: Sequence[Snapshot], candidates: int) -> list[int]:
    """Which candidates are ranked: the last one of every beta and those that are no snapshots, two at least."""
    last = {snapshot.beta: number for number, snapshot in enumerate(snapshots)}
    ends = set(last.values()) | set(range(len(snapshots), candidates))
    return sorted(ends if len(ends) > 1 else ends | set(range(max(0, candidates - 2), candidates)))


def enter_few(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Those that are entered: all ranked ones, and of the smallest beta every second one, counted from the last.

    Trainings are cheap and episodes are not; neighbours on the way of one training return nearly the same, and so do
    those that are as far on the way of another beta.
    """
    kept = set(last_of_each(snapshots, len(snapshots)))
    least = min(snapshot.beta for snapshot in snapshots)
    kept |= set([number for number, snapshot in enumerate(snapshots) if snapshot.beta == least][::-2])
    return [snapshots[number] for number in sorted(kept)]


def play_fields(fields: Sequence[Sequence[Candidate]], play: PlayIn, seeds: range, mode: Mode) -> list[list[Returns]]:
    """Returns of every field's candidates on the seeds."""
    played = iter(play([candidate for field in fields for candidate in field], seeds, mode))
    return [[next(played) for _ in field] for field in fields]


def rank_entries(own: Entry, entries: Sequence[Entry], asked: int) -> list[Rank]:
    """The labels' rank among the different draws of every placebo that is drawn."""
    ranks: list[Rank] = []
    complete = any(entry.draw.number == asked - 1 for entry in entries)
    for arm in PLACEBOS:
        drawn = {entry.entrant.identity: entry.common for entry in reversed(entries) if entry.draw.arm == arm}
        if drawn:
            exhausted = complete and len(drawn) < asked
            ranks.append(rank_labels(arm, own.common, [*drawn.values()][::-1], asked=asked, exhausted=exhausted))
    return ranks


def draw_placebos(own: Entry, draws: Sequence[ArmDraw], enter: Enter, asked: int, *, accepted: bool) -> list[Entry]:
    """Enter draws, a few of each placebo at a time, until the labels' ranks are clear or all have been played.

    Where the labels were rejected there is nothing to credit, so the first few are played for the table alone.

    Args:
        own: the annotator's arm.
        draws: of all placebos and other arms of chance.
        enter: trains and plays draws.
        asked: draws of each placebo in all.
        accepted: whether the gate accepted the labels' policy.
    """
    entries: list[Entry] = []
    for batch in batches(draws):
        entries += [entry for entry in enter(batch) if not _changes_nothing(entry, own)]
        if not accepted or any(rank.is_hopeless for rank in rank_entries(own, entries, asked)):
            break
    return entries


def _changes_nothing(entry: Entry, own: Entry) -> bool:
    """Whether other components in the formulas came out as the annotator's own, which is no placebo."""
    return entry.draw.arm == "permuted" and entry.entrant.identity == own.entrant.identity


def batches(draws: Sequence[ArmDraw]) -> Iterator[list[ArmDraw]]:
    """Draws in the order in which they are entered, a few of each placebo at a time."""
    last = max((draw.number for draw in draws), default=-1)
    for first in range(0, last + 1, BATCH):
        yield [draw for draw in draws if first <= draw.number < first + BATCH]
