"""Candidates of a refinement: from the labels as they are and, if asked for, from what they may have meant.

Nothing here knows which reading is right; a gate that plays episodes finds out, and asks the same of placebos.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from storage.datasets import StepArrays
from storage.schema import Array

from ..config import RefineConfig, Snapshot
from ..labels import LabelHypothesis, Labels, covers_most_steps, keep, list_readings
from ..policies import MlpPolicy
from .train import refine

OUTLIER_SCALE = 0.3
"""Of continuous suggestions in a robust refinement, in half ranges of the action; wider ones let errors through."""


def refine_candidates(
    steps: StepArrays,
    labels: Labels,
    baseline: MlpPolicy,
    config: RefineConfig | None = None,
    *,
    log_dir: Path | None = None,
) -> list[Snapshot]:
    """Train the candidates of `refine` and, with `config.robust`, those of other readings of the labels after them.

    The labels that the others bear out (discrete), or all of them with a loss that gives up on the far ones
    (continuous), get the largest beta and every snapshot; each systematic suspicion the largest beta and the middle
    snapshot. That makes about three times the candidates.

    Args:
        steps: the logged steps.
        labels: of these steps.
        baseline: where every training starts.
        config: the refinement; the defaults when None.
        log_dir: where the training with the labels as they are is logged; nowhere when None.

    Raises:
        BadInput: as `refine` does.
    """
    dense = covers_most_steps(labels, steps)
    config = (config or RefineConfig()).completed(baseline.action_space, dense=dense)
    candidates = refine(steps, labels, baseline, config, log_dir=log_dir)
    if not config.robust:
        return candidates
    betas, stops = cast("tuple[float, ...]", config.betas), cast("tuple[int, ...]", config.snapshots)
    brief = config.model_copy(update={"betas": (max(betas),)})
    if baseline.action_space.is_discrete:
        doubted = LabelHypothesis("consensus", keep(labels, find_borne_out(steps, labels, baseline, config)))
    else:
        doubted = LabelHypothesis("outliers discounted", labels)
        brief = brief.model_copy(update={"outlier_scale": config.outlier_scale or OUTLIER_SCALE})
    candidates += _refine_reading(doubted, steps, baseline, brief)
    briefest = brief.model_copy(update={"snapshots": (stops[len(stops) // 2],)})
    for reading in list_readings(labels, steps, baseline):
        candidates += _refine_reading(reading, steps, baseline, briefest)
    return candidates


def _refine_reading(
    reading: LabelHypothesis, steps: StepArrays, baseline: MlpPolicy, config: RefineConfig
) -> list[Snapshot]:
    return [replace(snapshot, reading=reading.name) for snapshot in refine(steps, reading.labels, baseline, config)]


FOLDS = 5


def find_borne_out(steps: StepArrays, labels: Labels, baseline: MlpPolicy, config: RefineConfig) -> NDArray[np.bool_]:
    """Which suggestions a policy agrees with that was refined with the labels of other episodes only.

    Five folds of episodes; for each a short training without its labels, whose greedy action at the states of the fold
    is compared with them. The idea is that of confident learning (Northcutt, Jiang and Chuang, JAIR 2021).

    Args:
        steps: the logged steps.
        labels: of these steps, with discrete actions.
        baseline: where the trainings start.
        config: the refinement; its smallest beta and its middle snapshot are used.

    Returns:
        (L,), false for labels without a suggestion.
    """
    config = config.completed(baseline.action_space, dense=covers_most_steps(labels, steps))
    betas, stops = cast("tuple[float, ...]", config.betas), cast("tuple[int, ...]", config.snapshots)
    short = config.model_copy(update={"betas": (min(betas),), "snapshots": (stops[len(stops) // 2],)})
    usable = labels.weights > 0
    folds = _deal_folds(steps.episode_id[labels.rows], config.seed)
    actions = np.array(labels.suggestions)
    for fold in range(FOLDS):
        apart = folds == fold
        if (usable & apart).any() and (usable & ~apart).any():
            policy = refine(steps, keep(labels, ~apart), baseline, short)[0].policy
            actions[apart] = policy.act(steps.observation[labels.rows[apart]]).actions
    return usable & (actions == labels.suggestions)


def _deal_folds(groups: Array, seed: int) -> NDArray[np.int64]:
    """A fold for each label, (L,): whole episodes together, or single labels where there are fewer than two."""
    members, index = np.unique(groups, return_inverse=True)
    if len(members) < 2:
        index = np.arange(len(groups))
    order = np.random.default_rng([seed, FOLDS]).permutation(int(index.max(initial=0)) + 1)
    return order[index] % FOLDS
