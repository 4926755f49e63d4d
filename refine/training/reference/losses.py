"""What every annotated algorithm shares: its batches, its loss, the weights of the terms, d3rlpy's parts anew.

Batches are gathers from a table that `training/packing.py` has built, one float32 row per transition.

A policy's loss is `ramp * sum_i w_i l(pi(s_i), a_i) + stay_close * d(pi, pi_0) + improvement * own`, where `own` is
what the algorithm itself asks of its policy on logged transitions; a critic's loss is always d3rlpy's and never sees a
suggestion. `l` over labelled states and `d` over the other logged ones are cross-entropy and `KL(pi_0 || pi)` for
discrete actions, squared errors for continuous ones, which are the same two terms for Gaussians of one fixed width.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from storage.schema import Space

from ...policies import output_size
from ..packing import Floats, PackedTable
from .d3rlpy_setup import (
    ActionOutput,
    ActionSpace,
    DatasetInfo,
    DeviceArg,
    ImitationLoss,
    LearnableConfig,
    ReplayBufferBase,
    Shape,
    Signature,
    TD3PlusBCActorLoss,
    TorchMiniBatch,
    Transition,
    TransitionMiniBatch,
    register_learnable,
)
from .networks import ClippedPolicy


@dataclass(frozen=True)
class AnnotatedMiniBatch(TransitionMiniBatch):
    """A d3rlpy batch with what the annotators and the baseline say about its observations.

    d3rlpy hands it to a loss as `batch.numpy_batch`. A discrete action is an index from 0. Logged continuous actions
    are in the environment's unit, for d3rlpy scales them itself; suggestions and references are in the network's,
    whose bounds are -1 and 1 (`spaces.action_units`).
    """

    suggestions: Floats  # (B, 1) index or (B, m)
    weights: Floats  # (B, 1), mean 1 over all labels
    labelled: Floats  # (B, 1), 1 where the suggestion counts
    references: Floats  # (B, k) the baseline's logits, or its mean action

    def __post_init__(self) -> None:
        """Columns of one table of float32 need no check."""


def _refuse(why: str) -> Any:
    """A method that d3rlpy's buffers have and a packed table cannot have."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"AnnotatedBuffer {why}.")

    return refuse


class AnnotatedBuffer(ReplayBufferBase):
    """A packed table as d3rlpy samples it.

    Args:
        table: of `packing.build_table`; its sampling is the buffer's.
    """

    def __init__(self, table: PackedTable) -> None:
        self.table = table
        self._info = _describe(table.columns, table.action_space)

    @property
    def dataset_info(self) -> DatasetInfo:
        """Shapes and kinds; d3rlpy never guesses the action size from the data."""
        return self._info

    @property
    def transition_count(self) -> int:
        """Rows of the table; a step with several labels is several rows."""
        return len(self.table)

    def sample_transition_batch(self, batch_size: int) -> AnnotatedMiniBatch:
        """Sample a batch with the quota of annotated rows first, the rest uniformly from the other transitions."""
        return self.rows(self.table.sample_rows(batch_size))

    def rows(self, indices: NDArray[np.int64]) -> AnnotatedMiniBatch:
        """The given rows of the table as a batch."""
        packed = self.table.take(indices)
        fields = {name: packed[:, columns] for name, columns in self.table.columns.items()}
        return AnnotatedMiniBatch(**fields, intervals=np.ones((len(packed), 1), np.float32), transitions=())

    def sample_transition(self) -> Transition:
        """One transition, from which d3rlpy reads the observation's shape."""
        batch = self.rows(np.zeros(1, np.int64))
        return Transition(
            observation=np.asarray(batch.observations)[0],
            action=batch.actions[0],
            reward=batch.rewards[0],
            next_observation=np.asarray(batch.next_observations)[0],
            next_action=batch.next_actions[0],
            terminal=float(batch.terminals[0, 0]),
            interval=1,
            rewards_to_go=batch.rewards,
        )

    def size(self) -> int:
        """Number of episodes; the table does not know them."""
        return 0

    @property
    def episodes(self) -> Sequence[Any]:
        """None: the table keeps no episodes."""
        return ()

    buffer: Any = property(_refuse("has no list of transitions"))
    transition_picker: Any = property(_refuse("has no transition picker; give scalers their values"))
    trajectory_slicer: Any = property(_refuse("has no trajectories"))
    append = append_episode = clip_episode = _refuse("cannot grow")
    sample_trajectory = sample_trajectory_batch = _refuse("has no trajectories")
    dump = _refuse("is not written; its dataset is")
    from_episode_generator = load = _refuse("is built from columns; use `build_table`")


def _describe(columns: Mapping[str, slice], space: Space) -> DatasetInfo:
    def signature(name: str) -> Signature:
        return Signature(dtype=[np.dtype(np.float32)], shape=[(columns[name].stop - columns[name].start,)])

    return DatasetInfo(
        observation_signature=signature("observations"),
        action_signature=signature("actions"),
        reward_signature=signature("rewards"),
        action_space=ActionSpace.DISCRETE if space.is_discrete else ActionSpace.CONTINUOUS,
        action_size=output_size(space),
    )


@dataclass(frozen=True)
class AnnotationTensors:
    """The annotators' and the baseline's columns of one batch, as tensors."""

    suggestions: torch.Tensor  # (B, 1) index or (B, m), network's units
    weights: torch.Tensor  # (B,)
    labelled: torch.Tensor  # (B,), 0 or 1
    references: torch.Tensor  # (B, k), logits or mean in the network's units


@dataclass(frozen=True)
class BehaviourLoss(ImitationLoss):
    """`loss = ramp * suggestion_loss + beta * stay_close_loss`."""

    suggestion_loss: torch.Tensor
    stay_close_loss: torch.Tensor


@dataclass(frozen=True)
class ActorLoss(TD3PlusBCActorLoss):
    """`actor_loss = suggestion_loss + beta * bc_loss + improvement * own_loss`; the stay-close term is `bc_loss`."""

    suggestion_loss: torch.Tensor
    own_loss: torch.Tensor


def read_notes(batch: TorchMiniBatch) -> AnnotationTensors:
    """Take the extra columns of a batch.

    Raises:
        TypeError: when the batch does not come from an `AnnotatedBuffer`.
    """
    columns = batch.numpy_batch
    if not isinstance(columns, AnnotatedMiniBatch):
        raise TypeError(f"An annotated algorithm needs an AnnotatedBuffer; the batch is a {type(columns).__name__}.")
    suggestions, weights, labelled, references = (
        torch.from_numpy(np.ascontiguousarray(column)).to(batch.device)
        for column in (columns.suggestions, columns.weights, columns.labelled, columns.references)
    )
    return AnnotationTensors(suggestions, weights[:, 0], labelled[:, 0], references)


def discrete_behaviour(
    logits: torch.Tensor, notes: AnnotationTensors, stay_close: float, ramp: float = 1.0
) -> BehaviourLoss:
    """Cross-entropy to the suggestions and `KL(pi_0 || pi)`.

    Args:
        logits: (B, k) of the policy.
        notes: of the same batch.
        stay_close: beta.
        ramp: weight of the suggestions as a whole.
    """
    errors = cross_entropy(logits, notes.suggestions[:, 0].long(), reduction="none")
    baseline = log_softmax(notes.references, dim=1)
    divergences = kl_div(log_softmax(logits, dim=1), baseline, reduction="none", log_target=True).sum(dim=1)
    return _combine(errors, divergences, notes, stay_close, ramp)


def continuous_behaviour(
    means: torch.Tensor,
    notes: AnnotationTensors,
    stay_close: float,
    ramp: float = 1.0,
    *,
    outlier_scale: float | None = None,
    cuts: Sequence[Sequence[float]] | None = None,
) -> BehaviourLoss:
    """Squared distance to the suggestions and to the baseline's mean, averaged over the action's dimensions.

    Where a mean and the suggestion are cut to the same bound, their distance is 0: they are one action.
    With an outlier scale `c` the squared distance `d` to a suggestion becomes `2 c^2 (1 - exp(-d / (2 c^2)))`, which is
    d where it is small and constant where it is large (Dennis and Welsch, Communications in Statistics B 1978).

    Args:
        means: (B, m) of the policy, in the network's units.
        notes: of the same batch.
        stay_close: beta.
        ramp: weight of the suggestions as a whole.
        outlier_scale: c, in the network's units; None: squared distances.
        cuts: (2, m) from where on actions are cut, below and above, in the network's units; None: they are not.
    """
    differences = means - notes.suggestions
    if cuts is not None:
        low, high = torch.tensor(cuts, dtype=means.dtype)
        below, above = torch.maximum(means, notes.suggestions) <= low, torch.minimum(means, notes.suggestions) >= high
        differences = differences.masked_fill(below | above, 0)
    errors = (differences**2).mean(dim=1)
    if outlier_scale is not None:
        width = 2 * outlier_scale**2
        errors = width * (1 - torch.exp(-errors / width))
    distances = ((means - notes.references) ** 2).mean(dim=1)
    return _combine(errors, distances, notes, stay_close, ramp)


def join_own(behaviour: BehaviourLoss, own_loss: torch.Tensor, improvement: float) -> ActorLoss:
    """Add an algorithm's own loss of its policy, with its weight, to what annotators and baseline say."""
    total = behaviour.loss + improvement * own_loss
    return ActorLoss(total, behaviour.stay_close_loss, behaviour.suggestion_loss, own_loss)


def _combine(
    errors: torch.Tensor, distances: torch.Tensor, notes: AnnotationTensors, stay_close: float, ramp: float
) -> BehaviourLoss:
    suggestion = _mean_where(notes.labelled, notes.weights * errors)
    distance = _mean_where(1 - notes.labelled, distances)
    return BehaviourLoss(ramp * suggestion + stay_close * distance, suggestion, distance)


def _mean_where(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return (mask * values).sum() / mask.sum().clamp(min=1)


Config = TypeVar("Config", bound=LearnableConfig)


def register(config: type[Config]) -> type[Config]:
    """Let d3rlpy save and load a configuration, as `trajnote_` and the name of its own one."""
    name = f"trajnote_{config.get_type()}"
    config.get_type = staticmethod(lambda: name)
    register_learnable(config)
    return config


@dataclasses.dataclass()
class AnnotatedFields:
    """Mixin of d3rlpy's configurations: what every annotated algorithm is told besides d3rlpy's own.

    Args:
        stay_close: weight of the distance to the baseline.
        improvement: weight of the algorithm's own loss of the policy.
        ramp_steps: steps of the policy over which the weight of the suggestions rises to 1; 0: it is 1 from the start.
        outlier_scale: distance, in the network's units, beyond which a continuous suggestion loses its pull.
    """

    algorithm: ClassVar[type[Any]]
    """The d3rlpy algorithm that the configuration is one of."""
    implementation: ClassVar[type[AnnotatedImpl]]
    """Its losses, which derive from the implementation that the algorithm builds."""

    stay_close: float = 0.1
    improvement: float = 0.1
    ramp_steps: int = 0
    outlier_scale: float | None = None

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> Any:
        """The algorithm of this configuration."""
        return _annotate(self.algorithm)(self, device, enable_ddp)


@dataclasses.dataclass()
class ContinuousFields(AnnotatedFields):
    """The same of continuous actions.

    Args:
        cuts: (2, m) from where on the mean is cut (PPO), below and above, in the network's units; None: it is squashed
            (SAC, TD3).
    """

    cuts: list[list[float]] | None = None


@dataclasses.dataclass()
class CriticFields(AnnotatedFields):
    """The same of an algorithm with a critic.

    Args:
        critic_steps: steps before the policy moves.
    """

    critic_steps: int = 1000


@cache
def _annotate(algorithm: type[Any]) -> type[Any]:
    """A d3rlpy algorithm that builds the losses of its configuration in place of its own."""
    return type(f"Annotated{algorithm.__name__}", (_AnnotatedAlgorithm, algorithm), {})


class _AnnotatedAlgorithm:
    """Mixin of d3rlpy's algorithms, which name their losses in the code that builds them and its modules at once."""

    def inner_create_impl(self, observation_shape: Shape, action_size: int) -> None:
        """Build d3rlpy's modules and losses, then the annotated losses of the same parts."""
        algorithm: Any = self
        parent: Any = super()
        parent.inner_create_impl(observation_shape, action_size)
        built, implementation = algorithm._impl, algorithm._config.implementation
        names = inspect.signature(type(built).__init__).parameters.keys() - {"self", "compiled"}
        parts = {name: getattr(built, f"_{name}") for name in names}
        parts["modules"] = implementation.complete(parts["modules"], algorithm, observation_shape, action_size)
        algorithm._impl = implementation(terms=algorithm._config, compiled=algorithm.compiled, **parts)


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

    @classmethod
    def complete(cls, modules: Any, algorithm: Any, observation_shape: Shape, action_size: int) -> Any:
        """The modules that d3rlpy has built, with what the losses need besides them."""
        return modules

    def inner_update(self, batch: TorchMiniBatch, grad_step: int) -> dict[str, float]:
        """One step of d3rlpy's own, with the suggestions' weight of that step."""
        self.follow(grad_step)
        parent: Any = super()
        return parent.inner_update(batch, grad_step)

    def follow(self, step: int) -> None:
        """Set the suggestions' weight for one of the policy's steps, counted from 0."""
        length = self._terms.ramp_steps
        self._ramp = min(1.0, (step + 1) / length) if length else 1.0


class DiscreteImpl(AnnotatedImpl):
    """The same of discrete actions."""

    def compute_behaviour(self, output: Any, batch: TorchMiniBatch) -> BehaviourLoss:
        """What suggestions and baseline say about a policy's output."""
        return discrete_behaviour(output.logits, read_notes(batch), self._terms.stay_close, self._ramp)


class ContinuousImpl(AnnotatedImpl):
    """The same of continuous actions. A cut mean has no gradient beyond the bounds, so the losses see it uncut."""

    @classmethod
    def complete(cls, modules: Any, algorithm: Any, observation_shape: Shape, action_size: int) -> Any:
        """The same modules; the mean of their policies is cut where the baseline's is."""
        if algorithm._config.cuts is None:
            return modules
        names = [name for name in ("imitator", "policy", "targ_policy") if hasattr(modules, name)]
        return dataclasses.replace(modules, **{name: ClippedPolicy(getattr(modules, name)) for name in names})

    def compute_means(self, output: ActionOutput) -> torch.Tensor:
        """The mean action (B, m) in a policy's output."""
        return output.squashed_mu if self._terms.cuts is None else output.mu

    def compute_behaviour(self, output: Any, batch: TorchMiniBatch) -> BehaviourLoss:
        """What suggestions and baseline say about a policy's output."""
        return continuous_behaviour(
            self.compute_means(output),
            read_notes(batch),
            self._terms.stay_close,
            self._ramp,
            outlier_scale=self._terms.outlier_scale,
            cuts=self._terms.cuts,
        )
