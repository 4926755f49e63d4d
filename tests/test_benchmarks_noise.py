from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.label_noise import NOISES, Noise, corrupt_labels, share_changed
from refine.labels.labels import Labels
from storage.datasets.reader import StepArrays
from storage.errors import BadInput
from storage.schema import Space

MOVES = Space(kind="discrete", dtype="int64", size=1, n=4, start=1)
TORQUES = Space(kind="box", dtype="float32", size=2, low=(-1.0, 0.0), high=(1.0, 4.0))
COUNT = 200
RNG = np.random.default_rng(3)
STATES = RNG.normal(size=(COUNT + 1, 3)).astype(np.float32)


def logged(action: np.ndarray) -> StepArrays:
    final = np.arange(COUNT + 1) == COUNT
    nothing = np.zeros(COUNT + 1, np.bool_)
    return StepArrays(
        episode_id=np.zeros(COUNT + 1, np.int64),
        step=np.arange(COUNT + 1, dtype=np.int32),
        observation=STATES,
        action=action,
        reward=np.zeros(COUNT + 1),
        terminated=np.roll(final, -1),
        truncated=nothing,
        is_final=final,
        policy_output=None,
    )


STEPS = logged(np.ones(COUNT + 1, np.int64))
DISCRETE = Labels(np.arange(COUNT), RNG.integers(1, 5, COUNT), np.full(COUNT, 0.7), np.zeros(COUNT))
PUSHED = logged(np.zeros((COUNT + 1, 2), np.float32))
CONTINUOUS = Labels(np.arange(COUNT), RNG.uniform([-1, 0], [1, 4], (COUNT, 2)), np.ones(COUNT), np.zeros(COUNT))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("noise", NOISES)
def test_exactly_the_asked_share_of_suggestions_becomes_wrong_and_stays_an_action(noise: Noise, rate: float) -> None:
    wrong = corrupt_labels(DISCRETE, noise, rate, STEPS, MOVES, seed=1)

    assert share_changed(DISCRETE, wrong) == rate
    assert set(wrong.suggestions) <= {1, 2, 3, 4}
    assert np.array_equal(wrong.rows, DISCRETE.rows)
    assert np.array_equal(wrong.weights, DISCRETE.weights)


def test_equal_seeds_give_equal_noise_and_others_do_not() -> None:
    first, again, other = (corrupt_labels(DISCRETE, "uniform", 0.5, STEPS, MOVES, seed=seed) for seed in (1, 1, 2))

    assert np.array_equal(first.suggestions, again.suggestions)
    assert not np.array_equal(first.suggestions, other.suggestions)


def test_confusion_takes_one_action_for_the_next_one_before_it_touches_another() -> None:
    wrong = corrupt_labels(DISCRETE, "confused", 0.4, STEPS, MOVES, seed=5)
    changed = wrong.suggestions != DISCRETE.suggestions
    shares = [changed[DISCRETE.suggestions == action].mean() for action in (1, 2, 3, 4)]

    assert np.array_equal(wrong.suggestions[changed], DISCRETE.suggestions[changed] % 4 + 1)
    assert sum(0 < share < 1 for share in shares) == 1
    assert sum(share == 1 for share in shares) == 1


def test_a_region_is_wrong_on_one_side_of_a_plane_only() -> None:
    wrong = corrupt_labels(DISCRETE, "region", 0.5, STEPS, MOVES, seed=0)
    sides = np.where(wrong.suggestions != DISCRETE.suggestions, 1.0, -1.0)
    states = np.column_stack([STATES[:COUNT], np.ones(COUNT)]).astype(np.float64)
    plane = np.zeros(4)
    for _ in range(20_000):  # a perceptron finds a separating plane if there is one
        astray = np.flatnonzero(sides * (states @ plane) <= 0)
        if not len(astray):
            break
        plane += sides[astray[0]] * states[astray[0]]

    assert np.array_equal(np.sign(states @ plane), sides)


def test_mirrored_actions_are_their_images_and_those_without_another_image_stay() -> None:
    wrong = corrupt_labels(DISCRETE, "mirrored", 1.0, STEPS, MOVES, seed=0, mirror=(0, 3, 2, 1))

    assert np.array_equal(wrong.suggestions, np.array([0, 1, 4, 3, 2])[DISCRETE.suggestions])
    assert share_changed(DISCRETE, wrong) == np.isin(DISCRETE.suggestions, [2, 4]).mean()


def test_mirrored_torques_are_the_opposite_in_the_bounds() -> None:
    wrong = corrupt_labels(CONTINUOUS, "mirrored", 1.0, PUSHED, TORQUES, seed=0)

    np.testing.assert_allclose(wrong.suggestions, [0, 4] - CONTINUOUS.suggestions, atol=1e-6)


def test_uniform_torques_fill_the_bounds_at_the_asked_share_of_labels() -> None:
    wrong = corrupt_labels(CONTINUOUS, "uniform", 0.3, PUSHED, TORQUES, seed=0)

    assert share_changed(CONTINUOUS, wrong) == 0.3
    assert np.all((wrong.suggestions >= [-1, 0]) & (wrong.suggestions <= [1, 4]))


def test_labels_without_a_suggestion_are_left_alone() -> None:
    weights = np.where(np.arange(COUNT) < 100, 1.0, 0.0)
    labels = Labels(DISCRETE.rows, DISCRETE.suggestions, weights, DISCRETE.implicit_rewards)
    wrong = corrupt_labels(labels, "uniform", 1.0, STEPS, MOVES, seed=0)

    assert np.all(wrong.suggestions[:100] != labels.suggestions[:100])
    assert np.array_equal(wrong.suggestions[100:], labels.suggestions[100:])


@pytest.mark.parametrize(
    ("asked", "space", "words"),
    [
        ({"noise": "biased", "rate": 0.3}, MOVES, "There is no noise 'biased'"),
        ({"noise": "uniform", "rate": 1.5}, MOVES, "rate of wrong suggestions is 1.5"),
        ({"noise": "confused", "rate": 0.3}, TORQUES, "Continuous actions cannot be confused"),
        ({"noise": "mirrored", "rate": 0.3, "mirror": (0, 1, 1, 2)}, MOVES, "each action from 0 to 3 is expected once"),
    ],
)
def test_noise_that_makes_no_sense_is_refused(asked: dict[str, Any], space: Space, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        corrupt_labels(DISCRETE, steps=STEPS, action_space=space, seed=0, **asked)
