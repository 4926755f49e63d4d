"""A d3rlpy replay buffer over packed columns: one float32 row per transition, one gather per batch.

It samples a table that `training/packing.py` has built; what a suggestion does to a policy is in `losses.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from storage.schema import Space

from ...policies import output_size
from ..packing import Floats, PackedTable
from .d3rlpy_setup import ActionSpace, DatasetInfo, ReplayBufferBase, Signature, Transition, TransitionMiniBatch


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
        """Not supported: the table keeps no episodes."""
        return ()

    @property
    def buffer(self) -> NoReturn:
        """Not supported: the table keeps no episodes."""
        return _refuse("has no list of transitions")

    @property
    def transition_picker(self) -> NoReturn:
        """Not supported: the table keeps no episodes."""
        return _refuse("has no transition picker; give scalers their values")

    @property
    def trajectory_slicer(self) -> NoReturn:
        """Not supported: the table keeps no episodes."""
        return _refuse("has no trajectories")

    def append(self, observation: Any, action: Any, reward: Any) -> None:
        """Refused: the buffer is built once."""
        _refuse("cannot grow")

    def append_episode(self, episode: Any) -> None:
        """Refused: the buffer is built once."""
        _refuse("cannot grow")

    def clip_episode(self, terminated: bool) -> None:
        """Refused: the buffer is built once."""
        _refuse("cannot grow")

    def sample_trajectory(self, length: int) -> NoReturn:
        """Refused: transitions only."""
        return _refuse("has no trajectories")

    def sample_trajectory_batch(self, batch_size: int, length: int) -> NoReturn:
        """Refused: transitions only."""
        return _refuse("has no trajectories")

    def dump(self, f: Any) -> None:
        """Refused: the dataset is already on disk."""
        _refuse("is not written; its dataset is")

    @classmethod
    def from_episode_generator(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: use `build_table`."""
        return _refuse("is built from columns")

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: use `build_table`."""
        return _refuse("is built from columns")


def _refuse(why: str) -> NoReturn:
    raise NotImplementedError(f"AnnotatedBuffer {why}.")


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
