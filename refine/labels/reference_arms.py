"""Labels of two arms that inform and judge nothing: random states with the annotator's rules, and an expert's actions.

`random_states` asks whether the choice of the states mattered, `oracle` what perfect suggestions at the same states
would have been worth. Neither is a placebo (`labels.py` has those), so neither enters the verdict about the labels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage.datasets import StepArrays
from storage.errors import BadInput
from storage.schema import Array, Space

from ..policies import action_units, network_inputs
from .labels import Labels

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
    return Labels(rows, labels.suggestions[near], labels.weights[near], labels.implicit_rewards[near])


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
