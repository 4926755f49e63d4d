"""Continuous actions with rewards, Gaussian actors: d3rlpy's IQL and AWAC, starting at the baseline.

Both clone logged actions, weighted by their advantage, so the actor never asks the critic about an action that was not
taken. Their losses are log-likelihoods; they are in units of a squared error, like the other terms. The width that
they learn stays in the training; that of a refined policy is the baseline's, or fitted in `train.py`.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch

from .continuous_critic import ContinuousActor, ContinuousActorImpl, ContinuousFields
from .d3rlpy_setup import (
    AWAC,
    IQL,
    ActionOutput,
    AWACConfig,
    AWACImpl,
    DeviceArg,
    IQLConfig,
    IQLImpl,
    TorchMiniBatch,
    build_gaussian_distribution,
    register_learnable,
)


@dataclasses.dataclass()
class AnnotatedIQLConfig(ContinuousFields, IQLConfig):
    """Implicit Q-learning (Kostrikov et al., arXiv 2110.06169) with suggestions, staying close to the baseline."""

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> AnnotatedIQL:
        """The algorithm of this configuration."""
        return AnnotatedIQL(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Name under which d3rlpy saves and loads it."""
        return "trajnote_iql"


@dataclasses.dataclass()
class AnnotatedAWACConfig(ContinuousFields, AWACConfig):
    """Advantage-weighted actor-critic (Nair et al., arXiv 2006.09359) with suggestions, close to the baseline."""

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> AnnotatedAWAC:
        """The algorithm of this configuration."""
        return AnnotatedAWAC(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Name under which d3rlpy saves and loads it."""
        return "trajnote_awac"


class WeightedRegressionImpl(ContinuousActorImpl):
    """Mixin of d3rlpy's actors that clone by likelihood."""

    def compute_own(self, batch: TorchMiniBatch, action: ActionOutput) -> torch.Tensor:
        """d3rlpy's own loss times `2 sigma^2 / m`, which makes it a weighted mean squared error (and a constant).

        Without that, its gradient would be 1 / sigma^2 times the suggestions', hundreds at d3rlpy's initial widths.
        """
        if self._terms.cuts is not None:
            action = action._replace(squashed_mu=action.mu)  # a cut mean has no gradient beyond the bounds
        variance = cast("torch.Tensor", action.logstd).detach().exp().square().mean()
        return super().compute_own(batch, action) * 2 * variance / action.mu.shape[1]


class AnnotatedIQLImpl(WeightedRegressionImpl, IQLImpl):
    """d3rlpy's critic and values with the annotated loss of the actor."""


class AnnotatedAWACImpl(WeightedRegressionImpl, AWACImpl):  # pyright: ignore[reportIncompatibleMethodOverride]
    """d3rlpy's critic with the annotated loss of the actor."""

    def compute_own(self, batch: TorchMiniBatch, action: ActionOutput) -> torch.Tensor:
        """As of all weighted regressions; d3rlpy adds over the batch here, where its others average."""
        return super().compute_own(batch, action) / len(batch.rewards)

    def compute_target(self, batch: TorchMiniBatch) -> torch.Tensor:
        """Value of the next observation under the actor, (B, 1), as in the paper.

        d3rlpy inherits SAC's target here, with an entropy at temperature 1 and a squashed sample; the paper has neither
        and the actor's own loss draws from the unsquashed Gaussian, as is done here.
        """
        with torch.no_grad():
            actions = build_gaussian_distribution(self._modules.policy(batch.next_observations)).sample()
            return self._targ_q_func_forwarder.compute_target(batch.next_observations, actions, reduction="min")


class AnnotatedIQL(ContinuousActor, IQL):
    """See `AnnotatedIQLConfig`."""

    implementation = AnnotatedIQLImpl


class AnnotatedAWAC(ContinuousActor, AWAC):
    """See `AnnotatedAWACConfig`."""

    implementation = AnnotatedAWACImpl


register_learnable(AnnotatedIQLConfig)
register_learnable(AnnotatedAWACConfig)
