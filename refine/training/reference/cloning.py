"""Behaviour cloning of d3rlpy with suggestions as targets, starting at the baseline and staying close to it.

The recipe of mode A clones suggestions alone: logged actions and rewards play no part in it, only the states do. The
algorithm `bc` clones the logged actions beside them, as d3rlpy's own does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.nn.functional import mse_loss

from .d3rlpy_setup import (
    BC,
    BCConfig,
    BCImpl,
    BCModules,
    DiscreteBC,
    DiscreteBCConfig,
    DiscreteBCImpl,
    DiscreteBCModules,
    TorchMiniBatch,
)
from .losses import (
    AnnotatedFields,
    AnnotatedImpl,
    BehaviourLoss,
    ContinuousFields,
    ContinuousImpl,
    DiscreteImpl,
    register,
)


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


class AnnotatedDiscreteBCImpl(DiscreteImpl, CloningImpl, DiscreteBCImpl):
    """The annotated loss of a categorical policy."""

    _modules: DiscreteBCModules

    def compute_own(self, output: Any, batch: TorchMiniBatch) -> torch.Tensor:
        """d3rlpy's cross-entropy to the logged actions with its penalty on logits."""
        return self.compute_loss(batch.observations, batch.actions).loss

    @property
    def policy(self) -> Any:
        """The categorical policy; d3rlpy's own implementation does not name it."""
        return self._modules.imitator


class AnnotatedBCImpl(ContinuousImpl, CloningImpl, BCImpl):
    """The annotated loss of a deterministic policy."""

    _modules: BCModules

    def compute_own(self, output: Any, batch: TorchMiniBatch) -> torch.Tensor:
        """d3rlpy's squared error to the logged actions."""
        return mse_loss(self.compute_means(output), batch.actions)


@register
@dataclasses.dataclass()
class AnnotatedDiscreteBCConfig(AnnotatedFields, DiscreteBCConfig):
    """Cloning, discrete: cross-entropy to suggestions, `stay_close * KL(pi_0 || pi)`, `improvement *` d3rlpy's own."""

    algorithm = DiscreteBC
    implementation = AnnotatedDiscreteBCImpl


@register
@dataclasses.dataclass()
class AnnotatedBCConfig(ContinuousFields, BCConfig):
    """Cloning, continuous: squared errors to suggestions, to the baseline's mean and to logged actions."""

    algorithm = BC
    implementation = AnnotatedBCImpl
