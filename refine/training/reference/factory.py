"""Which d3rlpy algorithm a refinement uses, so that it starts at the baseline, and its training, beta after beta."""

from __future__ import annotations

import importlib.util
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn

from storage.errors import BadInput
from storage.schema import Array

from ...config import RefineConfig, Snapshot
from ...policies import MlpPolicy, action_bounds, action_units, network_inputs, output_size
from ..packing import PackedTable, cutting_bounds
from .cloning import AnnotatedBCConfig, AnnotatedDiscreteBCConfig
from .continuous_critic import AnnotatedAWACConfig, AnnotatedIQLConfig, AnnotatedReBRACConfig, AnnotatedTD3PlusBCConfig
from .d3rlpy_setup import (
    CombineAdapterFactory,
    FileAdapterFactory,
    LearnableConfig,
    LoggerAdapterFactory,
    MultiplyRewardScaler,
    NoopAdapterFactory,
    QLearningAlgoBase,
    TensorboardAdapterFactory,
    quiet,
)
from .discrete_critic import AnnotatedDiscreteCQLConfig, AnnotatedDQNConfig
from .losses import AnnotatedBuffer
from .networks import action_scaler_of, encoder_of, load_weights, observation_scaler_of, read_weights, reproducible

Algorithm = QLearningAlgoBase[Any, Any]

TARGET_INTERVAL = 100
"""Steps between copies of the discrete critic to its target; d3rlpy's 8,000 is more than a whole refinement."""
CONSERVATISM = 0.1
"""The recipe's weight of the conservative term; small, as the actor stays close to the baseline, which made the data.
The algorithm `discrete_cql` has d3rlpy's 1."""


def create_algorithm(baseline: MlpPolicy, config: RefineConfig, beta: float, *, return_scale: float = 1.0) -> Algorithm:
    """Build the algorithm of a mode and an action space, with the baseline's weights in its policy.

    Args:
        baseline: with a head of logits when discrete.
        config: the refinement.
        beta: weight of the distance to the baseline.
        return_scale: typical size of a return, by which a critic divides rewards; not used without one.

    Raises:
        BadInput: when the baseline has no hidden layer, the algorithm is not for its kind of actions, or they are
            unbounded and it has a critic.
    """
    config.check_actions(baseline.action_space)
    fields: dict[str, Any] = {
        "batch_size": config.batch_size,
        "stay_close": beta,
        "ramp_steps": config.ramp_steps,
        "outlier_scale": config.outlier_scale,
        "observation_scaler": observation_scaler_of(baseline),
        "action_scaler": action_scaler_of(baseline),
    }
    if baseline.head == "clip":
        fields["cuts"] = [bounds.tolist() for bounds in cutting_bounds(baseline.action_space)]
    if config.has_critic:
        critic_fields = {
            "gamma": config.gamma,
            "critic_steps": config.critic_steps,
            "improvement": config.improvement,
            "reward_scaler": MultiplyRewardScaler(1.0 / return_scale),
            "actor_learning_rate": config.learning_rate,
            "actor_encoder_factory": encoder_of(baseline),
        }
        described = _actor_critic(fields | critic_fields, baseline, config)
    else:
        fields |= {
            "learning_rate": config.learning_rate,
            "encoder_factory": encoder_of(baseline),
            "improvement": config.improvement if config.algorithm == "bc" else 0.0,
        }
        described = (AnnotatedDiscreteBCConfig if baseline.action_space.is_discrete else AnnotatedBCConfig)(**fields)
    algorithm = cast("Algorithm", described.create())
    algorithm.create_impl((baseline.input_size,), output_size(baseline.action_space))
    load_weights(policy_module(algorithm), baseline)
    target = cast("Any", algorithm.impl).modules.get_torch_modules().get("targ_policy")
    if target is not None:
        load_weights(target, baseline)
    return algorithm


def policy_module(algorithm: Algorithm) -> nn.Module:
    """The network of an algorithm that acts."""
    impl = algorithm.impl
    if impl is None:
        raise BadInput("The algorithm has no network yet; create it with `create_algorithm`.")
    return cast("nn.Module", impl.policy)


def network_outputs(algorithm: Algorithm, observations: Array, baseline: MlpPolicy) -> Array:
    """What the algorithm's network says: log-probabilities, or the mean in the action's unit.

    Args:
        algorithm: of `create_algorithm`.
        observations: (N, n) as the environment gives them.
        baseline: which the algorithm was created from.
    """
    inputs = torch.from_numpy(network_inputs(observations, baseline.observation_space))
    scaler = algorithm.observation_scaler
    with torch.no_grad():
        output = policy_module(algorithm)(inputs if scaler is None else scaler.transform(inputs))
        if baseline.action_space.is_discrete:
            return output.logits.numpy()
        middle, half = action_units(baseline.action_space)
        return (output.mu if baseline.head == "clip" else output.squashed_mu).numpy() * half + middle


def _actor_critic(fields: dict[str, Any], baseline: MlpPolicy, config: RefineConfig) -> LearnableConfig:
    """The d3rlpy algorithm with a critic that a configuration asks for."""
    encoder = encoder_of(baseline)
    if baseline.action_space.is_discrete:
        fields |= {
            "learning_rate": config.learning_rate,
            "encoder_factory": encoder,
            "target_update_interval": TARGET_INTERVAL,
            "evaluate_actor": config.algorithm == "recipe",
        }
        if config.algorithm == "dqn":
            return AnnotatedDQNConfig(**fields)
        return AnnotatedDiscreteCQLConfig(**fields, alpha=CONSERVATISM if config.algorithm == "recipe" else 1.0)
    if not np.isfinite(action_bounds(baseline.action_space)).all():
        raise BadInput(
            f"Mode {config.mode} of {config.algorithm} needs bounded actions.",
            "Use mode A of recipe or bc, or give the action space bounds.",
        )
    fields |= {"critic_learning_rate": config.learning_rate, "critic_encoder_factory": encoder}
    if config.algorithm == "iql":
        return AnnotatedIQLConfig(**fields, value_encoder_factory=encoder)
    if config.algorithm == "awac":
        return AnnotatedAWACConfig(**fields)
    fields["update_actor_interval"] = 1  # a snapshot's step is a step of the actor
    if config.algorithm == "rebrac":
        return AnnotatedReBRACConfig(**fields)
    return AnnotatedTD3PlusBCConfig(**fields, clones=config.algorithm == "td3_plus_bc")


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
            stops = _train(algorithm, table, config, tick, _logger(log_dir), f"labels-beta-{beta:g}")
            found += [Snapshot(_export(algorithm, start, probe, step), step, beta) for step in stops]
    return found


def _train(
    algorithm: Algorithm,
    table: PackedTable,
    config: RefineConfig,
    tick: Callable[..., None],
    logger: LoggerAdapterFactory,
    name: str,
) -> Iterator[int]:
    """Train from stop to stop, yielding each; a critic gets its steps before the first. Logs add the time to `name`."""
    stops, waiting = cast("tuple[int, ...]", config.snapshots), config.waiting
    length = math.gcd(waiting, *stops)  # d3rlpy trains whole epochs only, and logs once in each
    epochs = algorithm.fitter(
        AnnotatedBuffer(table),
        n_steps=waiting + stops[-1],
        n_steps_per_epoch=length,
        experiment_name=name,
        logger_adapter=logger,
        save_interval=waiting + stops[-1] + 1,  # of whole models: never
        show_progress=False,
        callback=tick,
    )
    done = -waiting
    for step in stops:
        with _refusing_divergence(step):
            deque(islice(epochs, (step - done) // length), maxlen=0)
        done = step
        yield step
    deque(epochs, maxlen=0)  # there are none left; the logger is closed


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


def _logger(log_dir: Path | None) -> LoggerAdapterFactory:
    """Logs trainings NAME as `NAME_TIME/*.csv` and `runs/NAME_TIME` of a folder; None logs nothing."""
    if log_dir is None:
        return NoopAdapterFactory()
    factories: list[LoggerAdapterFactory] = [FileAdapterFactory(str(log_dir))]
    if importlib.util.find_spec("tensorboardX"):
        factories.append(TensorboardAdapterFactory(str(log_dir)))
    return CombineAdapterFactory(factories)
