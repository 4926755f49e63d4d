"""Readings of labels: what the annotator may have meant if systematically wrong. Nothing is trained here.

An action that is always confused with another, mirrored signs, and a region where everything is wrong cannot be told
from labels alone: within them the labels agree. So each suspicion becomes a set of labels that it would leave, and
whoever has a simulator tries them. Errors without a system are found by `training/robust.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from storage.datasets import StepArrays
from storage.schema import Array

from ..policies import MlpPolicy, action_units, network_inputs
from .labels import Labels

MOST_ACTIONS = 4
"""Only so many of the most suggested actions are suspected, or the pairs would be too many to try."""
DIRECTIONS = 4


@dataclass(frozen=True)
class LabelHypothesis:
    """Labels under one suspicion."""

    name: str
    labels: Labels


def list_readings(labels: Labels, steps: StepArrays, policy: MlpPolicy) -> list[LabelHypothesis]:
    """Every systematic suspicion about the suggestions.

    - one action's suggestions are worthless (discrete);
    - two actions are exchanged (discrete), or the signs of one component or of all are (continuous);
    - the suggestions hold only in one half of the states: on either side of the median along each of the first
      principal components of the labelled states.

    Args:
        labels: of these steps.
        steps: the logged steps.
        policy: of the same spaces.

    Returns:
        The readings; their number depends on the spaces only, so that every arm has as many candidates.
    """
    if policy.action_space.is_discrete:
        return [*_suspect_actions(labels, policy), *_halve_states(labels, steps, policy)]
    return [*_mirror_signs(labels, policy), *_halve_states(labels, steps, policy)]


def keep(labels: Labels, wanted: NDArray[np.bool_]) -> Labels:
    """The wanted labels, (L,), as they are; the others lose their suggestion but keep their implicit reward.

    If no suggestion would be left, all stay: a suspicion against everything says nothing.
    """
    weights = np.where(wanted, labels.weights, 0.0)
    return replace(labels, weights=weights) if weights.any() else labels


def _suspect_actions(labels: Labels, policy: MlpPolicy) -> Iterator[LabelHypothesis]:
    start, said = policy.action_space.start, labels.suggestions
    counts = np.bincount(said[labels.weights > 0] - start, minlength=int(policy.action_space.n or 1))
    suspects = sorted(int(index) + start for index in np.argsort(-counts, kind="stable")[:MOST_ACTIONS])
    for action in suspects:
        yield LabelHypothesis(f"without action {action}", keep(labels, said != action))
    for one, other in itertools.combinations(suspects, 2):
        exchanged = np.where(said == one, other, np.where(said == other, one, said))
        yield LabelHypothesis(f"actions {one} and {other} exchanged", replace(labels, suggestions=exchanged))


def _mirror_signs(labels: Labels, policy: MlpPolicy) -> Iterator[LabelHypothesis]:
    middle, _ = action_units(policy.action_space)
    opposite = 2 * middle.astype(np.float64) - labels.suggestions
    yield LabelHypothesis("all signs mirrored", replace(labels, suggestions=opposite))
    for component in range(policy.action_space.size if policy.action_space.size > 1 else 0):
        mirrored = np.array(labels.suggestions)
        mirrored[:, component] = opposite[:, component]
        yield LabelHypothesis(f"sign of component {component} mirrored", replace(labels, suggestions=mirrored))


def _halve_states(labels: Labels, steps: StepArrays, policy: MlpPolicy) -> Iterator[LabelHypothesis]:
    places = _principal_components(network_inputs(steps.observation[labels.rows], policy.observation_space))
    for number, place in enumerate(places.T, start=1):
        above = place > np.median(place)
        yield LabelHypothesis(f"upper half of component {number} of the states", keep(labels, above))
        yield LabelHypothesis(f"lower half of component {number} of the states", keep(labels, ~above))


def _principal_components(states: Array) -> Array:
    """Scores, (L, k), of states, (L, n), on their first principal components, each variable in its deviations."""
    states = states.astype(np.float64)
    scaled = (states - states.mean(axis=0)) / np.maximum(states.std(axis=0), 1e-9)
    _, _, directions = np.linalg.svd(scaled, full_matrices=False)
    return scaled @ directions[:DIRECTIONS].T
