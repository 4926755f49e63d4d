"""Refinements of the baseline: with an annotator's labels, with placebos, with an expert's actions, and 10% BC.

All of them are the same training with other labels; what differs is made here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refine.config import RefineConfig
from refine.labels.labels import Labels, arm_labels
from refine.policies.sb3_models import use_one_thread
from refine.training.train import refine
from storage.datasets.reader import StepArrays
from storage.errors import Prerequisite

from .playing import Offer
from .scenes import Scene, logged_labels, spread_states, suggested_labels

BEST_SHARE = 0.1
_STREAM = 0xB0A  # keeps the placebos' chance apart from the learner's


@dataclass(frozen=True)
class Refinement:
    """Snapshots of one training, and how many labels it had."""

    candidates: list[Offer]
    labels: int


def train_refinement(scene: Scene, arm: str, seed: int) -> Refinement:
    """Train one arm from the baseline by the default recipe.

    Raises:
        Prerequisite: when the arm's labels cannot be had.
    """
    use_one_thread()
    steps = scene.read_steps()
    labels = make_labels(scene, arm, steps, seed)
    snapshots = refine(steps, labels, scene.baseline, RefineConfig(seed=seed))
    return Refinement([Offer(snapshot.name, snapshot.policy) for snapshot in snapshots], len(labels))


def make_labels(scene: Scene, arm: str, steps: StepArrays, seed: int) -> Labels:
    """The labels of an arm, at the annotator's states; where there is no annotator, at states spread over episodes.

    `oracle` takes the expert's greedy actions, `best_10` the logged actions of the tenth of the episodes with the
    highest returns, at all of their states; the others are those of `refine.labels.labels.arm_labels`.

    Raises:
        Prerequisite: when there is no annotator or no expert.
    """
    if arm in ("labels", "shuffled") and scene.labels is None:
        raise Prerequisite(scene.unlabelled)
    given = scene.labels or logged_labels(spread_states(steps), steps, scene.baseline)
    if arm == "oracle":
        return _ask_expert(scene, given, steps)
    if arm == "best_10":
        return logged_labels(best_rows(steps), steps, scene.baseline)
    rng = np.random.default_rng([seed, _STREAM])
    return arm_labels(arm, given, steps, scene.baseline.action_space, rng)  # pyright: ignore[reportArgumentType]


def best_rows(steps: StepArrays, share: float = BEST_SHARE) -> NDArray[np.int64]:
    """Rows, final ones left out, of the share of the episodes with the highest returns, at least one episode."""
    returns = np.add.reduceat(steps.reward, steps.starts)
    best = np.argsort(-returns, kind="stable")[: max(1, round(share * len(returns)))]
    return np.flatnonzero(np.isin(steps.episode_id, steps.episodes[best]) & ~steps.is_final)


def _ask_expert(scene: Scene, given: Labels, steps: StepArrays) -> Labels:
    if scene.expert is None:
        raise Prerequisite("no expert policy")
    rows = np.unique(given.rows)
    return suggested_labels(rows, scene.expert.advise(steps.observation[rows]), scene.baseline)
