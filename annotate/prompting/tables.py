"""A trajectory as a compact table: the rows that inform most, few digits, no repeated names.

It chooses and prints rows. It does not judge them, and it knows nothing of prompts or requests. Discrete actions are
indices into the card's list here, whatever the space starts at. Every number is written with correctly rounded,
locale-free arithmetic, so that equal data gives equal bytes on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from storage.schema import Array, Episode

from ..cards import Card, Event

LEAD_UP = (1, 3, 8, 20)
"""Steps before a termination that are shown: close together where the end is near."""
OUTLIER = 6.0
"""A reward is an event when it is this many times further from the median than 90% of the rewards are."""


@dataclass(frozen=True)
class Window:
    """A stretch of consecutive steps in which at most one label is asked for."""

    first: int
    last: int  # inclusive
    rows: tuple[int, ...]  # the steps of it that the table shows


@dataclass(frozen=True)
class Table:
    """What a model reads of one episode."""

    header: str
    windows: tuple[Window, ...]
    text: str

    @property
    def steps(self) -> tuple[int, ...]:
        """All steps that the table shows and that a label may name."""
        return tuple(step for window in self.windows for step in window.rows)


def format_fixed(value: float, decimals: int) -> str:
    """`value` with at most `decimals` decimals, trailing zeros cut and no negative zero."""
    text = f"{float(value):.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def format_significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits and never an exponent; integers keep all their digits."""
    value = float(value)
    if value == 0 or not math.isfinite(value):
        return format_fixed(value, 0)
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return format_fixed(value, max(0, digits - 1 - exponent))


def label_vector(names: Sequence[str], values: Sequence[float | str], decimals: Sequence[int]) -> str:
    """A continuous action as one text, for example `main=0.50 side=-0.20`; a formula is its own text."""
    return " ".join(
        f"{n}={x}" if isinstance(x, str) else f"{n}={x + 0.0 if round(x, d) else 0.0:.{d}f}"
        for n, x, d in zip(names, values, decimals, strict=True)
    )


def with_action_indices(episode: Episode, first_action: int) -> Episode:
    """The episode with its discrete actions as indices into the card's list.

    Args:
        episode: as it was recorded.
        first_action: where the action space starts; 0 for a continuous one.
    """
    return replace(episode, actions=episode.actions - first_action) if first_action else episode


def observation_rows(episode: Episode) -> Array:
    """The observations as (T+1, n), also where the space is discrete."""
    return episode.observations.reshape(len(episode) + 1, -1)


def render_table(episode: Episode, card: Card, *, rows: int, windows: int) -> Table:
    """The table of one episode.

    Args:
        episode: T steps.
        card: names, decimals and the event components of its environment.
        rows: number of rows at most (all steps when the episode is that short).
        windows: number of consecutive windows that the episode is cut into, fewer when it is very short.
    """
    shown = choose_steps(episode, card, rows=rows, windows=windows)
    cut = window_bounds(len(episode), windows)
    placed = tuple(Window(a, b, tuple(s for s in shown if a <= s <= b)) for a, b in cut)
    header, write_row = _columns(episode, card)
    lines: list[str] = []
    previous = 0
    for number, window in enumerate(placed, start=1):
        if len(placed) > 1:
            lines.append(f"window {number}: steps {window.first}-{window.last}")
        for step in window.rows:
            lines.append(write_row(step, previous))
            previous = step
    lines.append(write_row(len(episode), previous))
    return Table(header, placed, "\n".join(lines))


def render_rows(episode: Episode, card: Card, steps: Sequence[int]) -> str:
    """Some steps of an episode with the header line; step T is the final state."""
    header, write_row = _columns(episode, card)
    before = [steps[0] - 1 if steps[0] else 0, *steps[:-1]]
    return "\n".join([header, *(write_row(step, last) for step, last in zip(steps, before, strict=True))])


def window_bounds(length: int, windows: int) -> list[tuple[int, int]]:
    """First and last step of each window; at least three steps each, so that there is a choice."""
    count = max(1, min(windows, length // 3))
    edges = [length * i // count for i in range(count + 1)]
    return [(a, b - 1) for a, b in pairwise(edges)]


def choose_steps(episode: Episode, card: Card, *, rows: int, windows: int) -> list[int]:
    """The steps worth a row: up to a third of them events, the others at regular strides."""
    length = len(episode)
    if length <= rows:
        return list(range(length))
    events = _strongest_events(_event_scores(episode, card), rows // 3, window_bounds(length, windows))
    return sorted(_regular_steps(length, rows - len(events), episode.episode_id) | set(events))


def _regular_steps(length: int, count: int, episode_id: int) -> set[int]:
    """First and last step and regular strides between, which start elsewhere in each episode to cover a dataset."""
    inner = count - 2
    phase = (500 + 618 * episode_id) % 1000  # thousandths of a stride; multiples of the golden section spread evenly
    return {0, length - 1} | {1 + (1000 * i + phase) * (length - 2) // (1000 * inner) for i in range(inner)}


def _strongest_events(scores: NDArray[np.float64], room: int, bounds: Sequence[tuple[int, int]]) -> list[int]:
    """The highest scored steps, `room` at most; except before a termination no window takes more than its share."""
    share = room // len(bounds) + 1
    chosen: list[int] = []
    taken = [0] * len(bounds)
    for step in sorted(np.flatnonzero(scores).tolist(), key=lambda s: (-scores[s], s)):
        window = next(i for i, (_, last) in enumerate(bounds) if step <= last)
        if len(chosen) < room and (scores[step] == math.inf or taken[window] < share):
            chosen.append(step)
            taken[window] += 1
    return chosen


def _event_scores(episode: Episode, card: Card) -> NDArray[np.float64]:
    """How much of an event each step is, (T,): infinite before a termination, 0 for an ordinary step."""
    scores = _outlier_scores(episode.rewards)
    scores[1:] = np.maximum(scores[1:], scores[:-1] / 2)  # the state that a large reward led to
    states = observation_rows(episode)[:-1]
    for event in card.events:
        happened = _event_steps(event, states[:, card.component_names.index(event.component)])
        scores[happened] = np.maximum(scores[happened], OUTLIER)
    if episode.terminated:
        scores[[len(scores) - n for n in LEAD_UP if n <= len(scores)]] = math.inf
    return scores


def _event_steps(event: Event, values: Array) -> NDArray[np.int64]:
    """The steps in whose state the event has just happened."""
    watched = values if event.value is None else values > event.value
    return np.flatnonzero(watched[1:] != watched[:-1]) + 1


def _outlier_scores(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each reward from the median in units of the 90% distance; 0 below `OUTLIER`."""
    distance = np.abs(rewards - _quantile(rewards, 0.5))
    usual = max(_quantile(distance, 0.9), 1e-9)
    return np.where(distance >= OUTLIER * usual, distance / usual, 0.0)


def _quantile(values: NDArray[np.float64], q: float) -> float:
    """An actual value of the data, so that no arithmetic can differ between machines."""
    return float(np.quantile(values, q, method="inverted_cdf"))


def _columns(episode: Episode, card: Card) -> tuple[str, Callable[[int, int], str]]:
    """The header line, and a function that writes the row of a step given the row before it."""
    shown = [(i, c.decimals) for i, c in enumerate(card.components) if c.show]
    states = observation_rows(episode)
    rewards: list[float] = episode.rewards.tolist()

    def write_row(step: int, previous: int) -> str:
        cells = ["end" if step == len(rewards) else str(step)]
        cells += [format_fixed(states[step, i], decimals) for i, decimals in shown]
        cells += format_action(episode, card, step)
        cells.append(format_significant(math.fsum(rewards[previous:step]), 2))
        return " ".join(cells)

    names = [component.name for component in card.shown_components]
    actions = ["action"] if card.is_discrete else list(card.action_names)
    return " ".join(["step", *names, *actions, "reward"]), write_row


def format_action(episode: Episode, card: Card, step: int) -> list[str]:
    """The cells of the action taken at a step; dashes in the final state, where none was taken."""
    if step >= len(episode):
        return ["-"] * (1 if card.is_discrete else len(card.actions))
    if card.is_discrete:
        return [card.actions[int(episode.actions[step])].name]
    return [format_fixed(x, a.decimals) for x, a in zip(episode.actions[step].tolist(), card.actions, strict=True)]
