"""The door to d3rlpy's saved models for the other rooms: loading one, and its policy as a portable network.

A `.d3` file is a pickle: loading one runs whatever is in it, so load only what you trust.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
from d3rlpy.algos.qlearning.torch.bc_impl import BCImpl, DiscreteBCImpl
from d3rlpy.algos.qlearning.torch.ddpg_impl import DDPGBaseImpl
from d3rlpy.algos.qlearning.torch.dqn_impl import DQNImpl
from d3rlpy.algos.qlearning.torch.sac_impl import DiscreteSACImpl
from d3rlpy.models.torch.q_functions.mean_q_function import DiscreteMeanQFunction
from d3rlpy.preprocessing import (
    MinMaxActionScaler,
    MinMaxObservationScaler,
    PixelObservationScaler,
    StandardObservationScaler,
)

from storage.errors import BadInput
from storage.schema import Array, Space

from .mlp import Head, MlpPolicy, action_bounds
from .sb3_models import Network, NotAnMlpError, read_modules

_SNAPSHOT = re.compile(r"model_(\d+)\.d3")


def find_learnable(path: Path) -> Path:
    """The `.d3` file that a path means: itself, or the newest `model_<step>.d3` of a folder of d3rlpy's logger.

    Raises:
        BadInput: when there is none.
    """
    if path.is_dir():
        steps = {int(match[1]): file for file in path.iterdir() if (match := _SNAPSHOT.fullmatch(file.name))}
        if not steps:
            raise BadInput(f"{path} holds no model_<step>.d3 of d3rlpy.", "Name a .d3 file.")
        return steps[max(steps)]
    if not path.is_file():
        raise BadInput(f"There is no d3rlpy model {path}.", "Name a .d3 file, or a folder of d3rlpy's logger.")
    return path


def load_learnable(path: Path) -> Any:
    """Load a `.d3` file on the CPU. It is a pickle: this runs whatever is in it.

    Raises:
        BadInput: when it cannot be loaded.
    """
    try:
        return d3rlpy.load_learnable(str(path), device="cpu:0")
    except Exception as error:  # a pickle of any origin
        raise BadInput(f"{path} is not a d3rlpy model: {type(error).__name__}: {error}.") from error


def from_d3rlpy(algo: Any, observation_space: Space, action_space: Space) -> MlpPolicy:
    """Convert the greedy policy of a d3rlpy algorithm exactly.

    DQN, NFQ and the discrete CQL give Q values; the discrete BC and SAC give logits; BC, TD3+BC, and whatever acts by
    the squashed mean of its actor (DDPG, TD3, SAC, CQL, IQL, AWAC, ReBRAC) give a tanh head.

    Args:
        algo: a loaded algorithm.
        observation_space: of the environment.
        action_space: of the environment.

    Raises:
        NotAnMlpError: for ensembles, distributional Q functions, convolutions, other layers or scalers, and algorithms
            whose greedy action is not the output of one network.
        BadInput: when it was made for other spaces.
    """
    if observation_space.is_discrete:
        raise NotAnMlpError("d3rlpy takes a discrete observation as a number, not as one input per value.")
    network = _read_policy(algo.impl)
    if network.head == "tanh":
        _check_bounds(algo.action_scaler, action_space)
    shift, scale = _read_scaler(algo.observation_scaler, observation_space.size)
    return replace(network.to_policy(observation_space, action_space), shift=shift, scale=scale)


def _read_policy(impl: Any) -> Network:
    """The network behind `predict`, recognised by the method that computes it, which subclasses share."""
    method, modules = type(impl).inner_predict_best_action, impl.modules
    if method is DQNImpl.inner_predict_best_action:
        return _read_q_function(modules.q_funcs)
    if method is DiscreteBCImpl.inner_predict_best_action:
        return _read_head(modules.imitator, "logits", "_fc")
    if method is DiscreteSACImpl.inner_predict_best_action:
        return _read_head(modules.policy, "logits", "_fc")
    if method is BCImpl.inner_predict_best_action:
        return _read_head(modules.imitator, "tanh", "_fc", "_mu")
    if method is DDPGBaseImpl.inner_predict_best_action:
        return _read_head(modules.policy, "tanh", "_fc", "_mu")
    raise NotAnMlpError(f"The greedy action of a {type(impl).__name__} is not the output of one network.")


def _read_q_function(functions: Any) -> Network:
    if len(functions) != 1 or not isinstance(functions[0], DiscreteMeanQFunction):
        kinds = ", ".join(type(function).__name__ for function in functions)
        raise NotAnMlpError(f"Its Q functions are {kinds}; one with a plain mean is portable.")
    return _read_head(functions[0], "q_values", "_fc")


def _read_head(network: Any, head: Head, *names: str) -> Network:
    """An encoder of plain layers and the last layer, whichever of the names that has."""
    last = next((getattr(network, name) for name in names if hasattr(network, name)), None)
    encoder = getattr(network, "_encoder", None)
    if last is None or not hasattr(encoder, "_layers"):
        raise NotAnMlpError(f"A {type(network).__name__} with a {type(encoder).__name__} is not portable.")
    return read_modules(getattr(encoder, "_layers"), last, head=head)  # noqa: B009  (private names of d3rlpy)


def _read_scaler(scaler: Any, size: int) -> tuple[Array | None, Array | None]:
    """Shift and scale (n,) of `x = (observation - shift) / scale`."""
    if scaler is None:
        return None, None
    if isinstance(scaler, StandardObservationScaler):
        mean, std = np.asarray(scaler.mean), np.asarray(scaler.std)
        return np.broadcast_to(mean, size), np.broadcast_to(std + scaler.eps, size)
    if isinstance(scaler, MinMaxObservationScaler):
        low, high = np.asarray(scaler.minimum), np.asarray(scaler.maximum)
        return np.broadcast_to((low + high) / 2, size), np.broadcast_to((high - low) / 2, size)
    if isinstance(scaler, PixelObservationScaler):
        return None, np.full(size, 255.0)
    raise NotAnMlpError(f"A {type(scaler).__name__} is not portable.")


def _check_bounds(scaler: Any, action_space: Space) -> None:
    """A portable tanh reaches from bound to bound; d3rlpy's reaches over its scaler's range, or [-1, 1] without one."""
    low, high = np.full(action_space.size, -1.0), np.full(action_space.size, 1.0)
    if isinstance(scaler, MinMaxActionScaler):
        low, high = np.asarray(scaler.minimum), np.asarray(scaler.maximum)
    elif scaler is not None:
        raise NotAnMlpError(f"A {type(scaler).__name__} is not portable.")
    bounds = action_bounds(action_space)
    if not (np.allclose(low, bounds[0]) and np.allclose(high, bounds[1])):
        raise NotAnMlpError(
            f"Its actions reach from {low} to {high}, the environment's from {bounds[0]} to {bounds[1]}."
        )
