"""Refinements by an example's recorded list of rules: alone, relabelled, and the placebos of both.

They are those of `trajnote refine --rules`, whose candidates are kept in the store, but each passes the board's gate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from flows.datasets import CollectConfig, collect
from flows.refinement.arms import (
    ArmDraw,
    Material,
    find_candidates,
    keep_candidates,
    list_draws,
    read_once,
    train_draws,
)
from flows.refinement.refinement import find_labels, find_units
from flows.simulation import Named
from refine.config import RefineConfig
from refine.evaluation.gate import CONFIDENCE, paired_difference
from refine.labels import RuleLabels, covers_most_steps
from refine.policies import RulePolicy
from refine.policies.sb3_models import use_one_thread
from storage.datasets import read_manifest
from storage.disk import write_whole
from storage.errors import Prerequisite
from storage.schema import Array
from storage.store import Store

from .playing import Gated, Known, Offer, pass_gate, play
from .rows import Row, judged
from .scenes import Scene

DRAWS = 3
"""Of each placebo of chance."""
FIRST_SEED = 4_000_000  # of what learners play, far from datasets, gates and trainings
_SEEDS_APART, _ROUNDS_APART = 10_000, 1_000
_LABELS = ArmDraw("labels", 0)


@dataclass(frozen=True)
class Ruled:
    """What one refinement by rules came to."""

    gated: Gated
    collected: int  # environment steps of its datasets, and of the feedback that its list took
    gate_steps: int  # of all its gates
    labels: int
    datasets: tuple[str, ...]  # of the round that counts, beside the first


def refine_by_rules(scene: Scene, seed: int, *, rounds: int = 0) -> Ruled:
    """Refine with the labels of the list; in further rounds also on what the learner has played.

    The round that counts is the accepted one whose winner returned most on the selection seeds, else the first.

    Raises:
        Prerequisite: when there is no list.
    """
    datasets, known = [scene.manifest.dataset_id, *scene.further], Known()
    made: list[Ruled] = []
    for number in range(rounds + 1):
        if number:
            datasets.append(_play_learner(scene, made[-1].gated.tested, seed, number))
        material = gather_material(scene, seed, datasets[1:])
        gated = pass_gate(scene, train(material, _LABELS), seed, known)
        spent = gated.steps + (made[-1].gate_steps if made else 0)
        labels, also = len(material.labels), tuple(datasets[1:])
        made.append(Ruled(gated, count_steps(scene, datasets), spent, labels, also))
    accepted = [one for one in made if one.gated.accepted]
    best = max(accepted, key=lambda one: one.gated.selection, default=made[0])
    return replace(best, collected=made[-1].collected, gate_steps=made[-1].gate_steps)


def play_rules(scene: Scene, seed: int) -> tuple[RulePolicy, Gated]:
    """The list itself as a policy, and what the gate says to it."""
    material = gather_material(scene, seed)
    if material.played_rules is None:
        raise Prerequisite(scene.unruled)
    return material.played_rules, pass_gate(scene, [Offer("the list", material.played_rules)], seed)


def judge_placebos(scene: Scene, seed: int, before: Row, rules: Row) -> tuple[bool, str, Array]:
    """Train the placebos of the list and compare the refined policy with what each leaves in force.

    They have the datasets of the policy, what its learner played included, as those of `trajnote refine --relabel`.

    Args:
        scene: where.
        seed: the training seed.
        before: the baseline's row of that seed.
        rules: the refined policy's row of that seed.

    Returns:
        Whether the rules did it, the reason, and the mean return of the placebos in each test episode, (S,).
    """
    refined, baseline = np.array(judged(rules)), np.array(judged(before))
    if not rules.accepted:
        return False, "nothing to credit: the refinement was rejected", baseline
    material, known, gate = gather_material(scene, seed, rules.datasets), Known(), scene.entry.gate(seed)
    placebos: dict[str, list[Array]] = {}
    for draw in list_draws(DRAWS, labels=material.labels)[1:]:
        gated = pass_gate(scene, train(material, draw), seed, known)
        left = play(scene, gated.policy, gate.seeds.report, gate.mode).returns if gated.accepted else baseline
        placebos.setdefault(draw.arm, []).append(left)
    credited, reason = _compare(refined, {arm: np.array(returns) for arm, returns in placebos.items()})
    return credited, reason, np.mean([returns for drawn in placebos.values() for returns in drawn], axis=0)


def _compare(refined: Array, placebos: Mapping[str, Array]) -> tuple[bool, str]:
    """Whether the rules beat every draw at hand, and the one-sided 95% prediction bound for one more of each placebo.

    Hahn and Meeker, "Statistical Intervals", 1991: `mean + t * s * sqrt(1 + 1 / K)` over the means of K draws.
    """
    gains = [paired_difference(refined, row) for rows in placebos.values() for row in rows]
    beaten = sum(found.is_above_zero for found in gains)
    drawn = [rows.mean(axis=1) for rows in placebos.values() if len(rows) > 1]
    bounds = [m.mean() + stats.t.ppf(CONFIDENCE, len(m) - 1) * m.std(ddof=1) * np.sqrt(1 + 1 / len(m)) for m in drawn]
    reason = (
        f"better than {beaten} of {len(gains)} placebos; one more of the same kind reaches {max(bounds):.1f} at most"
    )
    return beaten == len(gains) and float(refined.mean()) > max(bounds), reason


def gather_material(scene: Scene, seed: int, also: Sequence[str] = ()) -> Material:
    """The steps of the dataset and of further ones, labelled by the list.

    Raises:
        Prerequisite: when there is no list.
    """
    if scene.rules_run is None:
        raise Prerequisite(scene.unruled)
    use_one_thread()
    store, manifest = Store.open(scene.store_root), scene.manifest
    datasets = (manifest.dataset_id, *also)
    steps = read_once(store, datasets)
    labels = find_labels(store, datasets, [scene.rules_run], "A", rules=True).labels(manifest, steps, "A")
    dense = covers_most_steps(labels, steps)
    config = RefineConfig(seed=seed).completed(manifest.action_space, dense=dense)
    units = find_units(store, manifest) if isinstance(labels, RuleLabels) and labels.has_formulas else {}
    return Material(store.root, manifest.dataset_id, labels, scene.baseline, config, also=tuple(also), units=units)


def train(material: Material, draw: ArmDraw) -> list[Offer]:
    """The candidates of one draw, trained or kept from an earlier run."""
    store = Store.open(material.store_root)
    snapshots = find_candidates(store, material, draw)
    if snapshots is None:
        [snapshots] = train_draws(material, [draw])
        keep_candidates(store, material, draw, snapshots)
    return [Offer(snapshot.name, snapshot.policy) for snapshot in snapshots]


def _play_learner(scene: Scene, learner: Offer, seed: int, number: int) -> str:
    """Collect as many episodes of the last round's policy as the dataset has; returns the new dataset's id."""
    manifest = scene.manifest
    with tempfile.TemporaryDirectory() as folder:
        for name, content in learner.policy.to_files().items():
            write_whole(Path(folder) / name, content)
        config = CollectConfig(
            env_id=scene.entry.env_id,
            env_kwargs=scene.entry.env_kwargs,
            policy=Named(f"policy:{folder}"),
            mode=manifest.policy_mode or "sampled",
            episodes=manifest.episodes,
            seed=FIRST_SEED + _SEEDS_APART * seed + _ROUNDS_APART * number,
            max_steps=manifest.max_steps,
            rename=True,
        )
        names, actions = manifest.component_names, manifest.action_names
        played = collect(Store.open(scene.store_root), config, component_names=names, action_names=actions)
    return played.dataset_id


def count_steps(scene: Scene, datasets: Sequence[str]) -> int:
    store = Store.open(scene.store_root)
    return scene.feedback_steps + sum(read_manifest(store, dataset_id).steps for dataset_id in datasets)
