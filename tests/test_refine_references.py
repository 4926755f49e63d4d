"""Labels that inform: drawn states get their nearest neighbour's note, an oracle grades what was done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_refine_labels import DISCRETE, TORQUES, make_steps, some_labels

from refine.evaluation.gate import interval, interval_over_seeds
from refine.labels.labels import Labels, check_labels, label_like_expert, label_random_states, nearest_labels
from storage.datasets.reader import StepArrays
from storage.errors import BadInput
from storage.schema import Space

BOX = Space(kind="box", dtype="float32", size=3, low=(-9.0,) * 3, high=(9.0,) * 3)
PLACES = Space(kind="discrete", dtype="int64", size=1, n=5)


def line_of_states(count: int = 41) -> tuple[StepArrays, Labels]:
    """One episode along a line; every fourth state is labelled with action 1 left of the middle and 2 right of it."""
    steps = make_steps([count - 1])
    places = np.zeros((count, 3), np.float32)
    places[:, 0] = np.linspace(-1, 1, count)
    steps = replace(steps, observation=places)
    rows = np.arange(0, count - 1, 4)
    told = np.where(places[rows, 0] < 0, 1, 2)
    return steps, Labels(rows, told, np.linspace(0.5, 1, len(rows)), np.zeros(len(rows)))


def test_random_states_get_what_the_annotator_said_nearby_and_never_at_the_state_itself() -> None:
    steps, labels = line_of_states()
    made = label_random_states(labels, steps, BOX, np.random.default_rng(3))
    assert len(made) == len(set(made.rows.tolist())) == len(labels)
    assert sorted(made.rows) != labels.rows.tolist()
    right = np.where(steps.observation[made.rows, 0] < 0, 1, 2)
    assert (made.suggestions == right).mean() >= 0.9
    check_labels(made, steps, DISCRETE)
    near = nearest_labels(labels.rows, labels, steps, BOX, np.random.default_rng(0))
    assert np.all(near != np.arange(len(labels)))
    assert set(np.abs(near - np.arange(len(labels)))) == {1}
    again = label_random_states(labels, steps, BOX, np.random.default_rng(3))
    assert again.rows.tolist() == made.rows.tolist()


def test_distances_are_in_standard_deviations_of_the_dataset() -> None:
    steps = make_steps([4])
    places = np.array([[0, 0, 0], [1000, 0, 0], [0, 1, 0], [5000, 9, 0], [0, 0, 0]], np.float32)
    steps = replace(steps, observation=places)
    labels = Labels(np.array([1, 2]), np.array([1, 2]), np.ones(2), np.zeros(2))
    near = nearest_labels(np.array([0]), labels, steps, BOX, np.random.default_rng(0))
    assert labels.rows[near].tolist() == [2]  # 0.26 deviations away; the other one, 0.48


def test_a_discrete_state_takes_the_note_of_an_equal_state_and_chance_decides_between_equals() -> None:
    steps = make_steps([6])
    steps = replace(steps, observation=np.array([[1], [2], [3], [1], [2], [3], [0]]))
    labels = Labels(np.array([0, 1, 2]), np.array([1, 2, 3]), np.ones(3), np.zeros(3))
    near = nearest_labels(np.array([3, 4, 5]), labels, steps, PLACES, np.random.default_rng(0))
    assert near.tolist() == [0, 1, 2]
    strangers = [nearest_labels(np.array([0]), labels, steps, PLACES, np.random.default_rng(n))[0] for n in range(20)]
    assert set(strangers) == {1, 2}


def test_an_oracle_keeps_states_and_weights_and_grades_what_was_done() -> None:
    steps = make_steps([3, 4])
    labels = some_labels(steps)
    best = np.array([steps.action[1], (steps.action[4] + 1) % 4, 2])
    made = label_like_expert(labels, best, steps, DISCRETE)
    assert made.suggestions.tolist() == best.tolist()
    assert made.weights.tolist() == labels.weights.tolist()
    assert made.implicit_rewards.tolist() == [1.0, -1.0, 1.0 if steps.action[6] == 2 else -1.0]
    check_labels(made, steps, DISCRETE)

    steps = make_steps([3, 4], space=TORQUES)
    labels = some_labels(steps, TORQUES)
    logged = steps.action[labels.rows]
    far = logged + np.array([0.25, -0.5])
    graded = label_like_expert(labels, np.clip(far, [-1, -2], [1, 2]), steps, TORQUES).implicit_rewards
    assert graded == pytest.approx(1 - 0.25, abs=0.13)
    assert label_like_expert(labels, logged, steps, TORQUES).implicit_rewards == pytest.approx(1)
    with pytest.raises(BadInput, match=r"shape \(2, 2\); \(3, 2\) is expected"):
        label_like_expert(labels, logged[:2], steps, TORQUES)


@pytest.mark.slow
def test_an_interval_over_seeds_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth, trials, covered, naive = 5.0, 1000, 0, 0
    for _ in range(trials):
        table = truth + 3 * rng.normal(size=(4, 1)) + 2 * rng.normal(size=(1, 40)) + 4 * rng.normal(size=(4, 40))
        found = interval_over_seeds(table)
        covered += found.low <= truth <= found.high
        naive += abs(table.mean(axis=0).mean() - truth) <= 1.96 * table.mean(axis=0).std() / np.sqrt(40)
    assert covered / trials == pytest.approx(0.95, abs=0.03)
    assert naive / trials < 0.6  # what episodes alone would claim


def test_equal_trainings_and_a_single_one_are_judged_by_their_episodes() -> None:
    returns = np.random.default_rng(1).normal(size=30)
    assert interval_over_seeds([returns]) == interval(returns)
    assert interval_over_seeds([returns, returns]) == interval(returns)
    with pytest.raises(BadInput, match=r"shape \(30,\)"):
        interval_over_seeds(returns)
