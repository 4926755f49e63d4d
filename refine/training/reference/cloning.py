"""Behaviour cloning of d3rlpy with suggestions as targets, starting at the baseline and staying close to it.

The recipe of mode A clones suggestions alone: logged actions and rewards play no part in it, only the states do. The
algorithm `bc` clones the logged actions beside them, as d3rlpy's own does.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch.nn.functional import mse_loss

from .d3rlpy_setup import (
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
from .losses import (
    AnnotatedFields,
    AnnotatedImpl,
    BehaviourLoss,
    continuous_behaviour,
    discrete_behaviour,
    read_notes,
    rebuild,
)
from .networks import ClippedPolicy


@dataclasses.dataclass()
class AnnotatedDiscreteBCConfig(AnnotatedFields, DiscreteBCConfig):
    """Cloning, discrete: cross-entropy to suggestions, `stay_close * KL(pi_0 || pi)`, `improvement *` d3rlpy's own."""

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
        self._impl = rebuild(self, AnnotatedDiscreteBCImpl)


class CloningImpl(AnnotatedImpl):
    """Mixin of d3rlpy's cloning: suggestions and baseline first, the logged actions if they have a weight."""

    _modules: Any

    def compute_imitator_grad(self, batch: TorchMiniBatch) -> BehaviourLoss:
        """Gradients of the distance to the suggestions, to the baseline, and of the algorithm's own loss."""
        self._modules.optim.zero_grad()
        output = self._modules.imitator(batch.observations)
        loss = self.compute_behaviour(output, batch)
        if self._terms.improvement:
            own = self.compute_own(output, batch)
            loss = dataclasses.replace(loss, loss=loss.loss + self._terms.improvement * own)
        loss.loss.backward()
        return loss

    def compute_behaviour(self, output: Any, batch: TorchMiniBatch) -> BehaviourLoss:
        """What suggestions and baseline say about the policy's output."""
        raise NotImplementedError

    def compute_own(self, output: Any, batch: TorchMiniBatch) -> torch.Tensor:
        """What the algorithm itself asks of the policy."""
        raise NotImplementedError


class AnnotatedDiscreteBCImpl(CloningImpl, DiscreteBCImpl):
    """The annotated loss of a categorical policy."""

    _modules: DiscreteBCModules

    def compute_behaviour(self, output: Any, batch: TorchMiniBatch) -> BehaviourLoss:
        """Cross-entropy to the suggestions and divergence from the baseline."""
        return discrete_behaviour(output.logits, read_notes(batch), self._terms.stay_close, self._ramp)

    def compute_own(self, output: Any, batch: TorchMiniBatch) -> torch.Tensor:
        """d3rlpy's cross-entropy to the logged actions with its penalty on logits."""
        return self.compute_loss(batch.observations, batch.actions).loss

    @property
    def policy(self) -> Any:
        """The categorical policy; d3rlpy's own implementation does not name it."""
        return self._modules.imitator


@dataclasses.dataclass()
class AnnotatedBCConfig(AnnotatedFields, BCConfig):
    """Cloning, continuous: squared errors to suggestions, to the baseline's mean and to logged actions.

    Args:
        cuts: (2, m) from where on the mean is cut (PPO), below and above, in the network's units; None: it is squashed
            (SAC, TD3).
    """

    cuts: list[list[float]] | None = None

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
        modules = cast("BCModules", cast("BCImpl", self._impl).modules)
        if cast("AnnotatedBCConfig", self._config).cuts is not None:
            modules = dataclasses.replace(modules, imitator=ClippedPolicy(modules.imitator))
        self._impl = rebuild(self, AnnotatedBCImpl, modules=modules)


class AnnotatedBCImpl(CloningImpl, BCImpl):
    """The annotated loss of a deterministic policy; a cut mean has no gradient beyond the bounds, so it is not cut."""

    _modules: BCModules

    def compute_behaviour(self, output: Any, batch: TorchMiniBatch) -> BehaviourLoss:
        """Squared errors to the suggestions and to the baseline's mean."""
        return continuous_behaviour(
            self._means(output),
            read_notes(batch),
            self._terms.stay_close,
            self._ramp,
            outlier_scale=self._terms.outlier_scale,
            cuts=self._terms.cuts,
        )

    def compute_own(self, output: Any, batch: TorchMiniBatch) -> torch.Tensor:
        """d3rlpy's squared error to the logged actions."""
        return mse_loss(self._means(output), batch.actions)

    def _means(self, output: Any) -> torch.Tensor:
        return output.squashed_mu if self._terms.cuts is None else output.mu


register_learnable(AnnotatedDiscreteBCConfig)
register_learnable(AnnotatedBCConfig)
