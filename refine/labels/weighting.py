"""How much each label counts, and what the annotator may have meant if systematically wrong. Nothing is trained here.

A weight is confidence, times agreement between annotators, times support by the baseline; its effect on a policy is in
`reference/losses.py`. Every arm of a comparison is weighed by the same rules from its own suggestions. An action that
is always confused with another, mirrored signs, and a region where everything is wrong cannot be told from labels
alone: within them the labels agree. So each suspicion becomes a reading, with a candidate of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from storage.datasets import StepArrays
from storage.schema import Array, Space

from ..config import RefineConfig
from ..policies import MlpPolicy, action_units, network_inputs
from .labels import Labels

Weights = NDArray[np.float64]

NARROWEST = 0.1
"""Least standard deviation of continuous actions around the baseline, in half widths of the action space: a baseline
that was logged greedily would otherwise support nothing but itself."""


def weigh_labels(labels: Labels, steps: StepArrays, baseline: MlpPolicy, config: RefineConfig) -> Labels:
    """The same labels with weights as a configuration asks for; those it is given when it asks for nothing.

    Args:
        labels: with confidences as weights.
        steps: which they speak of.
        baseline: that made the steps; logits when discrete.
        config: `agreement` and `support`.
    """
    weights = labels.weights
    if config.agreement:
        weights = weights * agreement(labels, baseline.action_space)
    if config.support:
        weights = weights * np.minimum(1.0, relative_likelihood(labels, steps, baseline) / config.support)
    return replace(labels, weights=weights)


def agreement(labels: Labels, action_space: Space) -> Weights:
    """How far those who annotated the same state say the same as a label, its own voice included, (L,) in (0, 1].

    The mean likeness to all suggestions of that state, whatever their confidence: 1 or 0 for discrete actions; for
    continuous ones 1 minus the root mean square difference in half widths of the action space, at least 0. A label that
    is alone has 1, one of two that contradict each other 0.5. A label without a suggestion has no voice.

    Args:
        labels: L labels; several of one row come from several annotators or samples.
        action_space: of their suggestions.
    """
    shares = np.ones(len(labels))
    voices = np.flatnonzero(labels.weights > 0)
    order = voices[np.argsort(labels.rows[voices], kind="stable")]
    starts = np.flatnonzero(np.diff(labels.rows[order])) + 1
    for group in np.split(order, starts):
        if len(group) > 1:
            shares[group] = _likeness(labels.suggestions[group], action_space).mean(axis=1)
    return shares


def relative_likelihood(labels: Labels, steps: StepArrays, baseline: MlpPolicy) -> Weights:
    """`pi_0(a_i | s_i) / max_a pi_0(a | s_i)`: how far each suggestion is from what the logged policy does, (L,).

    It is the ratio by which discrete batch-constrained Q-learning decides which actions the data support (Fujimoto et
    al., arXiv 1910.01708, equation 14). A continuous policy is a Gaussian around the baseline's mean, as wide as the
    logged actions lie around it, so the ratio is `exp(-d^2 / 2)` of the distance in its standard deviations.

    Args:
        labels: L labels.
        steps: the logged steps.
        baseline: that made them; logits when discrete.
    """
    outputs = baseline.forward(steps.observation[labels.rows])
    if baseline.action_space.is_discrete:
        logits, chosen = outputs.astype(np.float64), labels.suggestions - baseline.action_space.start
        return np.exp(logits[np.arange(len(labels)), chosen] - logits.max(axis=1))
    return np.exp(-0.5 * np.square((labels.suggestions - outputs) / _spread(steps, baseline)).sum(axis=1))


def _likeness(suggestions: Array, space: Space) -> Weights:
    """Likeness of G suggestions of one state to each other, (G, G)."""
    if space.is_discrete:
        return (suggestions[:, None] == suggestions[None, :]).astype(np.float64)
    scaled = suggestions / action_units(space)[1]
    return np.maximum(0.0, 1.0 - np.sqrt(np.square(scaled[:, None] - scaled[None, :]).mean(axis=2)))


def _spread(steps: StepArrays, baseline: MlpPolicy) -> Array:
    """Standard deviation of the logged actions around the baseline's mean, (m,), in the environment's unit."""
    acted = ~steps.is_final
    residuals = steps.action[acted] - baseline.forward(steps.observation[acted])
    return np.maximum(np.sqrt(np.square(residuals).mean(axis=0)), NARROWEST * action_units(baseline.action_space)[1])


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
    start, suggested = policy.action_space.start, labels.suggestions
    counts = np.bincount(suggested[labels.weights > 0] - start, minlength=int(policy.action_space.n or 1))
    suspects = sorted(int(index) + start for index in np.argsort(-counts, kind="stable")[:MOST_ACTIONS])
    for action in suspects:
        yield LabelHypothesis(f"without action {action}", keep(labels, suggested != action))
    for one, other in itertools.combinations(suspects, 2):
        exchanged = np.where(suggested == one, other, np.where(suggested == other, one, suggested))
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
