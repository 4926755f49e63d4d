"""Networks of other libraries as portable policies, layer by layer: the same weights, or a refusal that says why.

Stable-Baselines3 is read here, d3rlpy in `d3rlpy_models.py`. Nothing is trained or distilled, and no file is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import gym_notices.notices as gym_notices
import numpy as np
import torch
from torch import nn

from storage.errors import BadInput
from storage.schema import Array, Space

from .mlp import Activation, MlpPolicy

# Stable-Baselines3 and d3rlpy both try to import the old gym, which would print a page about its end
gym_notices.notices.clear()

_ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.Tanh: "tanh", nn.ReLU: "relu"}
_INERT = (nn.Flatten, nn.Identity, nn.Dropout)  # they change nothing when a policy acts


class NotAnMlpError(BadInput):
    """A policy that acts, but is no perceptron of the portable kind."""


class Dense(NamedTuple):
    """The layers of a perceptron."""

    weights: tuple[Array, ...]  # (in, out) each
    biases: tuple[Array, ...]  # (out,) each
    activation: Activation


def use_one_thread() -> None:
    """Let torch compute in one thread; on nets this small two threads are several times slower."""
    torch.set_num_threads(1)


def from_sb3(model: Any, observation_space: Space, action_space: Space) -> MlpPolicy:
    """Convert a model of Stable-Baselines3 exactly: DQN, PPO and A2C (both kinds of action), SAC, TD3 and DDPG.

    A continuous PPO or A2C clips its mean to the bounds and keeps its standard deviation; SAC's depends on the state
    and is left out, so that the portable policy acts greedily.

    Args:
        model: a loaded model.
        observation_space: of the environment.
        action_space: of the environment.

    Raises:
        NotAnMlpError: for convolutions, recurrence, extra feature extractors, state-dependent exploration (gSDE), or
            activations other than tanh and ReLU.
        BadInput: when the model was made for other spaces.
    """
    policy = model.policy
    spaces = {"observation_space": observation_space, "action_space": action_space}
    if getattr(model, "use_sde", False):
        raise NotAnMlpError("The model uses state-dependent exploration (gSDE).")
    if hasattr(policy, "q_net"):
        _check_plain_input(policy.q_net)
        return MlpPolicy(**spaces, **read_dense(policy.q_net.q_net)._asdict(), head="q_values")
    if hasattr(policy, "mlp_extractor"):
        return _from_actor_critic(policy, observation_space, action_space)
    if hasattr(policy, "actor") and hasattr(policy.actor, "mu"):
        _check_plain_input(policy.actor)
        return MlpPolicy(**spaces, **_read_squashed(policy.actor)._asdict(), head="tanh")
    raise NotAnMlpError(f"A {type(policy).__name__} is not known; DQN, PPO, A2C, SAC, TD3 and DDPG are.")


def read_dense(*modules: nn.Module) -> Dense:
    """Read linear layers with one activation between each two.

    Raises:
        NotAnMlpError: for any other layer or order.
    """
    leaves = list(_leaves(modules))
    linears = [leaf for leaf in leaves if isinstance(leaf, nn.Linear)]
    others = [type(leaf) for leaf in leaves if not isinstance(leaf, nn.Linear)]
    kinds = set(others) or {nn.Tanh}
    alternates = all(isinstance(leaf, nn.Linear) == (place % 2 == 0) for place, leaf in enumerate(leaves))
    if len(kinds) != 1 or not kinds <= _ACTIVATIONS.keys() or not alternates or len(linears) != len(others) + 1:
        layers = ", ".join(type(leaf).__name__ for leaf in leaves)
        raise NotAnMlpError(f"Its layers are {layers}; linear ones with tanh or ReLU between them are portable.")
    weights = tuple(to_array(linear.weight).T for linear in linears)
    biases = tuple(_bias(linear) for linear in linears)
    return Dense(weights, biases, _ACTIVATIONS[kinds.pop()])


def to_array(tensor: torch.Tensor) -> Array:
    """A tensor's numbers in NumPy, as a copy."""
    return tensor.detach().cpu().numpy().copy()


def _from_actor_critic(policy: Any, observation_space: Space, action_space: Space) -> MlpPolicy:
    if hasattr(policy, "lstm_actor"):
        raise NotAnMlpError("The model is recurrent.")
    _check_plain_input(policy)
    dense = read_dense(policy.mlp_extractor.policy_net, policy.action_net)
    return MlpPolicy(
        observation_space,
        action_space,
        *dense,
        head="logits" if action_space.is_discrete else "clip",
        log_std=None if action_space.is_discrete else to_array(policy.log_std),
    )


def _read_squashed(actor: Any) -> Dense:
    """SAC's mean is a linear layer after `latent_pi`; TD3's `mu` is the whole network with a tanh at its end."""
    if hasattr(actor, "latent_pi"):
        return read_dense(actor.latent_pi, actor.mu)
    layers = list(_leaves([actor.mu]))
    if not isinstance(layers[-1], nn.Tanh):
        raise NotAnMlpError("The actor does not end in a tanh.")
    return read_dense(*layers[:-1])


def _check_plain_input(owner: Any) -> None:
    extractor = type(owner.features_extractor).__name__
    if extractor != "FlattenExtractor":
        raise NotAnMlpError(f"The model sees through a {extractor}; only flat observations are portable.")


def _leaves(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential | nn.ModuleList):
            yield from _leaves(module)
        elif not isinstance(module, _INERT):
            yield module


def _bias(linear: nn.Linear) -> Array:
    bias: torch.Tensor | None = getattr(linear, "bias", None)
    return np.zeros(linear.out_features, np.float32) if bias is None else to_array(bias)
