"""Discrete actions with rewards: a Q function of d3rlpy on relabelled rewards, beside an actor.

The critic learns from logged transitions only: its loss is d3rlpy's own and never sees a suggestion. The actor starts
at the baseline and waits until the critic knows what the baseline is worth; it is then one step of policy improvement
away from the data (Brandfonbrener et al., "Offline RL Without Off-Policy Evaluation", NeurIPS 2021). d3rlpy's own
policy is the argmax of the Q function itself: a suggestion could move it only by changing the critic.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.nn.functional import huber_loss

from .d3rlpy_setup import (
    DQN,
    CategoricalPolicy,
    DiscreteCQL,
    DiscreteCQLConfig,
    DiscreteCQLImpl,
    DiscreteCQLLoss,
    DQNConfig,
    DQNImpl,
    DQNModules,
    EncoderFactory,
    OptimizerFactory,
    OptimizerWrapper,
    Shape,
    TorchMiniBatch,
    TorchObservation,
    asdict_as_float,
    create_categorical_policy,
    make_encoder_field,
    make_optimizer_field,
)
from .losses import ActorLoss, CriticFields, DiscreteImpl, join_own, read_notes, register


@dataclasses.dataclass()
class ActorFields(CriticFields):
    """Fields of a Q function with an actor.

    The baseline's logits say nothing about the size of returns, so they do not start a Q function: they start an actor,
    and the Q function, trained from scratch, tells it which actions are better than the baseline's.

    Args:
        actor_learning_rate: learning rate of the actor.
        actor_optim_factory: its optimizer.
        actor_encoder_factory: its hidden layers.
        evaluate_actor: whether the target of a transition is the expectation over the actor, `r + gamma * sum_a
            pi(a|s') Q'(s', a)` (expected SARSA, as in discrete soft actor-critic, Christodoulou, arXiv 1910.07207);
            if not, it is d3rlpy's own.
    """

    actor_learning_rate: float = 1e-3
    actor_optim_factory: OptimizerFactory = make_optimizer_field()  # noqa: RUF009 (a dataclass field)
    actor_encoder_factory: EncoderFactory = make_encoder_field()  # noqa: RUF009
    evaluate_actor: bool = True


@dataclasses.dataclass(frozen=True)
class ActorDQNModules(DQNModules):
    """The modules of d3rlpy's DQN and an actor."""

    actor: CategoricalPolicy
    actor_optim: OptimizerWrapper


class ActorBesideImpl(DiscreteImpl):
    """Mixin of d3rlpy's Q functions: an actor beside them."""

    _modules: Any  # ActorDQNModules
    _q_func_forwarder: Any
    _targ_q_func_forwarder: Any

    @classmethod
    def complete(cls, modules: DQNModules, algorithm: Any, observation_shape: Shape, action_size: int) -> Any:
        """The critic's modules and an actor."""
        config: ActorFields = algorithm._config
        actor = create_categorical_policy(
            observation_shape,
            action_size,
            config.actor_encoder_factory,
            device=algorithm._device,
            enable_ddp=algorithm._enable_ddp,
        )
        optimizer = config.actor_optim_factory.create(
            actor.named_modules(), lr=config.actor_learning_rate, compiled=algorithm.compiled
        )
        return ActorDQNModules(modules.q_funcs, modules.targ_q_funcs, modules.optim, actor, optimizer)

    def compute_target(self, batch: TorchMiniBatch) -> torch.Tensor:
        """Value of the next observation, (B, 1): under the actor, or as d3rlpy's own algorithm takes it."""
        if not self._terms.evaluate_actor:
            own: Any = super()
            return own.compute_target(batch)
        with torch.no_grad():
            probabilities = self._modules.actor(batch.next_observations).probs
            values = self._targ_q_func_forwarder.compute_target(batch.next_observations, reduction="min")
            return (probabilities * values).sum(dim=1, keepdim=True)

    def inner_update(self, batch: TorchMiniBatch, grad_step: int) -> dict[str, float]:
        """One step of the critic, and of the actor once the critic has had its start."""
        metrics = super().inner_update(batch, grad_step)
        if grad_step >= self._terms.critic_steps:
            self.follow(grad_step - self._terms.critic_steps)
            metrics |= self.update_actor(batch)
        return metrics

    def update_actor(self, batch: TorchMiniBatch) -> dict[str, float]:
        """One step of the actor; the critic is not touched."""
        self._modules.actor_optim.zero_grad()
        loss = self.compute_actor_loss(batch)
        loss.actor_loss.backward()
        self._modules.actor_optim.step()
        return asdict_as_float(loss)

    def compute_actor_loss(self, batch: TorchMiniBatch) -> ActorLoss:
        """Behaviour terms minus the expected advantage over the baseline, divided by the advantages' mean size."""
        output = self._modules.actor(batch.observations)
        with torch.no_grad():
            values = self._q_func_forwarder.compute_expected_q(batch.observations)
            advantages = values - (read_notes(batch).references.softmax(dim=1) * values).sum(dim=1, keepdim=True)
            advantages /= advantages.abs().mean().clamp(min=1e-6)
        value_loss = -(output.logits.softmax(dim=1) * advantages).sum(dim=1).mean()
        return join_own(self.compute_behaviour(output, batch), value_loss, self._terms.improvement)

    def inner_predict_best_action(self, x: TorchObservation) -> torch.Tensor:
        """The actor's most likely action, (B,)."""
        return self._modules.actor(x).logits.argmax(dim=1)

    @property
    def policy(self) -> Any:
        """The actor."""
        return self._modules.actor


class AnnotatedDiscreteCQLImpl(ActorBesideImpl, DiscreteCQLImpl):
    """d3rlpy's conservative critic with an actor beside it."""

    _modules: ActorDQNModules  # pyright: ignore[reportIncompatibleVariableOverride]

    def compute_target(self, batch: TorchMiniBatch) -> torch.Tensor:
        """As of the mixin; d3rlpy's double Q-learning asks for its policy's action, which has to be the critic's."""
        if self._terms.evaluate_actor:
            return super().compute_target(batch)
        with torch.no_grad():
            best = self._q_func_forwarder.compute_expected_q(batch.next_observations).argmax(dim=1)
            return self._targ_q_func_forwarder.compute_target(batch.next_observations, best, reduction="min")

    def compute_loss(self, batch: TorchMiniBatch, q_tpn: torch.Tensor) -> DiscreteCQLLoss:
        """d3rlpy's loss; its two terms share the values of the observations, which d3rlpy computes for each of them."""
        values = self._q_func_forwarder.compute_expected_q(batch.observations)
        logged = values.gather(1, batch.actions.long())
        discounts = self._gamma**batch.intervals
        td_loss = huber_loss(logged, batch.rewards + discounts * q_tpn * (1 - batch.terminals))
        conservative = (values.logsumexp(dim=1, keepdim=True) - logged).mean()
        return DiscreteCQLLoss(td_loss + self._alpha * conservative, td_loss, conservative)


class AnnotatedDQNImpl(ActorBesideImpl, DQNImpl):
    """d3rlpy's deep Q network with an actor beside it."""

    _modules: ActorDQNModules  # pyright: ignore[reportIncompatibleVariableOverride]


@register
@dataclasses.dataclass()
class AnnotatedDiscreteCQLConfig(ActorFields, DiscreteCQLConfig):
    """Conservative Q-learning (Kumar et al., arXiv 2006.04779) as the critic of a categorical actor."""

    algorithm = DiscreteCQL
    implementation = AnnotatedDiscreteCQLImpl


@register
@dataclasses.dataclass()
class AnnotatedDQNConfig(ActorFields, DQNConfig):
    """Deep Q-learning (Mnih et al., Nature 518, 2015) as the critic of a categorical actor."""

    algorithm = DQN
    implementation = AnnotatedDQNImpl
