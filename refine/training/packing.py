"""Transitions, labels and the baseline's opinion as one packed table, and batches of it, in a network's units.

A trained network's actions lie between -1 and 1; a policy's layers are put into these units and back here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.datasets import ENOUGH_ROWS, StepArrays, choose_rows
from storage.errors import BadInput
from storage.schema import Array, Space

from ..labels import Labels
from ..policies import MlpPolicy, action_bounds, action_units, input_size, network_inputs, output_size

_TOLERANCE = 1e-5  # in the network's units; a bound that was rounded is still the bound


def network_layers(policy: MlpPolicy) -> tuple[list[Array], list[Array]]:
    """Weights and biases with the outputs in the network's units; squashed and discrete ones are already."""
    weights, biases = list(policy.weights), list(policy.biases)
    if policy.head == "clip":
        middle, half = action_units(policy.action_space)
        weights[-1], biases[-1] = weights[-1] / half, (biases[-1] - middle) / half
    return weights, biases


def as_policy(weights: Sequence[Array], biases: Sequence[Array], like: MlpPolicy) -> MlpPolicy:
    """A policy like the given one with the layers of a network, (in, out) and (out,) each, in the network's units.

    Raises:
        BadInput: when a weight is not finite.
    """
    weights, biases = list(weights), list(biases)
    if like.head == "clip":
        middle, half = action_units(like.action_space)
        weights[-1], biases[-1] = weights[-1] * half, biases[-1] * half + middle
    return replace(like, weights=tuple(weights), biases=tuple(biases))


def as_logits(policy: MlpPolicy, observations: Array) -> MlpPolicy:
    """Read Q values as logits: `softmax(Q / t)`, where t is the mean lead of the best action over the average one.

    The greedy action is the same at every observation; only how much a suggestion has to overcome depends on t. The
    softmax of Q values is the policy of maximum-entropy learning (Haarnoja et al., ICML 2017).

    Args:
        policy: with a head of Q values.
        observations: (N, n) over which the lead is averaged.
    """
    factor = np.float32(1.0 / mean_lead(policy.forward(observations)))
    weights = (*policy.weights[:-1], policy.weights[-1] * factor)
    return replace(policy, weights=weights, biases=(*policy.biases[:-1], policy.biases[-1] * factor), head="logits")


def mean_lead(values: Array) -> float:
    """How far the best of some Q values (N, k) is ahead of their average, in the mean; never 0."""
    return max(float(np.mean(values.max(axis=1) - values.mean(axis=1))), 1e-6)


def cutting_bounds(space: Space) -> tuple[Array, Array]:
    """From where on a continuous action is cut, below and above, (m,) each in the network's units; infinite if never.

    Two actions as far out as that, or farther, are played as one.
    """
    low, high = (in_network_units(bounds, space) for bounds in action_bounds(space))
    return low + np.float32(_TOLERANCE), high - np.float32(_TOLERANCE)


def in_network_units(actions: Array, space: Space) -> Array:
    """Actions (B, m) as a network has them: discrete ones from 0, continuous ones between -1 and 1."""
    if space.is_discrete:
        return actions - space.start
    middle, half = action_units(space)
    return (actions - middle) / half


CHUNK = 8_192
"""Rows of the table that are written at a time; what is gathered for them stays in the processor's cache."""

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
    suggestions: Floats  # (1, B) index or (m, B); of several labellings with one more axis in front, as their weights
    weights: Floats  # (1, B)
    labelled: Floats  # (1, B)
    references: Floats  # (k, B)


@dataclass(eq=False)
class PackedTable:
    """Packed transitions, of which a fixed number per batch are annotated ones."""

    take: Callable[[Rows], Floats]  # what rows (B,) of the table hold, (B, width)
    columns: Mapping[str, slice]  # name of a field of `Columns` -> its columns of the table
    plain: int  # rows that are not annotated, the first ones
    annotated: int  # annotated rows, which come after them
    quota: int  # annotated rows in every batch, sampled with replacement
    action_space: Space
    labellings: tuple[Floats, Floats] | None = None
    """Of several that speak of the same annotated rows, suggestions (D, m, annotated) and weights (D, 1, annotated) of
    each; None: the columns of the table are all there is."""

    def __post_init__(self) -> None:
        """Seed the sampling."""
        self.reseed(0)

    def __len__(self) -> int:
        """Rows; a step with several labels is several rows."""
        return self.plain + self.annotated

    def reseed(self, seed: int) -> None:
        """Start the sampling anew."""
        self._rng = np.random.default_rng(seed)

    def sample_columns(self, batch_size: int) -> Columns:
        """A batch with the quota of annotated rows first, the rest uniformly from the other transitions."""
        rows = self.sample_rows(batch_size)
        packed = np.ascontiguousarray(self.take(rows).T)
        batch = Columns(**{name: packed[columns] for name, columns in self.columns.items()})
        if self.labellings is None:
            return batch
        suggestions, weights = (self._spread(notes, rows) for notes in self.labellings)
        return batch._replace(suggestions=suggestions, weights=weights)

    def _spread(self, notes: Floats, rows: Rows) -> Floats:
        """Notes (D, m, annotated) at the rows (B,) of a batch, (D, m, B); 0 where a row is not annotated."""
        annotated = np.flatnonzero(rows >= self.plain)
        found = np.zeros((*notes.shape[:2], len(rows)), np.float32)
        found[..., annotated] = notes[..., rows[annotated] - self.plain]
        return found

    def sample_rows(self, batch_size: int) -> Rows:
        """The rows (B,) of such a batch."""
        quota = min(self.quota, batch_size) if self.annotated else 0
        quota = quota if self.plain else batch_size
        rows = np.empty(batch_size, np.int64)
        if quota:
            rows[:quota] = self._rng.integers(self.plain, len(self), quota)
        if quota < batch_size:
            rows[quota:] = self._rng.integers(0, self.plain, batch_size - quota)
        return rows


def build_table(
    steps: StepArrays,
    labels: Labels,
    baseline: MlpPolicy,
    *,
    rewards: NDArray[np.float64] | None = None,
    suggestions: bool = True,
    quota: int = 64,
    also: Sequence[Labels] = (),
) -> PackedTable:
    """Pack transitions and labels.

    Every step is a transition, the last one of an episode included: its next observation is the final row. Only a
    termination ends the bootstrap; a truncated episode goes on from its final observation. Of more than a
    million steps without a label so many are taken, drawn by chance, so that the table's size does not grow with the
    dataset: a training draws a few hundred thousand states at most. Labels are all taken; of more than a million the
    rows are packed as they are drawn.

    Args:
        steps: N rows.
        labels: of these steps. With `suggestions`, those of weight 0 do not count; each of the others is a row.
        baseline: whose outputs are the references to stay close to.
        rewards: (N,) relabelled rewards, or None for the logged ones.
        suggestions: whether suggestions count; if not, labels only say which rows are annotated.
        quota: annotated rows per batch.
        also: further labels of the same rows, of which the same count; they are trained beside the first.

    Raises:
        BadInput: when no label counts.
    """
    used = labels.weights > 0 if suggestions else np.ones(len(labels), np.bool_)
    if not used.any():
        raise BadInput(
            f"None of the {len(labels)} labels has a suggestion with confidence above 0.",
            "Annotate more episodes, or refine from rewards only (mode R).",
        )
    counting = np.flatnonzero(used)
    is_plain = ~steps.is_final
    is_plain[labels.rows[counting]] = False
    plain = choose_rows(np.flatnonzero(is_plain), ENOUGH_ROWS)
    rows = np.concatenate([plain, labels.rows[counting]])
    notes = _notes(labels, counting, suggestions, space=baseline.action_space)
    readers = _readers(steps, rewards, baseline)
    columns = _lay_out(baseline)

    def pack(places: Rows) -> Floats:
        packed = np.zeros((len(places), columns["references"].stop), np.float32)
        for name, read in readers.items():
            packed[:, columns[name]] = read(rows[places])
        annotated = np.flatnonzero(places >= len(plain))
        for name, read in notes.items():
            packed[annotated, columns[name]] = read(places[annotated] - len(plain))  # a plain row has zeros
        return packed

    take = pack if len(counting) > ENOUGH_ROWS else partial(_pack_all(pack, len(rows)).take, axis=0)
    return PackedTable(
        take,
        columns,
        plain=len(plain),
        annotated=len(counting),
        quota=quota,
        action_space=baseline.action_space,
        labellings=_stack([labels, *also], counting, baseline.action_space) if also else None,
    )


def _stack(several: Sequence[Labels], counting: Rows, space: Space) -> tuple[Floats, Floats]:
    """Suggestions (D, m, counting) and weights (D, 1, counting) of several labellings."""
    places = np.arange(len(counting))
    notes = [_notes(labels, counting, counted=True, space=space) for labels in several]
    suggested, weighed = (
        np.stack([np.asarray(read[name](places), np.float32).T for read in notes])
        for name in ("suggestions", "weights")
    )
    return suggested, weighed


def _pack_all(pack: Callable[[Rows], Floats], rows: int) -> Floats:
    """The whole table."""
    parts = [np.arange(start, min(start + CHUNK, rows)) for start in range(0, rows, CHUNK)]
    packed = pack(parts[0])
    table = np.empty((rows, packed.shape[1]), np.float32)
    for part in parts:
        table[part[0] : part[-1] + 1] = packed if part is parts[0] else pack(part)
    return table


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

    def refer(rows: Rows) -> Array:
        outputs = baseline.forward(steps.observation.take(rows, axis=0))
        return outputs if baseline.action_space.is_discrete else in_network_units(outputs, baseline.action_space)

    return {
        "observations": observe,
        "actions": act,
        "rewards": lambda rows: rewarded[rows, None],
        "terminals": lambda rows: steps.terminated[rows, None],
        "next_observations": lambda rows: observe(rows + 1),
        "next_actions": lambda rows: act(rows + 1),
        "references": refer,
    }


def _lay_out(baseline: MlpPolicy) -> dict[str, slice]:
    """Where the numbers of each column are in the table, one after the other."""
    seen = input_size(baseline.observation_space)
    done = 1 if baseline.action_space.is_discrete else baseline.action_space.size
    widths = {"observations": seen, "actions": done, "rewards": 1, "terminals": 1}
    widths |= {"next_observations": seen, "next_actions": done}
    widths |= {"suggestions": done, "weights": 1, "labelled": 1, "references": output_size(baseline.action_space)}
    ends = accumulate(widths.values())
    return {name: slice(end - width, end) for (name, width), end in zip(widths.items(), ends, strict=True)}


def _notes(labels: Labels, counting: Rows, counted: bool, *, space: Space) -> dict[str, Callable[[Rows], Array]]:
    """How columns of the annotated rows are read, at some of them; a suggestion that does not count has mask 0."""
    weights = labels.weights[counting]
    size = max(float(weights[weights > 0].mean()), 1e-9) if (weights > 0).any() else 1.0

    def suggest(places: Rows) -> Array:
        return in_network_units(labels.suggestions[counting[places]].reshape(len(places), space.size), space)

    return {
        "suggestions": suggest,
        "weights": lambda places: weights[places, None] / size,
        "labelled": lambda places: (weights[places, None] > 0) & counted,
    }
