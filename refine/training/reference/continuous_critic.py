"""Continuous actions with rewards: d3rlpy's TD3+BC, ReBRAC, IQL and AWAC, starting at the baseline.

The critic learns from logged transitions only: its loss is d3rlpy's own and never sees a suggestion. As in
`discrete_critic.py`, the actor waits until the critic knows what the baseline is worth. IQL and AWAC have Gaussian
actors that clone logged actions, weighted by their advantage, so the actor never asks the critic about an action that
was not taken. Their losses are log-likelihoods, in units of a squared error like the other terms. The width that they
learn stays in the training; that of a refined policy is the baseline's, or fitted in
`train.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import torch

from .d3rlpy_setup import (
    AWAC,
    IQL,
    ActionOutput,
    AWACConfig,
    AWACImpl,
    DeviceArg,
    IQLConfig,
    IQLImpl,
    ReBRAC,
    ReBRACConfig,
    ReBRACImpl,
    Shape,
    TD3PlusBC,
    TD3PlusBCConfig,
    TD3PlusBCImpl,
    TorchMiniBatch,
    build_gaussian_distribution,
    register_learnable,
)
from .losses import ActorLoss, CriticFields, WaitingActor, continuous_behaviour, join_own, read_notes, rebuild
from .networks import ClippedPolicy


@dataclasses.dataclass()
class ContinuousFields(CriticFields):
    """Fields of a continuous actor-critic.

    Args:
        cuts: (2, m) from where on the mean is cut (PPO), below and above, in the network's units; None: it is squashed
            (SAC, TD3).
    """

    cuts: list[list[float]] | None = None


class ContinuousActorImpl(WaitingActor):
    """Mixin of d3rlpy's continuous actor-critics: behaviour terms beside the actor's own loss."""

    def compute_actor_loss(self, batch: TorchMiniBatch, action: ActionOutput) -> ActorLoss:
        """What annotators and baseline say, and what the algorithm itself asks of its actor."""
        own = self.compute_own(batch, action)
        cuts = self._terms.cuts
        means = action.squashed_mu if cuts is None else action.mu  # a cut mean has no gradient beyond the bounds
        behaviour = continuous_behaviour(
            means,
            read_notes(batch),
            self._terms.stay_close,
            self._ramp,
            outlier_scale=self._terms.outlier_scale,
            cuts=cuts,
        )
        return join_own(behaviour, own, self._terms.improvement)

    def compute_own(self, batch: TorchMiniBatch, action: ActionOutput) -> torch.Tensor:
        """d3rlpy's own loss of the actor, on logged transitions."""
        parent: Any = super()
        return parent.compute_actor_loss(batch, action).actor_loss


class ContinuousActor:
    """Mixin of d3rlpy's algorithms: the annotated loss, and a cut mean where the baseline has one."""

    implementation: ClassVar[type[ContinuousActorImpl]]

    def inner_create_impl(self, observation_shape: Shape, action_size: int) -> None:
        """Build d3rlpy's modules, then the annotated loss around them."""
        algorithm: Any = self
        parent: Any = super()
        parent.inner_create_impl(observation_shape, action_size)
        modules = algorithm._impl.modules
        if algorithm._config.cuts is not None:
            names = [name for name in ("policy", "targ_policy") if hasattr(modules, name)]
            modules = dataclasses.replace(modules, **{name: ClippedPolicy(getattr(modules, name)) for name in names})
        algorithm._impl = rebuild(algorithm, self.implementation, modules=modules)


@dataclasses.dataclass()
class AnnotatedTD3PlusBCConfig(ContinuousFields, TD3PlusBCConfig):
    """TD3+BC (Fujimoto and Gu, arXiv 2106.06860) with suggestions, staying close to the baseline.

    Args:
        clones: whether the actor's own loss is d3rlpy's, with its distance to the logged actions and `alpha`. If not,
            it is `-Q(s, pi(s)) / mean |Q|` alone: a logged action is a noisy sample of the baseline, whose mean the
            actor stays close to anyway.
    """

    clones: bool = False

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> AnnotatedTD3PlusBC:
        """The algorithm of this configuration."""
        return AnnotatedTD3PlusBC(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Name under which d3rlpy saves and loads it."""
        return "trajnote_td3_plus_bc"


@dataclasses.dataclass()
class AnnotatedReBRACConfig(ContinuousFields, ReBRACConfig):
    """ReBRAC (Tarasov et al., arXiv 2305.09836) with suggestions, staying close to the baseline."""

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> AnnotatedReBRAC:
        """The algorithm of this configuration."""
        return AnnotatedReBRAC(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Name under which d3rlpy saves and loads it."""
        return "trajnote_rebrac"


class AnnotatedTD3PlusBCImpl(ContinuousActorImpl, TD3PlusBCImpl):
    """d3rlpy's critic with the annotated loss of the actor."""

    def compute_own(self, batch: TorchMiniBatch, action: ActionOutput) -> torch.Tensor:
        """d3rlpy's own, or the critic's value of the actor's action, divided by the values' mean size."""
        if self._terms.clones:
            return super().compute_own(batch, action)
        values = self._q_func_forwarder.compute_expected_q(batch.observations, action.squashed_mu, "none")[0]
        return -values.mean() / values.abs().mean().clamp(min=1e-6).detach()


class AnnotatedReBRACImpl(ContinuousActorImpl, ReBRACImpl):
    """d3rlpy's critic, penalised by the distance of next actions, with the annotated loss of the actor."""


class AnnotatedTD3PlusBC(ContinuousActor, TD3PlusBC):
    """See `AnnotatedTD3PlusBCConfig`."""

    implementation = AnnotatedTD3PlusBCImpl


class AnnotatedReBRAC(ContinuousActor, ReBRAC):
    """See `AnnotatedReBRACConfig`."""

    implementation = AnnotatedReBRACImpl


register_learnable(AnnotatedTD3PlusBCConfig)
register_learnable(AnnotatedReBRACConfig)


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
