"""Transitions, labels and the baseline's opinion as one packed table, and batches of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.datasets import StepArrays
from storage.errors import BadInput
from storage.schema import Array, Space

from ..labels import Labels
from ..policies import MlpPolicy, input_size, network_inputs, output_size
from .units import in_network_units

CHUNK = 8_192
"""Rows of the table that are written at a time; what is gathered for them stays in the processor's cache."""
PLAIN_ROWS = 1_000_000
"""Rows without a label that a table has at most, so that its size does not grow with the dataset. A training draws a
few hundred thousand states at most, and from so many rows they are as good as drawn from all."""

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


class Columns(NamedTuple):
    """A batch of transitions with what the annotators and the baseline say about them; the states are the last axis."""

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


class PackedTable:
    """Packed transitions, of which a fixed number per batch are annotated ones.

    Args:
        values: (R, width) float32; the last `annotated` rows are the annotated ones.
        columns: name of a field of `Columns` -> its columns of the table.
        annotated: number of annotated rows at the end of the table.
        quota: annotated rows in every batch, sampled with replacement.
        action_space: of the actions.
        seed: of the sampling.
    """

    def __init__(
        self,
        values: Floats,
        columns: Mapping[str, slice],
        *,
        annotated: int,
        quota: int,
        action_space: Space,
        seed: int = 0,
    ) -> None:
        self.values, self.columns, self.action_space = values, columns, action_space
        self._plain = len(values) - annotated
        self._annotated = annotated
        self._quota = quota
        self.reseed(seed)

    def __len__(self) -> int:
        """Rows; a step with several labels is several rows."""
        return len(self.values)

    def reseed(self, seed: int) -> None:
        """Start the sampling anew."""
        self._rng = np.random.default_rng(seed)

    def sample_columns(self, batch_size: int) -> Columns:
        """A batch with the quota of annotated rows first, the rest uniformly from the other transitions."""
        packed = np.ascontiguousarray(self.values.take(self.sample_rows(batch_size), axis=0).T)
        return Columns(**{name: packed[columns] for name, columns in self.columns.items()})

    def sample_rows(self, batch_size: int) -> Rows:
        """The rows (B,) of such a batch."""
        quota = min(self._quota, batch_size) if self._annotated else 0
        quota = quota if self._plain else batch_size
        rows = np.empty(batch_size, np.int64)
        if quota:
            rows[:quota] = self._rng.integers(self._plain, len(self.values), quota)
        if quota < batch_size:
            rows[quota:] = self._rng.integers(0, self._plain, batch_size - quota)
        return rows


def build_table(
    steps: StepArrays,
    labels: Labels,
    baseline: MlpPolicy,
    *,
    rewards: NDArray[np.float64] | None = None,
    suggestions: bool = True,
    quota: int = 64,
) -> PackedTable:
    """Pack transitions and labels.

    Every step is a transition, the last one of an episode included: its next observation is the final row. Only a
    termination ends the bootstrap; a truncated episode goes on from its final observation. Of more than `PLAIN_ROWS`
    steps without a label so many are taken, drawn by chance; labels are all taken.

    Args:
        steps: N rows.
        labels: of these steps. With `suggestions`, those of weight 0 do not count; each of the others is a row.
        baseline: whose outputs are the references to stay close to.
        rewards: (N,) relabelled rewards, or None for the logged ones.
        suggestions: whether suggestions count; if not, labels only say which rows are annotated.
        quota: annotated rows per batch.

    Raises:
        BadInput: when no label counts.
    """
    used = labels.weights > 0 if suggestions else np.ones(len(labels), np.bool_)
    if not used.any():
        raise BadInput(
            f"None of the {len(labels)} labels has a suggestion with confidence above 0.",
            "Annotate more episodes, or refine from rewards only (mode R).",
        )
    is_plain = ~steps.is_final
    is_plain[labels.rows[used]] = False
    rows = np.concatenate([_choose(np.flatnonzero(is_plain)), labels.rows[used]])
    notes = _notes(labels, used, suggestions, space=baseline.action_space)
    readers = _readers(steps, rewards, baseline)
    columns = _lay_out(_widths(notes, baseline))
    table = np.zeros((len(rows), columns["references"].stop), np.float32)
    for part in (slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK)):
        for name, read in readers.items():
            table[part, columns[name]] = read(rows[part])
    for name, block in notes.items():
        table[-len(block) :, columns[name]] = block  # a plain row has zeros
    return PackedTable(table, columns, annotated=int(used.sum()), quota=quota, action_space=baseline.action_space)


def _choose(plain: Rows) -> Rows:
    """All rows without a label; of a large dataset some, drawn by chance."""
    if len(plain) <= PLAIN_ROWS:
        return plain
    drawn = np.random.default_rng(PLAIN_ROWS).choice(len(plain), PLAIN_ROWS, replace=False, shuffle=False)
    return plain[np.sort(drawn)]


def _readers(
    steps: StepArrays, rewards: NDArray[np.float64] | None, baseline: MlpPolicy
) -> dict[str, Callable[[Rows], Array]]:
    """How each column is read at some rows (n,), as (n, width); only these rows are touched."""
    rewarded = steps.reward if rewards is None else rewards

    def observe(rows: Rows) -> Array:
        return network_inputs(steps.observation.take(rows, axis=0), baseline.observation_space)

    def act(rows: Rows) -> Array:
        actions = steps.action.take(rows, axis=0).reshape(len(rows), -1)
        if baseline.action_space.is_discrete:
            return np.maximum(actions - baseline.action_space.start, 0)  # a final row's 0 may lie below the start
        final = steps.is_final[rows]  # ReBRAC measures distances to next actions; the baseline would have gone on
        if final.any():
            actions[final] = baseline.act(steps.observation[rows[final]]).actions
        return actions

    return {
        "observations": observe,
        "actions": act,
        "rewards": lambda rows: rewarded[rows, None],
        "terminals": lambda rows: steps.terminated[rows, None],
        "next_observations": lambda rows: observe(rows + 1),
        "next_actions": lambda rows: act(rows + 1),
        "references": lambda rows: _references(baseline, steps.observation.take(rows, axis=0)),
    }


def _widths(notes: dict[str, Array], baseline: MlpPolicy) -> dict[str, int]:
    """Numbers in each column of the table, in their order."""
    seen = input_size(baseline.observation_space)
    done = 1 if baseline.action_space.is_discrete else baseline.action_space.size
    logged = {"observations": seen, "actions": done, "rewards": 1, "terminals": 1}
    logged |= {"next_observations": seen, "next_actions": done}
    said = {name: block.shape[1] for name, block in notes.items()}
    return {**logged, **said, "references": output_size(baseline.action_space)}


def _notes(labels: Labels, used: NDArray[np.bool_], counted: bool, *, space: Space) -> dict[str, Array]:
    """Columns of the annotated rows; a suggestion that does not count has mask 0."""
    weights = labels.weights[used, None]
    return {
        "suggestions": in_network_units(labels.suggestions[used].reshape(int(used.sum()), -1), space),
        "weights": weights / max(float(weights[weights > 0].mean()), 1e-9) if (weights > 0).any() else weights,
        "labelled": (weights > 0) & counted,
    }


def _references(baseline: MlpPolicy, observations: Array) -> Array:
    outputs = baseline.forward(observations)
    return outputs if baseline.action_space.is_discrete else in_network_units(outputs, baseline.action_space)


def _lay_out(widths: dict[str, int]) -> dict[str, slice]:
    """Where each block's columns are in the table, one block after the other."""
    ends = accumulate(widths.values())
    return {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}
