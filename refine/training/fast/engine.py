"""Training without d3rlpy's loop: which fast algorithm a refinement needs, and from stop to stop with it.

Which refinements it can do says `RefineConfig.is_fast`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from storage.errors import BadInput
from storage.schema import Array

from ...config import RefineConfig
from ...policies import MlpPolicy
from ..buffer import AnnotatedBuffer, Columns
from ..networks import module_layers
from ..reference.factory import create_algorithm
from .cloning import FastCloning
from .critics import FastDiscreteCQL, FastTD3PlusBC


class FastTraining(Protocol):
    """One training per beta, all on the same batches."""

    def step(self, batch: Columns) -> None:
        """One step of every training on one batch."""
        ...

    def policies(self) -> list[MlpPolicy]:
        """The policies so far, in the order of the betas."""
        ...

    def diverged(self, observations: Array) -> bool:
        """Whether a policy is not finite, or what it says at some observations (n, N) that a network takes."""
        ...


def create_training(start: MlpPolicy, config: RefineConfig, *, return_scale: float = 1.0) -> FastTraining:
    """Build what a refinement trains. A critic starts as the reference's does, so seed torch before.

    Args:
        start: with a head of logits when discrete.
        config: completed.
        return_scale: typical size of a return, by which a critic divides rewards.

    Raises:
        BadInput: as `create_algorithm`.
    """
    betas = config.betas or ()
    if not config.has_critic:
        return FastCloning(start, betas, config.learning_rate)
    reference: Any = create_algorithm(start, config, 0.0, return_scale=return_scale)  # its beta is not used
    critics = [module_layers(module) for module in reference.impl.q_function]
    if start.action_space.is_discrete:
        return FastDiscreteCQL(start, betas, reference.config, critics[0], return_scale)
    return FastTD3PlusBC(start, betas, reference.config, critics, return_scale)


def train_together(
    training: FastTraining,
    buffer: AnnotatedBuffer,
    config: RefineConfig,
    probe: Array,
    tick: Callable[[], None],
) -> Iterator[tuple[int, list[MlpPolicy]]]:
    """Train from stop to stop; a critic gets its steps before the first.

    Args:
        training: of `create_training`.
        buffer: seeded as the reference's.
        config: completed.
        probe: (n, N) observations, as a network takes them, at which the outputs have to be finite.
        tick: called once per step of each training.

    Yields:
        The steps done, and the policies in the order of the betas.

    Raises:
        BadInput: for a training that diverged.
    """
    done = -config.waiting
    for stop in config.snapshots or ():
        with threadpool_limits(1, "blas"), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for _ in range(done, stop):
                training.step(buffer.sample_columns(config.batch_size))
                for _ in config.betas or ():
                    tick()
            diverged = training.diverged(probe)
        if diverged:
            raise BadInput(f"The training diverged before step {stop}.", "Choose a lower learning rate.")
        done = stop
        yield stop, training.policies()
