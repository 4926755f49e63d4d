"""The words of a request: Jinja2 templates in `prompts/`, filled with a card, statistics and tables.

It decides how things are said, not what is asked of whom: models, schemas and parameters are in `requests.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from storage.catalog import component_columns
from storage.expressions import FUNCTIONS, MAX_LENGTH
from storage.formulas import MAX_TERMS, STEP, Term
from storage.schema import Episode
from storage.schema import RequestKind as Kind

from ..cards import Action, Card
from .selection import DatasetStatistics, Group, Spread, Usage, describe_actions, exact_return
from .tables import Table, format_fixed, format_significant, render_table

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
