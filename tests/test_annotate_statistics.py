"""Statistics are quantiles and shares that can be checked by hand."""

from __future__ import annotations

import numpy as np

from annotate.cards.cards import Action, Card, Component
from annotate.prompting.selection import describe_dataset
from storage.schema import Episode

CARD = Card(
    env_id="Toy-v0",
    title="Toy",
    goal="go",
    termination="ends",
    reward="pays",
    components=(Component(name="position", meaning="where"), Component(name="touch", meaning="contact")),
    actions=(Action(name="left", meaning="l"), Action(name="right", meaning="r")),
)


def episodes() -> list[Episode]:
    """Nine episodes: number i has i + 1 steps and return i, goes right in its last step, ends in touch if i is odd."""
    made: list[Episode] = []
    for i in range(9):
        observations = np.stack([np.arange(i + 2), np.zeros(i + 2)], axis=1)
        observations[-1, 1] = i % 2
        actions = np.zeros(i + 1, np.int64)
        actions[-1] = 1
        rewards = np.zeros(i + 1)
        rewards[-1] = i
        made.append(Episode(i, i, observations, actions, rewards, terminated=i % 2 == 1, truncated=i % 2 == 0))
    return made


def test_the_whole_dataset_in_numbers() -> None:
    every = describe_dataset(episodes(), CARD).everything
    assert every.episodes == 9
    assert every.returns == (0, 0, 2, 4, 6, 8, 8)
    assert every.lengths == (1, 1, 3, 5, 7, 9, 9)
    assert every.terminated == 4 / 9
    assert every.last_reward == 4
    assert [usage.share for usage in every.actions] == [36 / 45, 9 / 45]
    assert every.components[0].quantiles == (0, 2, 7)
    assert (every.components[1].share, every.final[1].share) == (0, 4 / 9)


def test_worse_and_better_thirds_are_told_apart() -> None:
    statistics = describe_dataset(episodes()[::-1], CARD)
    assert statistics.worse is not None
    assert statistics.better is not None
    assert (statistics.worse.returns[-1], statistics.better.returns[0]) == (2, 6)
    assert statistics.better.final[0].quantiles == (7, 8, 9)


def test_thirds_with_equal_returns_are_not_compared() -> None:
    alike = [Episode(i, i, np.zeros((3, 2)), np.array([0, 1]), np.ones(2), True, False) for i in range(9)]
    assert describe_dataset(alike, CARD).worse is None


def test_the_median_episode_and_ranks() -> None:
    statistics = describe_dataset(episodes(), CARD)
    assert statistics.median_episode == 4
    assert statistics.rank(4) == (4, 9)


def test_continuous_actions_are_summed_up_by_quantiles() -> None:
    card = CARD.model_copy(update={"actions": (Action(name="push", meaning="p", low=-1, high=1),)})
    one = Episode(0, 0, np.zeros((4, 2)), np.array([[-1.0], [0.5], [1.0]]), np.ones(3), True, False)
    assert describe_dataset([one], card).everything.actions[0].quantiles == (-1, 0.5, 1)
