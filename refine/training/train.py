"""Refinement: a baseline, logged steps and labels in; candidates out. Nothing is simulated and nothing is written.

Which candidate is kept is decided elsewhere, on episodes that this module never sees. Importing it loads no learner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from storage.datasets import ENOUGH_ROWS, StepArrays
from storage.schema import Array

from ..config import RefineConfig, Snapshot
from ..labels import (
    LabelHypothesis,
    Labels,
    check_labels,
    covers_most_steps,
    keep,
    list_readings,
    relabel,
    scale_of_returns,
    weigh_labels,
)
from ..policies import MlpPolicy, action_bounds, action_units, network_inputs
from .fast import train_fast
from .packing import as_logits, build_table

__all__ = ["Progress", "RefineConfig", "Snapshot", "refine"]

Progress = Callable[[int, int], None]
"""Called with the training steps done and those in all."""

PROBES = 64
LEAST_WIDTH = 0.002
"""Least width of a fitted Gaussian, in half ranges of the action: it stays a distribution that can be drawn from. Ten
times as wide, a policy that balances on two legs was seen to fall."""
_OF_MEDIAN = 1.4826  # a Gaussian's standard deviation in medians of its absolute deviation
FITTED = 10_000
"""Steps that a width is fitted to, at most, with a suggestion and without."""


def refine(
    steps: StepArrays,
    labels: Labels,
    baseline: MlpPolicy,
    config: RefineConfig | None = None,
    *,
    progress: Progress | None = None,
    log_dir: Path | None = None,
) -> list[Snapshot]:
    """Train candidates from a baseline, one short training per beta.

    Equal arguments give equal bits on one machine. A baseline of Q values is taken as logits, see `units.as_logits`.
    A limit of the baseline's last layer is not part of the training; the candidates have it.

    Args:
        steps: the logged steps.
        labels: of these steps.
        baseline: where every training starts and what it stays close to.
        config: the refinement; the defaults when None.
        progress: called after every step.
        log_dir: where d3rlpy's own loggers write the losses of each training; nowhere when None. What is fast is
            trained by the reference too, for its losses alone, so that logging decides nothing.

    Returns:
        One snapshot per beta and step count, betas in the given order.

    Raises:
        BadInput: for labels that do not fit, no label that counts, spaces that do not fit, or a training that
            diverged.
    """
    return _refine(steps, [labels], baseline, config, progress=progress, log_dir=log_dir)[0]


def _refine(
    steps: StepArrays,
    several: Sequence[Labels],
    baseline: MlpPolicy,
    config: RefineConfig | None,
    *,
    progress: Progress | None = None,
    log_dir: Path | None = None,
) -> list[list[Snapshot]]:
    """As `refine`, of labels of the same rows; several only where `RefineConfig.shares_batches`."""
    labels = several[0]
    for each in several:
        check_labels(each, steps, baseline.action_space)
    dense = covers_most_steps(labels, steps)
    config = (config or RefineConfig()).completed(baseline.action_space, dense=dense)
    betas, stops = config.betas or (), config.snapshots or ()
    some = slice(None, None, 1 + len(steps) // ENOUGH_ROWS)
    start = as_logits(baseline, steps.observation[some]) if baseline.head == "q_values" else baseline
    start = replace(start, output_limit=None)
    rewards = steps.reward if config.mode == "A" else relabel(steps, labels, config).rewards
    weighed = [weigh_labels(each, steps, start, config) for each in several]
    scale = scale_of_returns(steps, rewards, gamma=config.gamma) if config.has_critic else 1.0
    quota, counted = config.annotated_per_batch, config.mode != "R"
    table = build_table(steps, weighed[0], start, rewards=rewards, suggestions=counted, quota=quota, also=weighed[1:])
    probe = steps.observation[np.linspace(0, len(steps) - 1, PROBES).astype(np.int64)]
    fast = config.engine == "fast" and config.is_fast
    engines = 1 + (fast and log_dir is not None)
    tick = _count_steps(progress, engines * len(several) * len(betas) * (config.waiting + max(stops)))
    found: list[list[Snapshot]] = []
    if not fast or log_dir is not None:
        from .reference import train_reference  # torch and d3rlpy take seconds to load

        found = [train_reference(table, start, config, probe, return_scale=scale, tick=tick, log_dir=log_dir)]
    if fast:
        inputs = network_inputs(probe, start.observation_space).T
        found = train_fast(table, start, config, inputs, return_scale=scale, tick=tick, labellings=len(several))
    if dense and counted and start.head == "clip" and start.log_std is not None:
        found = [
            [replace(each, policy=fit_noise(each.policy, start, steps, labels, each.beta)) for each in trained]
            for labels, trained in zip(weighed, found, strict=True)
        ]
    limit = baseline.output_limit
    return [[replace(each, policy=replace(each.policy, output_limit=limit)) for each in trained] for trained in found]


def fit_noise(policy: MlpPolicy, baseline: MlpPolicy, steps: StepArrays, labels: Labels, beta: float) -> MlpPolicy:
    """Give a Gaussian policy the width that its suggestions leave it, so that it acts as it was advised when sampled.

    The means stay. In each dimension the width `s` minimises the suggestions' mean negative log-likelihood plus beta
    times the mean `KL(pi_0 || pi)` at the steps without a suggestion, as of Gaussians: for errors of the width `e` of
    what is played against the suggestions, distances d from the baseline's means and its width `s_0`,
    `s^2 = (e^2 + beta mean (s_0^2 + d^2)) / (1 + beta)`, and `e^2` where every step has a suggestion.
    `e` is taken from the median error, as a Gaussian has it: where a controller switches from one bound to the other
    some errors are as wide as the action's range, and their mean square would be noise for all other states.
    `s` is at most `s_0`, and at least `LEAST_WIDTH` of half the action's range unless `s_0` is less.

    Args:
        policy: refined, with a head that cuts actions and a `log_std`.
        baseline: where it started.
        steps: the logged steps.
        labels: dense, with the weights that the training gave them.
        beta: weight of the distance to the baseline.
    """
    space, used = policy.action_space, np.flatnonzero(labels.weights > 0)
    half, width = action_units(space)[1], np.exp(np.asarray(baseline.log_std))
    used = used[_spread_over(len(used))]
    means, suggestions = policy.forward(steps.observation[labels.rows[used]]), labels.suggestions[used]
    errors = np.abs(np.clip(means, *action_bounds(space)) - suggestions)
    squares = np.square(_OF_MEDIAN * _weighted_median(errors, labels.weights[used]))
    plain = np.flatnonzero(~(steps.is_final | labels.has_suggestion(len(steps))))
    if len(plain):
        seen = steps.observation[plain[_spread_over(len(plain))]]
        distances = policy.forward(seen) - baseline.forward(seen)
        squares = (squares + beta * (width**2 + np.square(distances).mean(axis=0))) / (1 + beta)
    fitted = np.minimum(np.maximum(np.sqrt(squares), LEAST_WIDTH * half), width)
    return replace(policy, log_std=np.log(fitted))


def _weighted_median(values: Array, weights: NDArray[np.float64]) -> Array:
    """Of each column (L, m), (m,): the least value that half of the weight does not exceed."""
    order = values.argsort(axis=0)
    heights = np.cumsum(weights[order], axis=0)
    places = (heights < heights[-1] / 2).sum(axis=0, keepdims=True)
    return np.take_along_axis(values, np.take_along_axis(order, places, axis=0), axis=0)[0]


def _spread_over(count: int) -> NDArray[np.int64]:
    """Places in so many rows, evenly, at most `FITTED`."""
    return np.linspace(0, count - 1, min(count, FITTED)).astype(np.int64)


def _count_steps(progress: Progress | None, total: int) -> Callable[..., None]:
    """A callback that counts steps over all trainings."""
    done = 0

    def tick(*_: object) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


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


def refine_each(
    steps: StepArrays,
    several: Sequence[Labels],
    baseline: MlpPolicy,
    config: RefineConfig | None = None,
    *,
    log_dir: Path | None = None,
) -> list[list[Snapshot]]:
    """The candidates of each of several labels, the same bits as `refine_candidates` of each.

    Trainings whose labels speak of the same rows draw the same batches, and are made together where nothing else
    depends on the labels: six of them in two thirds of the time.

    Args:
        steps: the logged steps.
        several: labels of these steps.
        baseline: where every training starts.
        config: the refinement; the defaults when None.
        log_dir: as for `refine_candidates`; for one only.

    Raises:
        BadInput: as `refine` does.
    """
    if (config or RefineConfig()).shares_batches and _have_same_rows(several):
        return _refine(steps, several, baseline, config, log_dir=log_dir)
    return [refine_candidates(steps, labels, baseline, config, log_dir=log_dir) for labels in several]


def _have_same_rows(several: Sequence[Labels]) -> bool:
    """Whether labels speak of the same rows, few enough to be held several times, and the same of them count."""
    rows, counting = several[0].rows, several[0].weights > 0
    return len(rows) <= ENOUGH_ROWS and all(
        np.array_equal(each.rows, rows) and np.array_equal(each.weights > 0, counting) for each in several
    )


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
