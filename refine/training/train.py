"""Refinement: a baseline, logged steps and labels in; candidates out. Nothing is simulated and nothing is written.

Which candidate is kept is decided elsewhere, on episodes that this module never sees.
"""

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

from storage.datasets import StepArrays
from storage.errors import BadInput
from storage.schema import Array

from ..config import RefineConfig, Snapshot
from ..labels import Labels, check_labels, relabel, scale_of_returns, weigh_labels
from ..policies import MlpPolicy, network_inputs
from .buffer import AnnotatedBuffer
from .d3rlpy_setup import (
    CombineAdapterFactory,
    FileAdapterFactory,
    LoggerAdapterFactory,
    NoopAdapterFactory,
    TensorboardAdapterFactory,
    quiet,
)
from .fast.engine import create_training, train_together
from .networks import as_logits, read_weights, reproducible
from .packing import PLAIN_ROWS, build_buffer
from .reference.factory import Algorithm, create_algorithm, network_outputs, policy_module

__all__ = ["Progress", "RefineConfig", "Snapshot", "refine"]

Progress = Callable[[int, int], None]
"""Called with the training steps done and those in all."""

EXPORT_TOLERANCE = 1e-5
PROBES = 64
_INVALID = "invalid values"  # torch's words for logits that are not finite


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

    Equal arguments give equal bits on one machine. A baseline of Q values is taken as logits, see `networks.as_logits`.

    Args:
        steps: the logged steps.
        labels: of these steps.
        baseline: where every training starts and what it stays close to.
        config: the refinement; the defaults when None.
        progress: told about every step.
        log_dir: where d3rlpy's own loggers write the losses of each training; nowhere when None. What is fast is trained
            by the reference too, for its losses alone, so that logging decides nothing.

    Returns:
        One snapshot per beta and step count, betas in the given order.

    Raises:
        BadInput: for labels that do not fit, no label that counts, spaces that do not fit, or a training that
            diverged.
    """
    config = (config or RefineConfig()).completed(baseline.action_space)
    betas, stops = config.betas or (), config.snapshots or ()
    check_labels(labels, steps, baseline.action_space)
    some = slice(None, None, 1 + len(steps) // PLAIN_ROWS)
    start = as_logits(baseline, steps.observation[some]) if baseline.head == "q_values" else baseline
    rewards = steps.reward if config.mode == "A" else relabel(steps, labels, config).rewards
    labels = weigh_labels(labels, steps, start, config)
    scale = scale_of_returns(steps, rewards, gamma=config.gamma) if config.has_critic else 1.0
    quota, counted = config.annotated_per_batch, config.mode != "R"
    buffer = build_buffer(steps, labels, start, rewards=rewards, suggestions=counted, quota=quota)
    probe = steps.observation[np.linspace(0, len(steps) - 1, PROBES).astype(np.int64)]
    fast = config.engine == "fast" and config.is_fast
    engines = 1 + (fast and log_dir is not None)
    tick = _count_steps(progress, engines * len(betas) * (config.waiting + max(stops)))
    snapshots: list[Snapshot] = []
    for beta in betas if log_dir is not None or not fast else ():
        with reproducible(config.seed), quiet():
            buffer.reseed(config.seed)
            algorithm = create_algorithm(start, config, beta, return_scale=scale)
            logger = training_logger(log_dir, f"labels-beta-{beta:g}")
            for step in _train(algorithm, buffer, stops, waiting=config.waiting, tick=tick, logger=logger):
                snapshots.append(Snapshot(_export(algorithm, start, probe, step), step, beta))
    if fast:
        inputs = network_inputs(probe, start.observation_space).T
        with reproducible(config.seed), quiet():
            buffer.reseed(config.seed)
            training = create_training(start, config, return_scale=scale)
            found = list(train_together(training, buffer, config, inputs, tick))
        return [Snapshot(policies[n], step, beta) for n, beta in enumerate(betas) for step, policies in found]
    return snapshots


def _train(
    algorithm: Algorithm,
    buffer: AnnotatedBuffer,
    stops: Sequence[int],
    *,
    waiting: int,
    tick: Callable[..., None],
    logger: TrainingLogger,
) -> Iterator[int]:
    """Train from stop to stop, yielding each; a critic gets its `waiting` steps before the first."""
    length = math.gcd(waiting, *stops)  # d3rlpy trains whole epochs only, and logs once in each
    epochs = algorithm.fitter(
        buffer,
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


def _count_steps(progress: Progress | None, total: int) -> Callable[..., None]:
    """A d3rlpy callback that counts steps over all trainings."""
    done = 0

    def tick(*_: object) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


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
