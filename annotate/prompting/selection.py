"""What a dataset looks like as a whole, in few numbers, and which episodes to ask about when the budget is short.

Each method is an order of all episodes, of which a run takes the first few: a larger limit asks about the same episodes
and more. What is asked about an episode does not depend on the choice: statistics and the median episode are those of
the whole dataset. Quantiles are actual values of the data (no interpolation) and shares are ratios of counts, so equal
data gives equal numbers on any machine.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import BadInput
from storage.schema import Array, Episode

from ..cards import Card

Method = Literal["first", "stratified", "novel", "failing"]
METHODS: tuple[Method, ...] = ("first", "stratified", "novel", "failing")
QUANTILES = (0.1, 0.5, 0.9)
_CELLS = 3


def select_episodes(
    episodes: Sequence[Episode], limit: int | None, *, method: Method = "first", seed: int = 0
) -> list[Episode]:
    """Choose episodes.

    Args:
        episodes: of the whole dataset.
        limit: how many; all when None.
        method: `first`: as they were recorded. `stratified`: evenly over thirds of the returns and, within each,
            thirds of the lengths. `novel`: one after the other the episode whose states differ most from those chosen.
            `failing`: by turns the lowest return and, of the lower half, the states that differ most from those chosen.
        seed: of the draws within a stratum, or of the first novel episode; `first` and `failing` have none.

    Returns:
        The chosen ones, in the order of the dataset.

    Raises:
        BadInput: for an unknown method.
    """
    if method not in _ORDERS:
        raise BadInput(f"{method!r} is no way to select episodes. Known: {', '.join(METHODS)}.")
    chosen = _ORDERS[method](episodes, np.random.default_rng(seed))[:limit]
    return [episodes[place] for place in sorted(chosen)]


def spread_by_return(episodes: Sequence[Episode], count: int) -> list[Episode]:
    """Some episodes, evenly spread over the ranking by return, the lowest and the highest included.

    Args:
        episodes: of the whole dataset.
        count: how many; fewer if there are fewer. A single one is the median.
    """
    ranked = sorted(episodes, key=lambda episode: (exact_return(episode), episode.episode_id))
    count, last = min(count, len(ranked)), len(ranked) - 1
    if count == 1:
        return [ranked[last // 2]]
    return [ranked[last * place // (count - 1)] for place in range(count)]


def _stratified(episodes: Sequence[Episode], rng: np.random.Generator) -> list[int]:
    """Take one of each stratum in turn; three strata that follow each other differ in return and in length."""
    strata = [rng.permutation(cell).tolist() for cell in _strata(episodes)]
    shifts, starts = rng.permutation(_CELLS), rng.permutation(_CELLS)
    turns = [_CELLS * start + (start + shift) % _CELLS for shift in shifts for start in starts]
    order: list[int] = []
    while len(order) < len(episodes):
        order += [strata[cell].pop() for cell in turns if strata[cell]]
    return order


def _strata(episodes: Sequence[Episode]) -> list[list[int]]:
    """Nine cells: thirds of the returns, each cut into thirds of the lengths."""
    by_return = sorted(range(len(episodes)), key=lambda place: (exact_return(episodes[place]), place))
    cells: list[list[int]] = []
    for third in _cut(by_return):
        cells += _cut(sorted(third, key=lambda place: (len(episodes[place]), place)))
    return cells


def _cut(places: Sequence[int]) -> list[list[int]]:
    edges = [len(places) * part // _CELLS for part in range(_CELLS + 1)]
    return [list(places[start:stop]) for start, stop in pairwise(edges)]


def _novel(episodes: Sequence[Episode], rng: np.random.Generator) -> list[int]:
    """Farthest first: an episode is its components' quantiles and its final state, in units of the dataset's spread."""
    places = _places(episodes)
    order = [int(rng.integers(len(episodes)))]
    nearest = np.full(len(episodes), np.inf)
    while len(order) < len(episodes):
        nearest = np.minimum(nearest, np.linalg.norm(places - places[order[-1]], axis=1))
        nearest[order] = -1.0
        order.append(int(nearest.argmax()))
    return order


def _failing(episodes: Sequence[Episode], rng: np.random.Generator) -> list[int]:
    """Where the policy does badly, but not the same failure over and over; the better half comes last, worst first."""
    by_return = sorted(range(len(episodes)), key=lambda place: (exact_return(episodes[place]), place))
    worse, better = by_return[: -(-len(by_return) // 2)], by_return[-(-len(by_return) // 2) :]
    places, order = _places(episodes), worse[:1]
    nearest = np.full(len(episodes), np.inf)
    while len(order) < len(worse):
        nearest = np.minimum(nearest, np.linalg.norm(places - places[order[-1]], axis=1))
        left = [place for place in worse if place not in order]
        order.append(left[0] if len(order) % 2 == 0 else max(left, key=lambda place: nearest[place]))
    return order + better


def _places(episodes: Sequence[Episode]) -> NDArray[np.float64]:
    rows = [observation_rows(episode).astype(np.float64) for episode in episodes]
    spread = np.concatenate(rows).std(axis=0)
    unit = np.where(spread > 1e-9, spread, 1.0)
    features = [np.append(np.quantile(states / unit, QUANTILES, axis=0).ravel(), states[-1] / unit) for states in rows]
    return np.array(features)


_ORDERS: Mapping[str, Callable[[Sequence[Episode], np.random.Generator], list[int]]] = {
    "first": lambda episodes, _: list(range(len(episodes))),
    "stratified": _stratified,
    "novel": _novel,
    "failing": _failing,
}


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
        everything=_group("all episodes", ranked, returns, card),
        worse=_group("third with the lowest returns", ranked[:third], returns[:third], card) if telling else None,
        better=_group("third with the highest returns", ranked[-third:], returns[-third:], card) if telling else None,
        median_episode=ranked[(len(ranked) - 1) // 2].episode_id,
        sorted_returns=returns,
    )


def _group(title: str, episodes: Sequence[Episode], returns: Sequence[float], card: Card) -> Group:
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


def observation_rows(episode: Episode) -> Array:
    """The observations as (T+1, n), also where the space is discrete."""
    return episode.observations.reshape(len(episode) + 1, -1)
