"""Policies as torch modules and back: what makes d3rlpy start exactly at the baseline."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from storage.errors import BadInput
from storage.schema import Array

from ...policies import MlpPolicy, action_units
from ..packing import as_policy, network_layers
from .d3rlpy_setup import (
    ActionOutput,
    MinMaxActionScaler,
    Policy,
    StandardObservationScaler,
    TorchObservation,
    VectorEncoderFactory,
    register_observation_scaler,
)


class ClippedPolicy(Policy):
    """A d3rlpy policy whose mean is cut to the bounds instead of squashed; `mu` is the mean before the cut.

    Args:
        policy: a d3rlpy policy, whose parameters are shared.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._policy = policy

    def forward(self, x: TorchObservation, *args: Any) -> ActionOutput:
        """Mean action, and the same between -1 and 1, (B, m) each."""
        output = self._policy(x)
        return ActionOutput(output.mu, output.mu.clamp(-1.0, 1.0), output.logstd)


@dataclass
class LimitedObservationScaler(StandardObservationScaler):
    """As d3rlpy's, and cut to plus and minus a limit afterwards."""

    limit: float = math.inf

    def transform(self, x: torch.Tensor) -> torch.Tensor:
        """Observations (..., n) as the first layer takes them."""
        return super().transform(x).clamp(-self.limit, self.limit)

    def transform_numpy(self, x: Array) -> Array:
        """The same in NumPy."""
        return np.clip(super().transform_numpy(x), -self.limit, self.limit)

    @staticmethod
    def get_type() -> str:
        """Its name for d3rlpy."""
        return "limited"


register_observation_scaler(LimitedObservationScaler)  # so that what was saved with one is loaded here again


@contextmanager
def reproducible(seed: int) -> Generator[None]:
    """Seed torch for a while and keep it to one thread, which is faster on small networks and always adds alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def encoder_of(policy: MlpPolicy) -> VectorEncoderFactory:
    """The d3rlpy encoder with the policy's hidden layers.

    Raises:
        BadInput: when the policy has no hidden layer.
    """
    if len(policy.weights) < 2:
        raise BadInput(
            "The baseline has no hidden layer, which d3rlpy cannot build.",
            "Distil it into a network with hidden layers first.",
        )
    return VectorEncoderFactory(
        hidden_units=[weight.shape[1] for weight in policy.weights[:-1]], activation=policy.activation
    )


def observation_scaler_of(policy: MlpPolicy) -> StandardObservationScaler | None:
    """The policy's normalisation as d3rlpy's, `(x - shift) / scale` and its limit, or None without one."""
    if policy.shift is None and policy.scale is None and policy.input_limit is None:
        return None
    shift = np.zeros(policy.input_size) if policy.shift is None else policy.shift
    scale = np.ones(policy.input_size) if policy.scale is None else policy.scale
    if policy.input_limit is None:
        return StandardObservationScaler(mean=shift, std=scale, eps=0.0)
    return LimitedObservationScaler(mean=shift, std=scale, eps=0.0, limit=policy.input_limit)


def action_scaler_of(policy: MlpPolicy) -> MinMaxActionScaler | None:
    """The map of continuous actions to -1 .. 1, or None when discrete."""
    if policy.action_space.is_discrete:
        return None
    middle, half = action_units(policy.action_space)
    return MinMaxActionScaler(minimum=middle - half, maximum=middle + half)


def load_weights(module: nn.Module, policy: MlpPolicy) -> None:
    """Copy a policy's weights into a module with the same linear layers."""
    weights, biases = network_layers(policy)
    with torch.no_grad():
        for linear, weight, bias in zip(_linears(module), weights, biases, strict=True):
            linear.weight.copy_(torch.tensor(weight.T))
            linear.bias.copy_(torch.tensor(bias))


def read_weights(module: nn.Module, like: MlpPolicy) -> MlpPolicy:
    """A policy like the given one with the weights of a module.

    Raises:
        BadInput: when a weight is not finite.
    """
    return as_policy(*module_layers(module), like)


def module_layers(module: nn.Module) -> tuple[list[Array], list[Array]]:
    """Weights (in, out) and biases (out,) of a module's linear layers."""
    linears = _linears(module)
    weights = [linear.weight.detach().cpu().numpy().T for linear in linears]
    return weights, [linear.bias.detach().cpu().numpy() for linear in linears]


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]
