"""Which d3rlpy algorithm a refinement uses, configured so that it starts exactly at the baseline."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import nn

from storage.errors import BadInput
from storage.schema import Array

from ...config import RefineConfig
from ...policies import MlpPolicy, action_bounds, action_units, network_inputs, output_size
from ..units import cutting_bounds
from .cloning import AnnotatedBCConfig, AnnotatedDiscreteBCConfig
from .continuous_critic import AnnotatedReBRACConfig, AnnotatedTD3PlusBCConfig
from .d3rlpy_setup import LearnableConfig, MultiplyRewardScaler, QLearningAlgoBase
from .discrete_critic import AnnotatedDiscreteCQLConfig, AnnotatedDQNConfig
from .networks import action_scaler_of, encoder_of, load_weights, observation_scaler_of
from .weighted_regression import AnnotatedAWACConfig, AnnotatedIQLConfig

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
    build = _actor_critic if config.has_critic else _cloning
    algorithm = cast("Algorithm", build(fields, baseline, config, return_scale).create())
    algorithm.create_impl((baseline.input_size,), output_size(baseline.action_space))
    _start_at(algorithm, baseline)
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


def _cloning(fields: dict[str, Any], baseline: MlpPolicy, config: RefineConfig, return_scale: float) -> LearnableConfig:
    fields |= {
        "learning_rate": config.learning_rate,
        "encoder_factory": encoder_of(baseline),
        "improvement": config.improvement if config.algorithm == "bc" else 0.0,
    }
    return AnnotatedDiscreteBCConfig(**fields) if baseline.action_space.is_discrete else AnnotatedBCConfig(**fields)


def _actor_critic(
    fields: dict[str, Any], baseline: MlpPolicy, config: RefineConfig, return_scale: float
) -> LearnableConfig:
    fields |= {
        "gamma": config.gamma,
        "critic_steps": config.critic_steps,
        "improvement": config.improvement,
        "reward_scaler": MultiplyRewardScaler(1.0 / return_scale),
        "actor_learning_rate": config.learning_rate,
        "actor_encoder_factory": encoder_of(baseline),
    }
    if baseline.action_space.is_discrete:
        return _discrete_critic(fields, baseline, config)
    if not np.isfinite(action_bounds(baseline.action_space)).all():
        raise BadInput(
            f"Mode {config.mode} of {config.algorithm} needs bounded actions.",
            "Use mode A of recipe or bc, or give the action space bounds.",
        )
    return _continuous_critic(fields, baseline, config)


def _discrete_critic(fields: dict[str, Any], baseline: MlpPolicy, config: RefineConfig) -> LearnableConfig:
    fields |= {
        "learning_rate": config.learning_rate,
        "encoder_factory": encoder_of(baseline),
        "target_update_interval": TARGET_INTERVAL,
        "evaluate_actor": config.algorithm == "recipe",
    }
    if config.algorithm == "dqn":
        return AnnotatedDQNConfig(**fields)
    return AnnotatedDiscreteCQLConfig(**fields, alpha=CONSERVATISM if config.algorithm == "recipe" else 1.0)


def _continuous_critic(fields: dict[str, Any], baseline: MlpPolicy, config: RefineConfig) -> LearnableConfig:
    encoder = encoder_of(baseline)
    fields |= {"critic_learning_rate": config.learning_rate, "critic_encoder_factory": encoder}
    if config.algorithm == "iql":
        return AnnotatedIQLConfig(**fields, value_encoder_factory=encoder)
    if config.algorithm == "awac":
        return AnnotatedAWACConfig(**fields)
    fields["update_actor_interval"] = 1  # a snapshot's step is a step of the actor
    if config.algorithm == "rebrac":
        return AnnotatedReBRACConfig(**fields)
    return AnnotatedTD3PlusBCConfig(**fields, clones=config.algorithm == "td3_plus_bc")


def _start_at(algorithm: Algorithm, baseline: MlpPolicy) -> None:
    load_weights(policy_module(algorithm), baseline)
    target = cast("Any", algorithm.impl).modules.get_torch_modules().get("targ_policy")
    if target is not None:
        load_weights(target, baseline)
