"""Which episodes to ask about when the budget is short: an order of all of them, of which a run takes the first few.

Because each method is an order, a larger limit asks about the same episodes and more. What is asked about an episode
does not depend on the choice: statistics and the median episode are always those of the whole dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import BadInput
from storage.schema import Episode

from .statistics import exact_return
from .tables import observation_rows

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


def _first(episodes: Sequence[Episode], rng: np.random.Generator) -> list[int]:
    return list(range(len(episodes)))


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
    places = _describe(episodes)
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
    places, order = _describe(episodes), worse[:1]
    nearest = np.full(len(episodes), np.inf)
    while len(order) < len(worse):
        nearest = np.minimum(nearest, np.linalg.norm(places - places[order[-1]], axis=1))
        left = [place for place in worse if place not in order]
        order.append(left[0] if len(order) % 2 == 0 else max(left, key=lambda place: nearest[place]))
    return order + better


def _describe(episodes: Sequence[Episode]) -> NDArray[np.float64]:
    rows = [observation_rows(episode).astype(np.float64) for episode in episodes]
    spread = np.concatenate(rows).std(axis=0)
    unit = np.where(spread > 1e-9, spread, 1.0)
    features = [np.append(np.quantile(states / unit, QUANTILES, axis=0).ravel(), states[-1] / unit) for states in rows]
    return np.array(features)


_ORDERS: Mapping[str, Callable[[Sequence[Episode], np.random.Generator], list[int]]] = {
    "first": _first,
    "stratified": _stratified,
    "novel": _novel,
    "failing": _failing,
}
