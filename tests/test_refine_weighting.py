"""What a label weighs: confidence, agreement of annotators, support by the logged policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_refine_train import FIRST_VISITS, FORCES, LABELS, MOVES, STEPS, push, pusher, walker

from refine.config import RefineConfig
from refine.labels.labels import Labels
from refine.labels.weighting import agreement, relative_likelihood, weigh_labels


def labels_at(rows: list[int], suggestions: np.ndarray, confidences: list[float]) -> Labels:
    return Labels(np.array(rows), suggestions, np.array(confidences), np.zeros(len(rows)))


def test_by_default_a_label_weighs_its_confidence() -> None:
    assert weigh_labels(LABELS, STEPS, walker(), RefineConfig()).weights is LABELS.weights


def test_agreement_is_the_share_of_a_states_annotators_who_say_the_same() -> None:
    labels = labels_at([7, 3, 7, 7, 9], np.array([1, 2, 1, 0, 3]), [0.9, 0.5, 0.2, 0.9, 1.0])
    np.testing.assert_allclose(agreement(labels, MOVES), [2 / 3, 1, 2 / 3, 1 / 3, 1])

    weighed = weigh_labels(labels, STEPS, walker(), RefineConfig(agreement=True))

    np.testing.assert_allclose(weighed.weights, [0.6, 0.5, 0.4 / 3, 0.3, 1.0])


def test_who_suggests_nothing_has_no_voice() -> None:
    labels = labels_at([7, 7], np.array([1, 2]), [0.5, 0.0])
    np.testing.assert_array_equal(agreement(labels, MOVES), [1, 1])


def test_continuous_suggestions_agree_by_their_distance_in_half_widths() -> None:
    """The half widths are 2 and 2: (0, 2) and (1, 2) differ by sqrt(0.25 / 2); the third is beyond one half width."""
    suggestions = np.array([[0.0, 2.0], [1.0, 2.0], [-2.0, 0.0]])
    close = 1 - np.sqrt(0.125)
    found = agreement(labels_at([4, 4, 4], suggestions, [1.0] * 3), FORCES)
    np.testing.assert_allclose(found, [(1 + close + 0) / 3, (1 + close) / 3, 1 / 3])


def test_support_is_the_likelihood_under_the_baseline_relative_to_its_likeliest_action() -> None:
    baseline = walker()
    logits = baseline.forward(STEPS.observation[FIRST_VISITS])
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = chances[np.arange(len(LABELS)), LABELS.suggestions] / chances.max(axis=1)

    np.testing.assert_allclose(relative_likelihood(LABELS, STEPS, baseline), expected, rtol=1e-5)

    weights = weigh_labels(LABELS, STEPS, baseline, RefineConfig(support=0.2)).weights
    np.testing.assert_allclose(weights, np.minimum(1, expected / 0.2), rtol=1e-5)
    assert weights.min() < 0.9
    assert weights.max() == 1


def test_continuous_support_falls_with_the_distance_from_what_was_logged() -> None:
    """Logged actions lie around the baseline with standard deviation 0.6, cut to the bounds."""
    baseline = pusher("clip")
    steps = push(baseline)
    rows = np.flatnonzero(~steps.is_final)[:3]
    means = baseline.forward(steps.observation[rows])
    away = np.array([[0.0, 0.0], [0.6, 0.0], [1.2, 1.2]])
    labels = Labels(rows, means + away, np.ones(3), np.zeros(3))

    found = relative_likelihood(labels, steps, baseline)

    np.testing.assert_allclose(found, np.exp([0, -0.5, -4]), rtol=0.25)
    greedy = replace(steps, action=np.where(steps.is_final[:, None], 0, baseline.act(steps.observation).actions))
    assert relative_likelihood(labels, greedy, baseline)[1] == pytest.approx(np.exp(-0.5 * 3**2), rel=0.01)
