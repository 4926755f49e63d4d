"""The words of a request: Jinja2 templates, filled with a card, statistics, and episodes as compact tables.

It decides how things are said, not what is asked of whom: models, schemas and parameters are in `requests.py`. A table
has the rows that inform most, few digits, no repeated names. Discrete actions are indices into the card's list in it,
whatever the space starts at. Every number is written with correctly rounded, locale-free arithmetic, so that equal data
gives equal bytes on any machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from storage.catalog import component_columns
from storage.expressions import FUNCTIONS, MAX_LENGTH
from storage.formulas import MAX_TERMS, STEP, Term
from storage.schema import Array, Episode
from storage.schema import RequestKind as Kind

from ..cards import Action, Card, Event
from .selection import DatasetStatistics, Group, Spread, Usage, describe_actions, exact_return, observation_rows

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


TABLE_FORMAT = 1
"""Raised whenever tables or statistics are written differently, since that changes what a model reads."""

_TASKS: Mapping[Kind, tuple[str, ...]] = {"rules": ("rules",), "study": ("study",)}
"""The tasks whose words count for the version of a kind of request, where these are not those about steps."""
_STEP_TASKS = ("identify", "mark", "suggest")
_FOLDER = Path(__file__).parent


@cache
def prompt_version(kind: Kind = "mark", more: Literal["playbook", "feedback"] | None = None) -> str:
    """`p_` and a hash of the templates and the table format: any change of a word is a new version.

    Requests about steps share one version; rules and studies have their own, and each with a playbook or feedback.
    """
    digest = hashlib.sha256(f"tables {TABLE_FORMAT}".encode())
    tasks = {*_TASKS.get(kind, _STEP_TASKS), more}
    for path in sorted(_FOLDER.glob("*.md")):
        if path.name.startswith("task_") and path.stem.removeprefix("task_") not in tasks:
            continue
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return f"p_{digest.hexdigest()[:12]}"


def render_system(
    card: Card,
    statistics: DatasetStatistics,
    median: Episode,
    *,
    kind: Kind,
    median_rows: int,
    rules: int = 0,
    playbook: str | None = None,
) -> str:
    """The part that all requests of a run share, so that a provider can cache it as a prefix.

    Args:
        card: the environment in words.
        statistics: of the whole dataset.
        median: the episode with the median return.
        kind: what is asked: `mark` (all in one), the stages `identify` and `suggest`, `rules`, or a `study`.
        median_rows: rows of the median episode's table.
        rules: how many are asked for, at most.
        playbook: what a study of the dataset has found, for requests about steps.
    """
    task = _render_task(kind, card, rules)
    return _render(
        "system.md",
        card=card,
        task=task if playbook is None else f"{_render('task_playbook.md', playbook=playbook)}\n{task}",
        statistics=describe_statistics(statistics, card),
        median=median,
        median_summary=summarise_episode(median),
        median_table=render_table(median, card, rows=median_rows, windows=1),
    )


def render_playbook(assessment: str, terms: Sequence[Term]) -> str:
    """A study as the readers of single episodes see it."""
    named = [f"- {term.name} = {term.expression}{f': {term.meaning}' if term.meaning else ''}" for term in terms]
    return "\n".join([assessment, *(["Quantities to work out:", *named] if named else [])])


def render_feedback(feedback: str) -> str:
    """The part about an earlier list and what came of it."""
    return _render("task_feedback.md", feedback=feedback)


def render_episode(
    card: Card, statistics: DatasetStatistics, episode: Episode, table: Table, *, marks: Sequence[tuple[int, str]] = ()
) -> str:
    """The part about one episode.

    Args:
        card: the environment in words.
        statistics: of the whole dataset, to say how the episode compares.
        episode: the episode.
        table: its table.
        marks: for the second stage, the steps found in the first with their rationales.
    """
    lower, count = statistics.rank(exact_return(episode))
    return _render(
        "episode.md",
        episode=episode,
        summary=summarise_episode(episode),
        lower=lower,
        count=count,
        usage=_describe_usage(describe_actions(episode.actions, card)),
        table=table,
        marks=marks,
    )


def summarise_episode(episode: Episode) -> str:
    """Length, return and how it ended, in half a sentence."""
    ended = "terminated" if episode.terminated else "cut by the time limit" if episode.truncated else "cut off"
    last = format_significant(float(episode.rewards[-1]))
    return f"{len(episode)} steps, return {format_significant(exact_return(episode))}, {ended}, last reward {last}"


def describe_statistics(statistics: DatasetStatistics, card: Card) -> str:
    """The statistics as text: the whole dataset, then the lower and the upper third side by side."""
    groups = [g for g in (statistics.everything, statistics.worse, statistics.better) if g is not None]
    return _render(
        "statistics.md",
        all=statistics.everything,
        groups=groups,
        heads=[_describe_group(group) for group in groups],
        usages=[_describe_usage(group.actions) for group in groups],
        components=[
            (component.name, [_describe_spread(group.components[i]) for group in groups])
            for i, component in enumerate(card.shown_components)
        ],
        finals=[
            (component.name, [_describe_spread(group.final[i]) for group in groups])
            for i, component in enumerate(card.shown_components)
        ],
    )


def format_share(share: float) -> str:
    """A share as whole percents, but never 0% or 100% of something that does occur or is missing."""
    percent = f"{100 * share:.0f}%"
    if percent == "0%" and share > 0:
        return "<1%"
    return ">99%" if percent == "100%" and share < 1 else percent


def _describe_group(group: Group) -> str:
    low, high = group.lengths[0], group.lengths[-1]
    lengths = f"{low} steps" if low == high else f"{low} to {high} steps, median {group.lengths[3]}"
    return (
        f"{group.title} ({group.episodes}): median return {format_significant(group.returns[3])}; {lengths}; "
        f"{_describe_ends(group)}; "
        f"median reward of the last step {format_significant(group.last_reward)}"
    )


def _describe_ends(group: Group) -> str:
    if group.terminated in (0.0, 1.0):
        return "all terminated" if group.terminated else "all cut by the time limit"
    return f"{format_share(group.terminated)} terminated, the others cut by the time limit"


def _describe_usage(usages: Sequence[Usage]) -> str:
    return ", ".join(
        f"{usage.name} {format_share(usage.share)}"
        if usage.share is not None
        else f"{usage.name} {' / '.join(format_fixed(q, 2) for q in usage.quantiles or ())}"
        for usage in usages
    )


def _describe_spread(spread: Spread) -> str:
    if spread.share is not None:
        return f"1 in {format_share(spread.share)}"
    return " / ".join(format_fixed(q, spread.decimals) for q in spread.quantiles or ())


def _action_form(card: Card) -> str:
    if card.is_discrete:
        return " or ".join(f'"{name}"' for name in card.action_names)
    return "{" + ", ".join(f'"{name}": number' for name in card.action_names) + "}"


def _render_task(kind: Kind, card: Card, rules: int) -> str:
    if kind not in _TASKS:
        return _render(f"task_{kind}.md", card=card, action_form=_action_form(card))
    form = _action_form(card)
    return _render(
        f"task_{kind}.md",
        card=card,
        action_form=form if card.is_discrete else form.replace("number", 'number, "expression" or null'),
        rules=rules,
        columns=[*component_columns(card.component_names), STEP],
        functions=list(FUNCTIONS),
        max_length=MAX_LENGTH,
        max_terms=MAX_TERMS,
    )


def _action_bounds(action: Action) -> str:
    if action.low is None or action.high is None:
        return ""
    unit = f", in {action.unit}" if action.unit else ""
    return f" ({format_significant(action.low)} to {format_significant(action.high)}{unit})"


def _render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(**values).strip()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = format_significant
    environment.filters["bounds"] = _action_bounds
    return environment
