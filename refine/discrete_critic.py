"""Modes R and RA, discrete: d3rlpy's conservative Q-learning on relabelled rewards, beside an actor.

The critic learns from logged transitions only: its loss is d3rlpy's own and never sees a suggestion. The actor starts
at the baseline and waits until the critic knows what the baseline is worth; it is then one step of policy improvement
away from the data (Brandfonbrener et al., "Offline RL Without Off-Policy Evaluation", NeurIPS 2021).
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch

from .door import (
    CategoricalPolicy,
    DeviceArg,
    DiscreteCQL,
    DiscreteCQLConfig,
    DiscreteCQLImpl,
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
    register_learnable,
)
from .losses import ActorLoss, discrete_behaviour, join_value, read_notes


@dataclasses.dataclass()
class AnnotatedDiscreteCQLConfig(DiscreteCQLConfig):
    """Conservative Q-learning (Kumar et al., arXiv 2006.04779) as the critic of a categorical actor.

    The baseline's logits say nothing about the size of returns, so they do not start a Q function: they start an actor,
    and the Q function, which d3rlpy's conservative loss trains from scratch, evaluates it: the target of a transition
    is the expectation over the actor, `r + gamma * sum_a pi(a|s') Q'(s', a)` (expected SARSA, as in discrete
    soft actor-critic, Christodoulou, arXiv 1910.07207).

    Args:
        actor_learning_rate: learning rate of the actor.
        actor_optim_factory: its optimizer.
        actor_encoder_factory: its hidden layers.
        stay_close: weight of `KL(pi_0 || pi)`.
        improvement: weight of the expected advantage, in units of its mean size.
        critic_steps: steps before the actor moves.
    """

    actor_learning_rate: float = 1e-3
    actor_optim_factory: OptimizerFactory = make_optimizer_field()  # noqa: RUF009 (a dataclass field)
    actor_encoder_factory: EncoderFactory = make_encoder_field()  # noqa: RUF009
    stay_close: float = 0.1
    improvement: float = 0.1
    critic_steps: int = 1000

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> AnnotatedDiscreteCQL:
        """The algorithm of this configuration."""
        return AnnotatedDiscreteCQL(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Name under which d3rlpy saves and loads it."""
        return "trajnote_discrete_cql"


@dataclasses.dataclass(frozen=True)
class ActorDQNModules(DQNModules):
    """The modules of d3rlpy's DQN and an actor."""

    actor: CategoricalPolicy
    actor_optim: OptimizerWrapper


class AnnotatedDiscreteCQL(DiscreteCQL):
    """See `AnnotatedDiscreteCQLConfig`."""

    def inner_create_impl(self, observation_shape: Shape, action_size: int) -> None:
        """Build d3rlpy's critic, then an actor and the annotated loss around them."""
        super().inner_create_impl(observation_shape, action_size)
        config = cast("AnnotatedDiscreteCQLConfig", self._config)
        built = cast("Any", self._impl)
        actor = create_categorical_policy(
            observation_shape,
            action_size,
            config.actor_encoder_factory,
            device=self._device,
            enable_ddp=self._enable_ddp,
        )
        actor_optim = config.actor_optim_factory.create(
            actor.named_modules(), lr=config.actor_learning_rate, compiled=self.compiled
        )
        critic: DQNModules = built.modules
        self._impl = AnnotatedDiscreteCQLImpl(
            stay_close=config.stay_close,
            improvement=config.improvement,
            critic_steps=config.critic_steps,
            observation_shape=observation_shape,
            action_size=action_size,
            modules=ActorDQNModules(
                critic.q_funcs, critic.targ_q_funcs, critic.optim, actor=actor, actor_optim=actor_optim
            ),
            q_func_forwarder=built._q_func_forwarder,
            targ_q_func_forwarder=built._targ_q_func_forwarder,
            target_update_interval=config.target_update_interval,
            gamma=config.gamma,
            alpha=config.alpha,
            compiled=self.compiled,
            device=self._device,
        )


class AnnotatedDiscreteCQLImpl(DiscreteCQLImpl):
    """d3rlpy's critic with an actor beside it."""

    _modules: ActorDQNModules  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, *, stay_close: float, improvement: float, critic_steps: int, **fields: Any) -> None:
        super().__init__(**fields)
        self._stay_close = stay_close
        self._improvement = improvement
        self._critic_steps = critic_steps

    def compute_target(self, batch: TorchMiniBatch) -> torch.Tensor:
        """Value of the next observation under the actor, (B, 1)."""
        with torch.no_grad():
            probabilities = self._modules.actor(batch.next_observations).probs
            values = self._targ_q_func_forwarder.compute_target(batch.next_observations, reduction="min")
            return (probabilities * values).sum(dim=1, keepdim=True)

    def inner_update(self, batch: TorchMiniBatch, grad_step: int) -> dict[str, float]:
        """One step of the critic, and of the actor once the critic has had its start."""
        metrics = super().inner_update(batch, grad_step)
        if grad_step >= self._critic_steps:
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
        notes = read_notes(batch)
        logits = self._modules.actor(batch.observations).logits
        with torch.no_grad():
            values = self._q_func_forwarder.compute_expected_q(batch.observations)
            advantages = values - (notes.references.softmax(dim=1) * values).sum(dim=1, keepdim=True)
            advantages /= advantages.abs().mean().clamp(min=1e-6)
        value_loss = -(logits.softmax(dim=1) * advantages).sum(dim=1).mean()
        return join_value(discrete_behaviour(logits, notes, self._stay_close), value_loss, self._improvement)

    def inner_predict_best_action(self, x: TorchObservation) -> torch.Tensor:
        """The actor's most likely action, (B,)."""
        return self._modules.actor(x).logits.argmax(dim=1)

    @property
    def policy(self) -> Any:
        """The actor."""
        return self._modules.actor


register_learnable(AnnotatedDiscreteCQLConfig)
