"""What a dataset looks like as a whole, in few numbers: the cure for fixing on one vivid failure.

It reads no files and writes no prompt text. Quantiles are actual values of the data (no interpolation) and shares are
ratios of counts, so equal data gives equal numbers on any machine.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage.schema import Array, Episode

from ..cards import Card
from .tables import observation_rows

RETURN_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
RANGE_QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Usage:
    """How often an action was taken (discrete), or what values a dimension took (box)."""

    name: str
    share: float | None  # of all steps, when discrete
    quantiles: tuple[float, ...] | None  # at RANGE_QUANTILES, when box


@dataclass(frozen=True)
class Spread:
    """The values of one component; a component of zeros and ones is summed up by its share of ones."""

    name: str
    decimals: int
    quantiles: tuple[float, ...] | None  # at RANGE_QUANTILES
    share: float | None  # of ones


@dataclass(frozen=True)
class Group:
    """Some episodes taken together."""

    title: str
    episodes: int
    returns: tuple[float, ...]  # at RETURN_QUANTILES
    lengths: tuple[int, ...]  # at RETURN_QUANTILES
    terminated: float  # share
    last_reward: float  # median reward of the last step
    actions: tuple[Usage, ...]
    components: tuple[Spread, ...]
    final: tuple[Spread, ...]  # components in the final state


@dataclass(frozen=True)
class DatasetStatistics:
    """The whole dataset, its lower and its upper third by return, and which episode is the median one."""

    everything: Group
    worse: Group | None  # None when all returns are alike or there are under six episodes
    better: Group | None
    median_episode: int  # episode_id
    sorted_returns: tuple[float, ...]

    def rank(self, return_: float) -> tuple[int, int]:
        """How many episodes have a lower return, and how many there are."""
        return bisect_left(self.sorted_returns, return_), len(self.sorted_returns)


def exact_return(episode: Episode) -> float:
    """The sum of the rewards, correctly rounded, so that it does not depend on the order of summation."""
    return math.fsum(episode.rewards.tolist())


def describe_dataset(episodes: Sequence[Episode], card: Card) -> DatasetStatistics:
    """Statistics of all episodes.

    Args:
        episodes: at least one, in any order.
        card: names the components and actions.
    """
    known = {episode.episode_id: exact_return(episode) for episode in episodes}
    ranked = sorted(episodes, key=lambda episode: (known[episode.episode_id], episode.episode_id))
    returns = tuple(known[episode.episode_id] for episode in ranked)
    third = len(ranked) // 3
    telling = third >= 2 and returns[third - 1] < returns[-third]
    return DatasetStatistics(
        everything=_describe("all episodes", ranked, returns, card),
        worse=_describe("third with the lowest returns", ranked[:third], returns[:third], card) if telling else None,
        better=_describe("third with the highest returns", ranked[-third:], returns[-third:], card)
        if telling
        else None,
        median_episode=ranked[(len(ranked) - 1) // 2].episode_id,
        sorted_returns=returns,
    )


def _describe(title: str, episodes: Sequence[Episode], returns: Sequence[float], card: Card) -> Group:
    return Group(
        title=title,
        episodes=len(episodes),
        returns=_quantiles(returns, RETURN_QUANTILES),
        lengths=tuple(int(n) for n in _quantiles([len(episode) for episode in episodes], RETURN_QUANTILES)),
        terminated=sum(episode.terminated for episode in episodes) / len(episodes),
        last_reward=_quantiles([float(episode.rewards[-1]) for episode in episodes], (0.5,))[0],
        actions=describe_actions(np.concatenate([episode.actions for episode in episodes]), card),
        components=_describe_components(episodes, slice(None, -1), card),
        final=_describe_components(episodes, slice(-1, None), card),
    )


def describe_actions(actions: Array, card: Card) -> tuple[Usage, ...]:
    """How often each action occurs in (N,) indices, or how each dimension of (N, m) vectors is spread."""
    if actions.ndim == 1:
        counts = [int(np.count_nonzero(actions == i)) for i in range(len(card.actions))]
        return tuple(Usage(a.name, n / len(actions), None) for a, n in zip(card.actions, counts, strict=True))
    return tuple(Usage(a.name, None, _quantiles(actions[:, i], RANGE_QUANTILES)) for i, a in enumerate(card.actions))


def _describe_components(episodes: Sequence[Episode], states: slice, card: Card) -> tuple[Spread, ...]:
    """Spreads over some states of each episode; one component is in memory at a time."""
    return tuple(
        _spread(np.concatenate([observation_rows(e)[states, i] for e in episodes]), component.name, component.decimals)
        for i, component in enumerate(card.components)
        if component.show
    )


def _spread(values: Array, name: str, decimals: int) -> Spread:
    if bool(((values == 0) | (values == 1)).all()):
        return Spread(name, decimals, None, int(np.count_nonzero(values)) / len(values))
    return Spread(name, decimals, _quantiles(values, RANGE_QUANTILES), None)


def _quantiles(values: Array | Sequence[float], at: Sequence[float]) -> tuple[float, ...]:
    found: Array = np.quantile(np.asarray(values), at, method="inverted_cdf")  # one of the values, so in their own type
    return tuple(float(value) for value in found)
