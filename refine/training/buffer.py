"""A d3rlpy replay buffer over packed columns: one float32 row per transition, one gather per batch.

It samples a table that `packing.py` has built; what a suggestion does to a policy is in `losses.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from .d3rlpy_setup import DatasetInfo, ReplayBufferBase, Transition, TransitionMiniBatch

Floats = NDArray[np.float32]


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


class Columns(NamedTuple):
    """A batch as the fast engine takes it: what `AnnotatedMiniBatch` has, with the states as the last axis."""

    observations: Floats  # (n, B)
    actions: Floats  # (1, B) index or (m, B)
    rewards: Floats  # (1, B)
    next_observations: Floats  # (n, B)
    next_actions: Floats  # (1, B) or (m, B)
    terminals: Floats  # (1, B)
    suggestions: Floats  # (1, B) index or (m, B)
    weights: Floats  # (1, B)
    labelled: Floats  # (1, B)
    references: Floats  # (k, B)


class AnnotatedBuffer(ReplayBufferBase):
    """Packed transitions, of which a fixed number per batch are annotated ones.

    Args:
        table: (R, width) float32; the last `annotated` rows are the annotated ones.
        columns: name of a field of `AnnotatedMiniBatch` -> its columns of the table.
        annotated: number of annotated rows at the end of the table.
        quota: annotated rows in every batch, sampled with replacement.
        info: shapes and kinds, as d3rlpy wants to know them.
        seed: of the sampling.
    """

    def __init__(
        self,
        table: Floats,
        columns: dict[str, slice],
        *,
        annotated: int,
        quota: int,
        info: DatasetInfo,
        seed: int = 0,
    ) -> None:
        self._table = table
        self._columns = columns
        self._plain = len(table) - annotated
        self._annotated = annotated
        self._quota = quota
        self._info = info
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Start the sampling anew."""
        self._rng = np.random.default_rng(seed)

    @property
    def dataset_info(self) -> DatasetInfo:
        """Shapes and kinds; d3rlpy never guesses the action size from the data."""
        return self._info

    @property
    def transition_count(self) -> int:
        """Rows of the table; a step with several labels is several rows."""
        return len(self._table)

    def sample_transition_batch(self, batch_size: int) -> AnnotatedMiniBatch:
        """Sample a batch with the quota of annotated rows first, the rest uniformly from the other transitions."""
        return self.rows(self._sample_rows(batch_size))

    def sample_columns(self, batch_size: int) -> Columns:
        """The same batch, without what d3rlpy wants to know about it."""
        packed = np.ascontiguousarray(self._table.take(self._sample_rows(batch_size), axis=0).T)
        return Columns(**{name: packed[columns] for name, columns in self._columns.items()})

    def _sample_rows(self, batch_size: int) -> NDArray[np.int64]:
        quota = min(self._quota, batch_size) if self._annotated else 0
        quota = quota if self._plain else batch_size
        rows = np.empty(batch_size, np.int64)
        if quota:
            rows[:quota] = self._rng.integers(self._plain, len(self._table), quota)
        if quota < batch_size:
            rows[quota:] = self._rng.integers(0, self._plain, batch_size - quota)
        return rows

    def rows(self, indices: NDArray[np.int64]) -> AnnotatedMiniBatch:
        """The given rows of the table as a batch."""
        packed = self._table.take(indices, axis=0)
        fields = {name: packed[:, columns] for name, columns in self._columns.items()}
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
        """Not kept."""
        return ()

    @property
    def buffer(self) -> NoReturn:
        """Not kept."""
        return _refuse("has no list of transitions")

    @property
    def transition_picker(self) -> NoReturn:
        """Not kept."""
        return _refuse("has no transition picker; give scalers their values")

    @property
    def trajectory_slicer(self) -> NoReturn:
        """Not kept."""
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
        """Refused: use `build_buffer`."""
        return _refuse("is built from columns")

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: use `build_buffer`."""
        return _refuse("is built from columns")


def _refuse(why: str) -> NoReturn:
    raise NotImplementedError(f"AnnotatedBuffer {why}.")
