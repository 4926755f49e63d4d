"""The arms of a comparison: which labels each one gets, and the candidates that come of them.

Training one arm is one call that any process can make; judging the candidates is in `contest.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refine.config import RefineConfig, Snapshot
from refine.labels import Arm, Labels, arm_labels
from refine.policy import MlpPolicy
from storage.identity import content_id
from storage.steps import read_steps
from storage.store import Store

PLACEBOS: tuple[Arm, ...] = ("no_labels", "shuffled", "random")
_PLACEBO_STREAM = 0x9AC  # keeps the placebos' chance apart from the learner's


@dataclass(frozen=True)
class Draw:
    """One refinement of one arm; the shuffled and the random arm are drawn several times."""

    arm: Arm
    number: int  # from 0

    @property
    def name(self) -> str:
        """How tables and reasons call it."""
        return f"{self.arm} {self.number + 1}" if self.arm in ("shuffled", "random") else self.arm


def list_draws(placebo_draws: int) -> list[Draw]:
    """The annotator's labels and plain cloning once, the placebos that depend on chance `placebo_draws` times."""
    chance: list[Draw] = [Draw(arm, n) for arm in ("shuffled", "random") for n in range(placebo_draws)]
    return [Draw("labels", 0), Draw("no_labels", 0), *chance]


@dataclass(frozen=True)
class Material:
    """What all arms of a comparison share, small enough to send to another process."""

    store_root: Path
    dataset_id: str
    labels: Labels
    baseline: MlpPolicy
    config: RefineConfig

    @property
    def content_id(self) -> str:
        """Named by everything that decides the candidates of an arm."""
        labels = {name: np.asarray(value).tolist() for name, value in vars(self.labels).items()}
        return content_id("m_", [self.dataset_id, labels, self.baseline.sha256, self.config])


def train_draw(material: Material, draw: Draw) -> list[Snapshot]:
    """Refine the baseline with the labels of one arm; equal arguments give equal snapshots.

    Args:
        material: dataset, labels, baseline and configuration.
        draw: which arm, and which of its draws.

    Returns:
        The candidates, in the order of training.
    """
    from refine.train import refine  # seconds: d3rlpy and torch, which only the processes that train need

    steps = read_steps(Store.open(material.store_root), material.dataset_id)
    rng = np.random.default_rng([material.config.seed, _PLACEBO_STREAM, draw.number])
    labels = arm_labels(draw.arm, material.labels, steps, material.baseline.action_space, rng)
    return refine(steps, labels, material.baseline, material.config)
