"""Consensus: which labels the other episodes' labels bear out, found by refining without them.

Labels that are wrong without a system disagree with a policy learned from the others; those that are wrong alike in
all episodes do not, see `labels/label_hypotheses.py`. Continuous suggestions have a loss for that instead, see
`training/losses.py`.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from storage.datasets import StepArrays
from storage.schema import Array

from ..config import RefineConfig
from ..labels import Labels, keep
from ..policies import MlpPolicy
from .train import refine

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
    config = config.completed(baseline.action_space)
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
