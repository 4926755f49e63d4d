"""What every annotated algorithm shares: the weights of its terms, a critic's start, and d3rlpy's parts made anew.

A policy's loss is `ramp * sum_i w_i l(pi(s_i), a_i) + stay_close * d(pi, pi_0) + improvement * own`, where `own` is
what the algorithm itself asks of its policy on logged transitions. The terms are computed in `losses.py`, the
own losses in the files of the families; a critic's loss is always d3rlpy's and never sees a suggestion.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from .d3rlpy_setup import TorchMiniBatch


@dataclasses.dataclass()
class AnnotatedFields:
    """What the configuration of every annotated algorithm has besides d3rlpy's own.

    Args:
        stay_close: weight of the distance to the baseline.
        improvement: weight of the algorithm's own loss of the policy.
        ramp_steps: steps of the policy over which the weight of the suggestions rises to 1; 0: it is 1 from the start.
        outlier_scale: distance, in the network's units, beyond which a continuous suggestion loses its pull.
    """

    stay_close: float = 0.1
    improvement: float = 0.1
    ramp_steps: int = 0
    outlier_scale: float | None = None


@dataclasses.dataclass()
class CriticFields(AnnotatedFields):
    """The same of an algorithm with a critic.

    Args:
        critic_steps: steps before the policy moves.
    """

    critic_steps: int = 1000


class AnnotatedImpl:
    """Mixin of implementations: knows the weights and how far the policy's training is.

    Args:
        terms: the algorithm's configuration.
        fields: what d3rlpy's own implementation takes.
    """

    def __init__(self, *, terms: Any, **fields: Any) -> None:
        super().__init__(**fields)
        self._terms = terms
        self._ramp = 1.0

    def inner_update(self, batch: TorchMiniBatch, grad_step: int) -> dict[str, float]:
        """One step of d3rlpy's own, with the suggestions' weight of that step."""
        self.follow(grad_step)
        parent: Any = super()
        return parent.inner_update(batch, grad_step)

    def follow(self, step: int) -> None:
        """Set the suggestions' weight for one of the policy's steps, counted from 0."""
        length = self._terms.ramp_steps
        self._ramp = min(1.0, (step + 1) / length) if length else 1.0


class WaitingActor(AnnotatedImpl):
    """Mixin of d3rlpy's continuous actor-critics: the actor waits until the critic has had its start."""

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


def rebuild(algorithm: Any, implementation: type[AnnotatedImpl], **replaced: Any) -> Any:
    """The implementation that d3rlpy has just built, made again as an annotated one of the same parts.

    d3rlpy's algorithms name their implementation's class in the code that builds it, so a subclass cannot be passed.

    Args:
        algorithm: whose `inner_create_impl` of d3rlpy has run.
        implementation: an `AnnotatedImpl` that derives from the class of what was built.
        replaced: parts to use instead, for example `modules`.
    """
    built = algorithm._impl
    names = inspect.signature(type(built).__init__).parameters.keys() - {"self", "compiled"}
    parts = {name: getattr(built, f"_{name}") for name in names} | replaced
    return implementation(terms=algorithm._config, compiled=algorithm.compiled, **parts)
