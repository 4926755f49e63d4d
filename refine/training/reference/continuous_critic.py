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
from typing import Any, cast

import torch

from .d3rlpy_setup import (
    AWAC,
    IQL,
    ActionOutput,
    AWACConfig,
    AWACImpl,
    IQLConfig,
    IQLImpl,
    ReBRAC,
    ReBRACConfig,
    ReBRACImpl,
    TD3PlusBC,
    TD3PlusBCConfig,
    TD3PlusBCImpl,
    TorchMiniBatch,
    build_gaussian_distribution,
)
from .losses import ActorLoss, AnnotatedImpl, ContinuousFields, ContinuousImpl, CriticFields, join_own, register


class ContinuousActorImpl(ContinuousImpl):
    """Mixin of d3rlpy's continuous actor-critics: behaviour terms beside the actor's own loss, once it may move."""

    def inner_update(self, batch: TorchMiniBatch, grad_step: int) -> dict[str, float]:
        """One step of d3rlpy's own, without the actor during the critic's start."""
        waited = grad_step - self._terms.critic_steps
        self.follow(max(waited, 0))
        parent: Any = super(AnnotatedImpl, self)
        if waited >= 0:
            return parent.inner_update(batch, grad_step)
        metrics = parent.update_critic(batch)
        parent.update_critic_target()
        return metrics

    def compute_actor_loss(self, batch: TorchMiniBatch, action: ActionOutput) -> ActorLoss:
        """What annotators and baseline say, and what the algorithm itself asks of its actor."""
        own = self.compute_own(batch, action)
        return join_own(self.compute_behaviour(action, batch), own, self._terms.improvement)

    def compute_own(self, batch: TorchMiniBatch, action: ActionOutput) -> torch.Tensor:
        """d3rlpy's own loss of the actor, on logged transitions."""
        parent: Any = super()
        return parent.compute_actor_loss(batch, action).actor_loss


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


class WeightedRegressionImpl(ContinuousActorImpl):
    """Mixin of d3rlpy's actors that clone by likelihood."""

    def compute_own(self, batch: TorchMiniBatch, action: ActionOutput) -> torch.Tensor:
        """d3rlpy's own loss times `2 sigma^2 / m`, which makes it a weighted mean squared error (and a constant).

        Without that, its gradient would be 1 / sigma^2 times the suggestions', hundreds at d3rlpy's initial widths.
        """
        action = action._replace(squashed_mu=self.compute_means(action))
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


@register
@dataclasses.dataclass()
class AnnotatedTD3PlusBCConfig(ContinuousFields, CriticFields, TD3PlusBCConfig):
    """TD3+BC (Fujimoto and Gu, arXiv 2106.06860) with suggestions, staying close to the baseline.

    Args:
        clones: whether the actor's own loss is d3rlpy's, with its distance to the logged actions and `alpha`. If not,
            it is `-Q(s, pi(s)) / mean |Q|` alone: a logged action is a noisy sample of the baseline, whose mean the
            actor stays close to anyway.
    """

    algorithm = TD3PlusBC
    implementation = AnnotatedTD3PlusBCImpl

    clones: bool = False


@register
@dataclasses.dataclass()
class AnnotatedReBRACConfig(ContinuousFields, CriticFields, ReBRACConfig):
    """ReBRAC (Tarasov et al., arXiv 2305.09836) with suggestions, staying close to the baseline."""

    algorithm = ReBRAC
    implementation = AnnotatedReBRACImpl


@register
@dataclasses.dataclass()
class AnnotatedIQLConfig(ContinuousFields, CriticFields, IQLConfig):
    """Implicit Q-learning (Kostrikov et al., arXiv 2110.06169) with suggestions, staying close to the baseline."""

    algorithm = IQL
    implementation = AnnotatedIQLImpl


@register
@dataclasses.dataclass()
class AnnotatedAWACConfig(ContinuousFields, CriticFields, AWACConfig):
    """Advantage-weighted actor-critic (Nair et al., arXiv 2006.09359) with suggestions, close to the baseline."""

    algorithm = AWAC
    implementation = AnnotatedAWACImpl
