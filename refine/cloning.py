"""Mode A: d3rlpy's behaviour cloning with suggestions as targets, starting at the baseline and staying close to it.

Logged actions and rewards play no part here; only the states do.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from .door import (
    BC,
    BCConfig,
    BCImpl,
    BCModules,
    DeviceArg,
    DiscreteBC,
    DiscreteBCConfig,
    DiscreteBCImpl,
    DiscreteBCModules,
    Shape,
    TorchMiniBatch,
    register_learnable,
)
from .losses import BehaviourLoss, continuous_behaviour, discrete_behaviour, read_notes
from .networks import ClippedPolicy


@dataclasses.dataclass()
class AnnotatedDiscreteBCConfig(DiscreteBCConfig):
    """Cloning of suggestions, discrete: cross-entropy plus `stay_close * KL(pi_0 || pi)`.

    Args:
        stay_close: weight of the distance to the baseline. d3rlpy's own `beta`, a penalty on logits, is not used.
    """

    stay_close: float = 0.1

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> AnnotatedDiscreteBC:
        """The algorithm of this configuration."""
        return AnnotatedDiscreteBC(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Name under which d3rlpy saves and loads it."""
        return "trajnote_discrete_bc"


class AnnotatedDiscreteBC(DiscreteBC):
    """See `AnnotatedDiscreteBCConfig`."""

    def inner_create_impl(self, observation_shape: Shape, action_size: int) -> None:
        """Build d3rlpy's modules, then the annotated loss around them."""
        super().inner_create_impl(observation_shape, action_size)
        config = cast("AnnotatedDiscreteBCConfig", self._config)
        self._impl = AnnotatedDiscreteBCImpl(
            stay_close=config.stay_close,
            observation_shape=observation_shape,
            action_size=action_size,
            modules=cast("DiscreteBCImpl", self._impl).modules,
            beta=config.beta,
            compiled=self.compiled,
            device=self._device,
        )


class AnnotatedDiscreteBCImpl(DiscreteBCImpl):
    """The annotated loss of a categorical policy; takes what d3rlpy's own takes, and `stay_close`."""

    _modules: DiscreteBCModules

    def __init__(self, *, stay_close: float, **fields: Any) -> None:
        super().__init__(**fields)
        self._stay_close = stay_close

    def compute_imitator_grad(self, batch: TorchMiniBatch) -> BehaviourLoss:
        """Gradients of the cross-entropy to the suggestions and of the distance to the baseline."""
        self._modules.optim.zero_grad()
        logits = self._modules.imitator(batch.observations).logits
        loss = discrete_behaviour(logits, read_notes(batch), self._stay_close)
        loss.loss.backward()
        return loss

    @property
    def policy(self) -> Any:
        """The categorical policy; d3rlpy's own implementation does not name it."""
        return self._modules.imitator


@dataclasses.dataclass()
class AnnotatedBCConfig(BCConfig):
    """Cloning of suggestions, continuous: squared error plus `stay_close` times that to the baseline's mean.

    Args:
        stay_close: weight of the distance to the baseline.
        clipped: whether the mean is cut to the bounds (PPO) instead of squashed to them (SAC, TD3).
    """

    stay_close: float = 0.1
    clipped: bool = False

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> AnnotatedBC:
        """The algorithm of this configuration."""
        return AnnotatedBC(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Name under which d3rlpy saves and loads it."""
        return "trajnote_bc"


class AnnotatedBC(BC):
    """See `AnnotatedBCConfig`."""

    def inner_create_impl(self, observation_shape: Shape, action_size: int) -> None:
        """Build d3rlpy's modules, then the annotated loss around them."""
        super().inner_create_impl(observation_shape, action_size)
        config = cast("AnnotatedBCConfig", self._config)
        modules = cast("BCModules", cast("BCImpl", self._impl).modules)
        if config.clipped:
            modules = dataclasses.replace(modules, imitator=ClippedPolicy(modules.imitator))
        self._impl = AnnotatedBCImpl(
            stay_close=config.stay_close,
            clipped=config.clipped,
            observation_shape=observation_shape,
            action_size=action_size,
            modules=modules,
            policy_type=config.policy_type,
            compiled=self.compiled,
            device=self._device,
        )


class AnnotatedBCImpl(BCImpl):
    """The annotated loss of a deterministic policy; takes what d3rlpy's own takes, `stay_close` and `clipped`."""

    _modules: BCModules

    def __init__(self, *, stay_close: float, clipped: bool, **fields: Any) -> None:
        super().__init__(**fields)
        self._stay_close = stay_close
        self._clipped = clipped

    def compute_imitator_grad(self, batch: TorchMiniBatch) -> BehaviourLoss:
        """Gradients of the squared errors to the suggestions and to the baseline's mean."""
        self._modules.optim.zero_grad()
        action = self._modules.imitator(batch.observations)
        means = action.mu if self._clipped else action.squashed_mu  # a cut mean has no gradient beyond the bounds
        loss = continuous_behaviour(means, read_notes(batch), self._stay_close)
        loss.loss.backward()
        return loss


register_learnable(AnnotatedDiscreteBCConfig)
register_learnable(AnnotatedBCConfig)
