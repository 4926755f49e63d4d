"""What an annotator is shown of its own list of rules: returns, what rules did, how far they were copied, two episodes.

The policy that imitates a list sees the observation of the current step alone, so it is shown, too, what of the list
reads more than that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.annotations import Rule, RuleList
from storage.catalog import component_columns
from storage.expressions import PREVIOUS
from storage.formulas import STEP, FormulaReader
from storage.schema import Episode

from ..cards import Card
from .rendering import format_share, format_significant, render_table, summarise_episode

ROWS = 40
"""Rows of an episode's table."""
SOON = 10
"""Steps before the end of an episode that count as just before it."""


@dataclass(frozen=True)
class Measured:
    """A mean return with its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        numbers = [format_significant(x) for x in (self.mean, self.low, self.high)]
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


@dataclass(frozen=True)
class Copied:
    """How often the imitating policy acts as a rule says, where that rule decides; None where it never says anything.

    Continuous actions are alike where each number is within 5% of its range.
    """

    recorded: float | None  # share of the steps that the policy was trained on
    played: float | None  # share of the steps of the list's own episodes


@dataclass(frozen=True)
class PlayedList:
    """A list of rules that was played as it stands, and what was made of it."""

    listed: RuleList
    episodes: Sequence[Episode]  # played by the list; discrete actions are indices into the card's list
    deciding: Sequence[NDArray[np.int64]]  # for each episode, (T,) the rule that decided; -1: none
    copied: Sequence[Copied]  # for each rule
    played: Measured
    baseline: Measured
    refined: Measured


def describe_feedback(card: Card, played: PlayedList) -> str:
    """The text of a request for a better list.

    Args:
        card: of the environment.
        played: the list and what came of it, at least one episode.
    """
    ranked = sorted(range(len(played.episodes)), key=lambda n: played.episodes[n].return_)
    count = len(ranked)
    lines = [
        "Your list:",
        _as_json(played.listed, card),
        "",
        f"Mean return over {count} episodes, with its 95% interval:",
        f"- the agent before: {played.baseline}",
        f"- your list, played as it stands: {played.played}",
        f"- a policy that was trained to imitate it: {played.refined}",
        "",
        f"What each rule did in these {count} episodes:",
        *_describe_rules(played),
        "",
        *_describe_unseen(card, played.listed),
        "",
        *_describe_copied(card, played),
    ]
    for title, place in (("that returned least", ranked[0]), ("with the median return", ranked[count // 2])):
        lines += ["", *_describe_episode(card, title, played.episodes[place], played.deciding[place])]
    return "\n".join(lines)


def _as_json(listed: RuleList, card: Card) -> str:
    """The list in the form that a reply has, in canonical text."""
    rules = [
        {
            "predicate": rule.predicate,
            "suggested_action": _action(rule, card),
            "critical": rule.critical,
            "confidence": rule.confidence,
        }
        for rule in listed.rules
    ]
    terms = [{"name": term.name, "expression": term.expression} for term in listed.terms]
    shown = {"assessment": listed.assessment, "terms": terms, "rules": rules, "potential": listed.potential}
    return json.dumps(shown, ensure_ascii=False)


def _action(rule: Rule, card: Card) -> object:
    if card.is_discrete:
        return rule.suggested_label
    formulas = rule.formulas or (None,) * len(rule.suggested_action)
    parts = zip(card.action_names, rule.suggested_action, formulas, strict=True)
    return {name: formula or number for name, number, formula in parts}


def _describe_rules(played: PlayedList) -> list[str]:
    deciding = np.concatenate(list(played.deciding))
    rewards = np.concatenate([episode.rewards for episode in played.episodes])
    last = [deciding[-SOON:] for deciding, e in zip(played.deciding, played.episodes, strict=True) if e.terminated]
    lines: list[str] = []
    for number in [*range(len(played.listed.rules)), -1]:
        own = deciding == number
        what = f"rule {number + 1}" if number >= 0 else "no rule, so the agent acted"
        if own.any():
            ends = sum(bool((rules == number).any()) for rules in last)
            paid = format_significant(float(rewards[own].mean()))
            soon = f"; it decided in the last {SOON} steps of {ends} of {len(last)} terminated episodes" if last else ""
            lines.append(f"- {what}: in {format_share(float(own.mean()))} of the steps, {paid} reward per step{soon}")
        elif number >= 0:
            lines.append(f"- {what}: never")
    return lines


def _describe_unseen(card: Card, listed: RuleList) -> list[str]:
    """What of a list reads more than the observation of the current step."""
    reader = FormulaReader.of(component_columns(card.component_names), listed.terms, is_canonical=True)
    terms = {name: _unseen(reader.needs([term])) for name, term in reader.terms.items()}
    rules = [_unseen(_reads(reader, rule)) for rule in listed.rules]
    names = sorted(frozenset[str]().union(*terms.values(), *rules))
    if not names:
        return ["Your list reads nothing that the imitating policy does not see."]
    own = [name for name, unseen in terms.items() if unseen]
    numbers = [str(number) for number, unseen in enumerate(rules, 1) if unseen]
    return [
        f"Your list reads what the imitating policy does not see: {', '.join(names)}. On that depend, directly or"
        f" through other terms: the terms {', '.join(own) or 'none'}; the rules {', '.join(numbers) or 'none'}."
    ]


def _reads(reader: FormulaReader, rule: Rule) -> frozenset[str]:
    """The names that a rule reads, those of its terms included."""
    formulas = [reader.formula(text, is_canonical=True) for text in rule.formulas or () if text]
    return reader.needs([reader.predicate(rule.predicate, is_canonical=True), *formulas])


def _unseen(names: frozenset[str]) -> frozenset[str]:
    return frozenset(name for name in names if name == STEP or name.startswith(PREVIOUS))


def _describe_copied(card: Card, played: PlayedList) -> list[str]:
    alike = "" if card.is_discrete else ", each number within 5% of its range"
    lines = [
        f"How often the imitating policy acts as the rule that decides says{alike}:"
        " in the recorded steps that it was trained on, and in the steps that your list played:"
    ]
    for number, copied in enumerate(played.copied, 1):
        shares = ["never" if share is None else format_share(share) for share in (copied.recorded, copied.played)]
        lines.append(f"- rule {number}: {shares[0]}, {shares[1]}")
    return lines


def _describe_episode(card: Card, title: str, episode: Episode, deciding: NDArray[np.int64]) -> list[str]:
    table = render_table(episode, card, rows=ROWS, windows=1)
    rules = " ".join(f"{step}:{deciding[step] + 1 or 'none'}" for step in table.steps if step < len(deciding))
    return [
        f"The episode {title}: {summarise_episode(episode)}",
        table.header,
        table.text,
        f"The rule that decided, by step: {rules}",
    ]
