"""Training with d3rlpy's own loop, one beta after the other: from stop to stop, exported and checked at each."""

from __future__ import annotations

import importlib.util
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from storage.errors import BadInput
from storage.schema import Array

from ...config import RefineConfig, Snapshot
from ...policies import MlpPolicy
from ..packing import PackedTable
from .buffer import AnnotatedBuffer
from .d3rlpy_setup import (
    CombineAdapterFactory,
    FileAdapterFactory,
    LoggerAdapterFactory,
    NoopAdapterFactory,
    TensorboardAdapterFactory,
    quiet,
)
from .factory import Algorithm, create_algorithm, network_outputs, policy_module
from .networks import read_weights, reproducible

EXPORT_TOLERANCE = 1e-5
_INVALID = "invalid values"  # torch's words for logits that are not finite


def train_reference(
    table: PackedTable,
    start: MlpPolicy,
    config: RefineConfig,
    probe: Array,
    *,
    return_scale: float,
    tick: Callable[..., None],
    log_dir: Path | None,
) -> list[Snapshot]:
    """One training per beta, each from the same seed; arguments as `train.refine` has them.

    Args:
        table: what is sampled.
        start: with a head of logits when discrete.
        config: completed.
        probe: (n, N) observations at which the exported policy has to say what the network says.
        return_scale: typical size of a return, by which a critic divides rewards.
        tick: called once per step of each training.
        log_dir: where the losses of each training are logged; nowhere when None.

    Raises:
        BadInput: for a training that diverged.
    """
    found: list[Snapshot] = []
    for beta in config.betas or ():
        with reproducible(config.seed), quiet():
            table.reseed(config.seed)
            algorithm = create_algorithm(start, config, beta, return_scale=return_scale)
            logger = training_logger(log_dir, f"labels-beta-{beta:g}")
            stops = _train(algorithm, table, config.snapshots or (), waiting=config.waiting, tick=tick, logger=logger)
            found += [Snapshot(_export(algorithm, start, probe, step), step, beta) for step in stops]
    return found


def _train(
    algorithm: Algorithm,
    table: PackedTable,
    stops: Sequence[int],
    *,
    waiting: int,
    tick: Callable[..., None],
    logger: TrainingLogger,
) -> Iterator[int]:
    """Train from stop to stop, yielding each; a critic gets its `waiting` steps before the first."""
    length = math.gcd(waiting, *stops)  # d3rlpy trains whole epochs only, and logs once in each
    epochs = algorithm.fitter(
        AnnotatedBuffer(table),
        n_steps=waiting + stops[-1],
        n_steps_per_epoch=length,
        experiment_name=logger.name,
        logger_adapter=logger.factory,
        save_interval=waiting + stops[-1] + 1,  # of whole models: never
        show_progress=False,
        callback=tick,
    )
    done = -waiting
    for step in stops:
        with _refusing_divergence(step):
            _consume(islice(epochs, (step - done) // length))
        done = step
        yield step
    _consume(epochs)  # there are none left; the logger is closed


def _consume(epochs: Iterable[object]) -> None:
    deque(epochs, maxlen=0)


def _export(algorithm: Algorithm, start: MlpPolicy, probe: Array, step: int) -> MlpPolicy:
    """The network as a portable policy, checked to say the same as the network."""
    with _refusing_divergence(step):
        trained = network_outputs(algorithm, probe, start)
        if not np.isfinite(trained).all():
            raise ValueError(_INVALID)
    policy = read_weights(policy_module(algorithm), start)
    exported = policy.forward(probe)
    exported = log_softmax(exported, axis=1) if policy.action_space.is_discrete else exported
    error = float(np.max(np.abs(exported - trained) / np.maximum(1.0, np.abs(trained))))
    if error > EXPORT_TOLERANCE:
        raise RuntimeError(f"The exported policy differs from the trained network by {error:.2g} at step {step}.")
    return policy


@contextmanager
def _refusing_divergence(step: int) -> Generator[None]:
    """Say in one line what torch says when a distribution's logits are not finite."""
    try:
        yield
    except ValueError as error:
        if _INVALID not in str(error):
            raise
        raise BadInput(
            f"The training diverged before step {step}.", "Choose a lower learning rate or reward weight."
        ) from error


@dataclass(frozen=True)
class TrainingLogger:
    """Where one training is logged."""

    factory: LoggerAdapterFactory
    name: str  # d3rlpy appends the time


def training_logger(log_dir: Path | None, name: str) -> TrainingLogger:
    """The logger of one training.

    Args:
        log_dir: `NAME_TIME/*.csv` and `runs/NAME_TIME` go there; None logs nothing.
        name: of the training.
    """
    if log_dir is None:
        return TrainingLogger(NoopAdapterFactory(), name)
    factories: list[LoggerAdapterFactory] = [FileAdapterFactory(str(log_dir))]
    if importlib.util.find_spec("tensorboardX"):
        factories.append(TensorboardAdapterFactory(str(log_dir)))
    return TrainingLogger(CombineAdapterFactory(factories), name)
