from __future__ import annotations

import numpy as np

from flows.reporting.pictures import choose_grid, choose_steps, columns_of, short_numbers
from storage.schema import Episode


def make_episode(length: int = 100) -> Episode:
    rewards = np.zeros(length)
    rewards[57 % length] = -100.0
    return Episode(
        episode_id=0,
        seed=0,
        observations=np.linspace(0, 1, 2 * (length + 1)).reshape(length + 1, 2),
        actions=np.arange(length) % 3,
        rewards=rewards,
        terminated=True,
        truncated=False,
    )


def test_a_short_episode_is_shown_step_by_step() -> None:
    assert choose_grid(4, [2], 10).tolist() == [0, 1, 2, 3, 4]


def test_a_long_episode_keeps_its_ends_and_every_wanted_step() -> None:
    grid = choose_grid(1000, [123, 777, 2000], 11).tolist()
    assert grid == [0, 100, 123, 200, 300, 400, 500, 600, 700, 777, 800, 900, 1000]


def test_no_spike_of_the_reward_is_lost_between_the_steps_shown() -> None:
    columns = columns_of(make_episode(), choose_grid(100, [], 6), [1], ("a", "b", "c"))
    assert columns["t"] == [0, 20, 40, 60, 80, 100]
    assert columns["r"] == [0.0, 0.0, -100.0, 0.0, 0.0, None]
    assert columns["g"] == [0.0, 0.0, 0.0, -100.0, -100.0, -100.0]
    assert columns["a"] == ["a", "c", "b", "a", "c", ""]
    assert columns["c"] == [[0.005, 0.204, 0.403, 0.602, 0.801, 1.0]]


def test_numbers_keep_four_digits_of_the_largest_one() -> None:
    assert short_numbers(np.array([1234.5678, 1.26, np.nan])) == [1235.0, 1.0, None]
    assert short_numbers(np.array([0.00123456, 0.0])) == [0.001235, 0.0]


def test_continuous_actions_are_written_as_numbers() -> None:
    episode = make_episode(2)
    vectors = Episode(**vars(episode) | {"actions": np.array([[0.5, -1.0], [0.25, 2.0]])})
    assert columns_of(vectors, np.arange(3), [], ())["a"] == ["0.5, -1", "0.25, 2", ""]


def test_labelled_steps_come_first_then_the_ends_then_those_around() -> None:
    assert choose_steps(100, [30, 60], 2) == {30, 60}
    assert choose_steps(100, [30, 60], 4) == {30, 60, 100, 0}
    assert choose_steps(100, [30, 60], 8) == {30, 60, 100, 0, 35, 65, 25, 55}
    assert len(choose_steps(100, list(range(50)), 10)) == 10
    assert choose_steps(3, [], 100) == {0, 1, 2, 3}
