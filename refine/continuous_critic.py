"""Modes R and RA, continuous: d3rlpy's TD3+BC on relabelled rewards, starting at the baseline.

The critic learns from logged transitions only: its loss is d3rlpy's own and never sees a suggestion. As in
`discrete_critic.py`, the actor waits until the critic knows what the baseline is worth.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from .door import (
    ActionOutput,
    DDPGModules,
    DeviceArg,
    Shape,
    TD3PlusBC,
    TD3PlusBCConfig,
    TD3PlusBCImpl,
    TorchMiniBatch,
    register_learnable,
)
from .losses import ActorLoss, continuous_behaviour, join_value, read_notes
from .networks import ClippedPolicy


@dataclasses.dataclass()
class AnnotatedTD3PlusBCConfig(TD3PlusBCConfig):
    """TD3+BC (Fujimoto and Gu, arXiv 2106.06860) with suggestions, staying close to the baseline.

    The critic is d3rlpy's own. The actor maximises `Q(s, pi(s)) / mean |Q|` as in the paper; the distance to the logged
    actions becomes that to the baseline's mean, of which a logged action is a noisy sample.

    Args:
        stay_close: weight of the distance to the baseline.
        improvement: weight of the normalised value; takes the place of d3rlpy's `alpha`, which is not used.
        critic_steps: steps before the actor moves.
        clipped: whether the mean is cut to the bounds (PPO) instead of squashed to them (SAC, TD3).
    """

    stay_close: float = 0.1
    improvement: float = 0.1
    critic_steps: int = 1000
    clipped: bool = False

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> AnnotatedTD3PlusBC:
        """The algorithm of this configuration."""
        return AnnotatedTD3PlusBC(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Name under which d3rlpy saves and loads it."""
        return "trajnote_td3_plus_bc"


class AnnotatedTD3PlusBC(TD3PlusBC):
    """See `AnnotatedTD3PlusBCConfig`."""

    def inner_create_impl(self, observation_shape: Shape, action_size: int) -> None:
        """Build d3rlpy's modules, then the annotated loss around them."""
        super().inner_create_impl(observation_shape, action_size)
        config = cast("AnnotatedTD3PlusBCConfig", self._config)
        built = cast("Any", self._impl)
        modules: DDPGModules = built.modules
        if config.clipped:
            modules = dataclasses.replace(
                modules, policy=ClippedPolicy(modules.policy), targ_policy=ClippedPolicy(modules.targ_policy)
            )
        self._impl = AnnotatedTD3PlusBCImpl(
            stay_close=config.stay_close,
            improvement=config.improvement,
            critic_steps=config.critic_steps,
            clipped=config.clipped,
            observation_shape=observation_shape,
            action_size=action_size,
            modules=modules,
            q_func_forwarder=built._q_func_forwarder,
            targ_q_func_forwarder=built._targ_q_func_forwarder,
            gamma=config.gamma,
            tau=config.tau,
            target_smoothing_sigma=config.target_smoothing_sigma,
            target_smoothing_clip=config.target_smoothing_clip,
            alpha=config.alpha,
            update_actor_interval=config.update_actor_interval,
            compiled=self.compiled,
            device=self._device,
        )


class AnnotatedTD3PlusBCImpl(TD3PlusBCImpl):
    """d3rlpy's critic with the annotated loss of the actor."""

    def __init__(
        self, *, stay_close: float, improvement: float, critic_steps: int, clipped: bool, **fields: Any
    ) -> None:
        super().__init__(**fields)
        self._stay_close = stay_close
        self._improvement = improvement
        self._critic_steps = critic_steps
        self._clipped = clipped

    def inner_update(self, batch: TorchMiniBatch, grad_step: int) -> dict[str, float]:
        """One step of d3rlpy's own, without the actor until the critic has had its start."""
        if grad_step >= self._critic_steps:
            return super().inner_update(batch, grad_step)
        metrics = self.update_critic(batch)
        self.update_critic_target()
        return metrics

    def compute_actor_loss(self, batch: TorchMiniBatch, action: ActionOutput) -> ActorLoss:
        """Behaviour terms minus the critic's value of the actor's action, divided by the values' mean size."""
        values = self._q_func_forwarder.compute_expected_q(batch.observations, action.squashed_mu, "none")[0]
        value_loss = -values.mean() / values.abs().mean().clamp(min=1e-6).detach()
        means = action.mu if self._clipped else action.squashed_mu  # a cut mean has no gradient beyond the bounds
        behaviour = continuous_behaviour(means, read_notes(batch), self._stay_close)
        return join_value(behaviour, value_loss, self._improvement)


register_learnable(AnnotatedTD3PlusBCConfig)
