"""Training without d3rlpy's loop: which fast algorithm a refinement needs, and from stop to stop with it.

Which refinements it can do says `RefineConfig.is_fast`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from threadpoolctl import ThreadpoolController

from storage.errors import BadInput
from storage.schema import Array

from ...config import RefineConfig, Snapshot
from ...policies import MlpPolicy
from ..packing import PackedTable
from .cloning import FastCloning

if TYPE_CHECKING:
    from .critics import FastActorCritic

FastTraining: TypeAlias = "FastCloning | FastActorCritic"
"""One training per beta, all on the same batches."""


def train_fast(
    table: PackedTable,
    start: MlpPolicy,
    config: RefineConfig,
    probe: Array,
    *,
    return_scale: float,
    tick: Callable[[], None],
    labellings: int = 1,
) -> list[list[Snapshot]]:
    """One training per beta and labelling, all at once.

    Args:
        table: what is sampled.
        start: with a head of logits when discrete.
        config: completed.
        probe: (n, N) observations, as a network takes them, at which the outputs have to be finite.
        return_scale: typical size of a return, by which a critic divides rewards.
        tick: called once per step of each training.
        labellings: of the table; several only without a critic.

    Returns:
        For each labelling one snapshot per beta and stop.

    Raises:
        BadInput: for a training that diverged.
    """
    betas = config.betas or ()
    table.reseed(config.seed)
    with _seeded(config):
        every = config.model_copy(update={"betas": betas * labellings})
        training = create_training(start, every, return_scale=return_scale)
        found = list(train_together(training, table, every, probe, tick))
    return [
        [Snapshot(policies[first + n], step, beta) for n, beta in enumerate(betas) for step, policies in found]
        for first in range(0, len(betas) * labellings, len(betas))
    ]


def _seeded(config: RefineConfig) -> AbstractContextManager[None]:
    """Torch draws a critic's start and its noise; without a critic it is not loaded."""
    if not config.has_critic:
        return nullcontext()
    from ..reference import reproducible  # torch takes seconds to load

    return reproducible(config.seed)


def create_training(start: MlpPolicy, config: RefineConfig, *, return_scale: float = 1.0) -> FastTraining:
    """Build what a refinement trains. A critic starts as the reference's does, so seed torch before.

    Args:
        start: with a head of logits when discrete.
        config: completed.
        return_scale: typical size of a return, by which a critic divides rewards.

    Raises:
        BadInput: as `reference.factory.create_algorithm`.
    """
    if not config.has_critic:
        return FastCloning(start, config.betas or (), config.learning_rate)
    from .critics import create_with_critic  # torch and d3rlpy take seconds to load

    return create_with_critic(start, config, return_scale)


def train_together(
    training: FastTraining,
    table: PackedTable,
    config: RefineConfig,
    probe: Array,
    tick: Callable[[], None],
) -> Iterator[tuple[int, list[MlpPolicy]]]:
    """Train from stop to stop; a critic gets its steps before the first.

    Args:
        training: at its start.
        table: seeded as the reference's.
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
        with (
            _libraries().limit(limits=1, user_api="blas"),
            np.errstate(all="ignore"),
        ):
            for _ in range(done, stop):
                training.step(table.sample_columns(config.batch_size))
                for _ in config.betas or ():
                    tick()
            diverged = training.diverged(probe)
        if diverged:
            raise BadInput(f"The training diverged before step {stop}.", "Choose a lower learning rate.")
        done = stop
        yield stop, training.policies()


@lru_cache
def _libraries() -> ThreadpoolController:
    """What is loaded and has threads of its own; finding it takes as long as a dozen steps."""
    return ThreadpoolController()
