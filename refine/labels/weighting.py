"""How much each label counts: its confidence, times agreement between annotators, times support by the baseline.

Only weights change here; a weight's effect on a policy is in `reference/losses.py`. Every arm of a comparison is
weighed by the same rules from its own suggestions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from storage.datasets import StepArrays
from storage.schema import Array, Space

from ..config import RefineConfig
from ..policies import MlpPolicy, action_units
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
        chances = log_softmax(outputs.astype(np.float64), axis=1)
        chosen = labels.suggestions - baseline.action_space.start
        return np.exp(chances[np.arange(len(labels)), chosen] - chances.max(axis=1))
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
