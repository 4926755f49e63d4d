"""Refinement: a baseline, logged steps and labels in; candidates out. Nothing is simulated and nothing is written.

Which candidate is kept is decided elsewhere, on episodes that this module never sees. Importing it loads no learner.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from storage.datasets import StepArrays

from ..config import RefineConfig, Snapshot
from ..labels import Labels, check_labels, covers_most_steps, relabel, scale_of_returns, weigh_labels
from ..policies import MlpPolicy, network_inputs
from .fast.engine import train_fast
from .packing import PLAIN_ROWS, build_table
from .units import as_logits

__all__ = ["Progress", "RefineConfig", "Snapshot", "refine"]

Progress = Callable[[int, int], None]
"""Called with the training steps done and those in all."""

PROBES = 64


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
    check_labels(labels, steps, baseline.action_space)
    dense = covers_most_steps(labels, steps)
    config = (config or RefineConfig()).completed(baseline.action_space, dense=dense)
    betas, stops = config.betas or (), config.snapshots or ()
    some = slice(None, None, 1 + len(steps) // PLAIN_ROWS)
    start = as_logits(baseline, steps.observation[some]) if baseline.head == "q_values" else baseline
    rewards = steps.reward if config.mode == "A" else relabel(steps, labels, config).rewards
    labels = weigh_labels(labels, steps, start, config)
    scale = scale_of_returns(steps, rewards, gamma=config.gamma) if config.has_critic else 1.0
    quota, counted = config.annotated_per_batch, config.mode != "R"
    table = build_table(steps, labels, start, rewards=rewards, suggestions=counted, quota=quota)
    probe = steps.observation[np.linspace(0, len(steps) - 1, PROBES).astype(np.int64)]
    fast = config.engine == "fast" and config.is_fast
    engines = 1 + (fast and log_dir is not None)
    tick = _count_steps(progress, engines * len(betas) * (config.waiting + max(stops)))
    found: list[Snapshot] = []
    if not fast or log_dir is not None:
        from .reference.loop import train_reference  # torch and d3rlpy take seconds to load

        found = train_reference(table, start, config, probe, return_scale=scale, tick=tick, log_dir=log_dir)
    if fast:
        inputs = network_inputs(probe, start.observation_space).T
        found = train_fast(table, start, config, inputs, return_scale=scale, tick=tick)
    return found


def _count_steps(progress: Progress | None, total: int) -> Callable[..., None]:
    """A callback that counts steps over all trainings."""
    done = 0

    def tick(*_: object) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick
