"""Labels: what an annotator said, as arrays beside the steps, and the arms made from them.

Nothing is learned here and nothing is read from disk; every label that does not fit its step or the action space is
refused. Placebo arms judge. Two other arms inform: `random_states` asks whether the choice of the states mattered,
`oracle` what perfect suggestions at the same states would have been worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage.datasets import StepArrays
from storage.errors import BadInput, did_you_mean
from storage.schema import Annotation, Array, Space, sha256_bytes

from ..policies import action_bounds, action_units, network_inputs

Arm = Literal["labels", "no_labels", "shuffled", "random", "permuted"]
"""The arms of a comparison that are judged; `permuted` is for rules with formulas only, see `rule_labels.py`."""
ARMS: tuple[Arm, ...] = ("labels", "no_labels", "shuffled", "random")


@dataclass(frozen=True)
class Labels:
    """L labels; two annotators of the same step are two of them.

    A label without a suggestion has weight 0 and the logged action in its place; one without a reward has 0.
    """

    rows: NDArray[np.int64]  # (L,) rows of the steps
    suggestions: Array  # (L,) int64 when discrete, else (L, m) float64
    weights: NDArray[np.float64]  # (L,) confidence in [0, 1]
    implicit_rewards: NDArray[np.float64]  # (L,) in [-1, 1]
    potential: NDArray[np.float64] | None = field(default=None, kw_only=True)
    """How good each of the dataset's N states is, (N,), mean 0 and spread 1; NaN where that has no value."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: NDArray[Any]) -> Labels:
        """The labels at some places, (K,) numbers or (L,) flags, without a potential, which is of all steps."""
        return Labels(self.rows[places], self.suggestions[places], self.weights[places], self.implicit_rewards[places])

    def has_suggestion(self, rows: int) -> NDArray[np.bool_]:
        """Which of a dataset's N rows have a suggestion that counts, (N,); `np.unique` of many rows takes a minute."""
        found = np.zeros(rows, np.bool_)
        found[self.rows[self.weights > 0]] = True
        return found

    @property
    def identity(self) -> dict[str, str]:
        """A hash of each column, by its name; what decides a training."""
        columns = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return {
            name: f"{column.dtype} {sha256_bytes(np.ascontiguousarray(column).data)}"
            for name, column in columns.items()
        }


def labels_from_annotations(annotations: Sequence[Annotation], steps: StepArrays, action_space: Space) -> Labels:
    """Place annotations beside the steps they speak of.

    Args:
        annotations: of one dataset, in any order; a missing confidence counts as 1.
        steps: that dataset's steps.
        action_space: of its environment.

    Returns:
        One label per annotation, in the same order.

    Raises:
        BadInput: naming the first annotation of an unknown step, of a final observation (where nothing was done), or
            with an action, an implicit reward or a confidence out of range.
    """
    rows = steps.rows_of([note.episode_id for note in annotations], [note.step for note in annotations])
    suggestions = np.array(steps.action[rows], dtype=np.float64).reshape(len(rows), action_space.size)
    for index, note in enumerate(annotations):
        if note.suggested_action is not None:
            if len(note.suggested_action) != action_space.size:
                raise _refusal(note, f"suggests {list(note.suggested_action)}; {_describe(action_space)}")
            suggestions[index] = note.suggested_action
    confidences = np.array([1.0 if note.confidence is None else note.confidence for note in annotations], np.float64)
    rewards = np.array(
        [0.0 if note.implicit_reward is None else note.implicit_reward for note in annotations], np.float64
    )
    problem = _first_problem(rows, suggestions, confidences, rewards, steps=steps, space=action_space)
    if problem is not None:
        raise _refusal(annotations[problem[0]], problem[1])
    suggested = np.array([note.suggested_action is not None for note in annotations], np.bool_)
    actions = suggestions[:, 0].astype(np.int64) if action_space.is_discrete else suggestions
    return Labels(rows, actions, np.where(suggested, confidences, 0.0), rewards)


def check_labels(labels: Labels, steps: StepArrays, action_space: Space) -> None:
    """Check labels that were not made by `labels_from_annotations`.

    Raises:
        BadInput: for unequal lengths, rows that are no step, actions out of range, or weights and implicit rewards
            outside [0, 1] and [-1, 1].
    """
    shape = (len(labels),) if action_space.is_discrete else (len(labels), action_space.size)
    if labels.suggestions.shape != shape or {len(labels.weights), len(labels.implicit_rewards)} != {len(labels)}:
        raise BadInput(
            f"{len(labels)} labels have suggestions {labels.suggestions.shape}, {len(labels.weights)} weights and "
            f"{len(labels.implicit_rewards)} implicit rewards; suggestions of shape {shape} are expected."
        )
    outside = (labels.rows < 0) | (labels.rows >= len(steps))
    if outside.any():
        raise BadInput(f"A label is at row {labels.rows[outside][0]}; the dataset has rows 0 .. {len(steps) - 1}.")
    suggestions = labels.suggestions.reshape(len(labels), -1)
    columns = (labels.rows, suggestions, labels.weights, labels.implicit_rewards)
    problem = _first_problem(*columns, steps=steps, space=action_space)
    if problem is not None:
        raise BadInput(f"The label at row {labels.rows[problem[0]]} {problem[1]}.")


def covers_most_steps(labels: Labels, steps: StepArrays) -> bool:
    """Whether at least half of the logged steps have a suggestion: advice that speaks for every state, or nearly."""
    return 2 * int(np.count_nonzero(labels.has_suggestion(len(steps)))) >= int(np.count_nonzero(~steps.is_final))


def arm_labels(arm: Arm, labels: Labels, steps: StepArrays, action_space: Space, rng: np.random.Generator) -> Labels:
    """Make the labels of one arm of the experiment, at the same states and with the same weights or notes.

    - `labels`: as they are.
    - `no_labels`: the logged action, implicit reward 0: plain cloning.
    - `shuffled`: each note, whole, moves to another labelled state, so that everything but its place is kept.
    - `random`: a uniformly random action and implicit reward.

    Raises:
        BadInput: for an unknown arm.
    """
    if arm == "labels":
        return labels
    if arm == "no_labels":
        logged = np.array(steps.action[labels.rows], dtype=labels.suggestions.dtype)
        return replace(labels, suggestions=logged, implicit_rewards=np.zeros(len(labels)))
    if arm == "shuffled":
        return replace(labels.take(rng.permutation(len(labels))), rows=labels.rows)
    if arm == "random":
        suggestions = _draw_actions(len(labels), steps, action_space, rng)
        return replace(labels, suggestions=suggestions, implicit_rewards=rng.uniform(-1, 1, len(labels)))
    raise BadInput(f"Unknown arm {arm!r}.{did_you_mean(arm, ARMS)} Known: {', '.join(ARMS)}.")


def _draw_actions(count: int, steps: StepArrays, space: Space, rng: np.random.Generator) -> Array:
    """Uniformly random actions, (count,) when discrete, else (count, m)."""
    if space.is_discrete:
        return rng.integers(space.start, space.start + int(space.n or 1), count)
    return rng.uniform(*finite_bounds(space, steps), (count, space.size))


def finite_bounds(space: Space, steps: StepArrays) -> tuple[Array, Array]:
    """The action bounds; where there is none, the extremes of the logged actions."""
    low, high = action_bounds(space)
    if np.isfinite(low).all() and np.isfinite(high).all():
        return low, high
    logged = steps.action[~steps.is_final]
    return np.where(np.isfinite(low), low, logged.min(axis=0)), np.where(np.isfinite(high), high, logged.max(axis=0))


def _first_problem(
    rows: NDArray[np.int64],
    suggestions: Array,
    confidences: NDArray[np.float64],
    rewards: NDArray[np.float64],
    *,
    steps: StepArrays,
    space: Space,
) -> tuple[int, str] | None:
    """Find the first label, (L,), that says something impossible: its index and what it does."""
    sound = _is_action(suggestions, space)
    for index in np.flatnonzero(~sound)[:1]:
        return int(index), f"suggests {suggestions[index].tolist()}; {_describe(space)}"
    for index in np.flatnonzero(~((confidences >= 0) & (confidences <= 1)))[:1]:
        return int(index), f"has confidence {confidences[index]}; 0 to 1 is allowed"
    for index in np.flatnonzero(~((rewards >= -1) & (rewards <= 1)))[:1]:
        return int(index), f"has implicit reward {rewards[index]}; -1 to 1 is allowed"
    for index in np.flatnonzero(steps.is_final[rows])[:1]:
        return int(index), "is at the final observation, where no action was taken"
    return None


def _refusal(note: Annotation, problem: str) -> BadInput:
    return BadInput(f"The annotation of episode {note.episode_id}, step {note.step} {problem}.")


def _is_action(suggestions: Array, space: Space) -> NDArray[np.bool_]:
    """Which suggestions, (L, m), belong to the action space, (L,)."""
    if space.is_discrete:
        index = suggestions - space.start
        inside = (index >= 0) & (index < int(space.n or 1)) & (index == np.floor(index))
    else:
        low, high = action_bounds(space)
        inside = (suggestions >= low) & (suggestions <= high) & np.isfinite(suggestions)
    return np.all(inside, axis=1)


def _describe(space: Space) -> str:
    if space.is_discrete:
        return f"one integer from {space.start} to {space.start + int(space.n or 1) - 1} is allowed"
    low, high = (bounds.tolist() for bounds in action_bounds(space))
    return f"{space.size} numbers from {low} to {high} are allowed"


ReferenceArm = Literal["random_states", "oracle"]
_CHUNK = 512  # states whose distances to all labels are in memory at once


def label_random_states(
    labels: Labels, steps: StepArrays, observation_space: Space, rng: np.random.Generator
) -> Labels:
    """Draw as many states as there are labels, and give each the whole note of the labelled state that is nearest.

    The nearest labelled neighbour is the simplest model of the annotator: it says at any state what the annotator said
    at the most similar one. It is asked out of sample, for a state's own note is never its neighbour.

    Args:
        labels: the annotator's, at least one.
        steps: their dataset.
        observation_space: of its environment.
        rng: draws the states, uniformly from all steps, and decides between equally near neighbours.

    Returns:
        As many labels, at the states that were drawn.
    """
    logged = np.flatnonzero(~steps.is_final)
    rows = rng.choice(logged, len(labels), replace=len(labels) > len(logged))
    near = nearest_labels(rows, labels, steps, observation_space, rng)
    return replace(labels.take(near), rows=rows)


def nearest_labels(
    rows: NDArray[np.int64], labels: Labels, steps: StepArrays, observation_space: Space, rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each row the label at the nearest other row, (R,): Euclidean distance in standard deviations of the dataset.

    A discrete observation is near to an equal one, and equally far from all others.
    """
    inputs = network_inputs(steps.observation, observation_space).astype(np.float64)
    if not observation_space.is_discrete:
        spread = inputs[~steps.is_final].std(axis=0)
        inputs = inputs / np.where(spread > 1e-9, spread, 1.0)
    order = rng.permutation(len(labels))  # among equally near ones the first in this order is taken
    known = labels.rows[order]
    nearest = [
        _nearest(inputs[part], inputs[known], part[:, None] == known)
        for part in np.array_split(rows, -(-len(rows) // _CHUNK))
    ]
    return order[np.concatenate(nearest)]


def label_like_expert(labels: Labels, actions: ArrayLike, steps: StepArrays, action_space: Space) -> Labels:
    """Put an expert's actions in place of the annotator's suggestions, at the same states and with the same weights.

    The implicit reward grades the logged action by its distance from the expert's: 1 where they are the same and -1
    where they differ; for continuous actions, in between, 1 minus the mean distance in units of half the bounds.

    Args:
        labels: the annotator's.
        actions: (L,) or (L, m), what the expert does in the labelled states.
        steps: their dataset.
        action_space: of its environment.

    Raises:
        BadInput: if the expert's actions are not of the suggestions' shape.
    """
    suggestions = np.array(actions, dtype=labels.suggestions.dtype)
    if suggestions.shape != labels.suggestions.shape:
        raise BadInput(f"The expert's actions have shape {suggestions.shape}; {labels.suggestions.shape} is expected.")
    logged: Array = np.asarray(steps.action[labels.rows], np.float64)
    if action_space.is_discrete:
        distance = 2.0 * (suggestions != logged)
    else:
        distance = np.abs((suggestions - logged) / action_units(action_space)[1]).mean(axis=1)
    return replace(labels, suggestions=suggestions, implicit_rewards=np.clip(1 - distance, -1.0, 1.0))


def _nearest(places: Array, known: Array, excluded: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The index of the nearest known place, (P,); the first among equals, and never one that is excluded."""
    squares = (places**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * places @ known.T
    distances = np.round(np.maximum(squares, 0.0), 9)  # equal states are equally near, whatever was rounded
    return np.where(excluded, np.inf, distances).argmin(axis=1)
