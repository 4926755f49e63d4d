"""Drafts an environment card from the spaces and what the environment's docstring says, for a person to finish.

What only a person can say is marked TODO, and a card with a TODO does not load. The numbered tables and lists of
Gymnasium's docstrings give words and units; whether they are true is not judged, and no claim about physics is guessed.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from annotate.cards import PLACEHOLDER
from storage.disk import write_whole
from storage.errors import BadInput
from storage.schema import Space

from ..simulation import Environment, Named, flattened_from, make_environment, spaces_of

_QUOTED_LINES = 20
_UNBOUNDED = 1e30
_QUESTIONS = {
    "title": "a few words",
    "goal": "what is a good episode?",
    "termination": "when does an episode end, and after how many steps is it cut?",
    "reward": "what is rewarded or punished, and how much?",
}
_EXAMPLES = (
    "",
    "# Moments that deserve a row of the table; `change` or `crosses` a value. For example:",
    "# [[events]]",
    '# component = "a component"',
    '# kind = "crosses"',
    "# value = 0.0",
    '# text = "what has happened then"',
    "",
    "# Claims: your words about signs, units, ends and rewards, in a form that is checked. For example:",
    "# [[claims]]",
    '# kind = "effect"',
    '# text = "what the action does to the component"',
    '# action = "one action"',
    '# versus = "another action"',
    '# component = "a component"',
    '# effect = "increases"',
)
_QUOTED = {"goal": "Description", "termination": "Episode", "reward": "Reward"}
_STOPWORDS = {"a", "an", "and", "by", "of", "on", "the", "to"}
_LONGEST_NAME = 40
_HEADING = re.compile(r"^ {0,3}#{1,6}\s*(?P<title>.+?)\s*:?\s*$")
_LISTED = re.compile(r"^\s*[-*]\s*(?P<number>\d+)\s*[:=]\s*(?P<text>.+)$")
_NEGATIVE = re.compile(r"(?<!\w)-(?=\d)")
_BRACKETS = re.compile(r"\([^()]*\)")


class Bounds(NamedTuple):
    """The smallest and the largest value of one number."""

    low: float
    high: float


def card_path(env_id: str, folder: Path) -> Path:
    """Where a draft goes by default: the id in lower case, with dashes in place of what a file name cannot have."""
    name = "".join(character if character.isalnum() or character in "-_." else "-" for character in env_id.lower())
    return folder / f"{name}.toml"


def write_draft(env_id: Named, env_kwargs: Mapping[str, Any], path: Path) -> None:
    """Write a draft to a new file.

    Raises:
        BadInput: if the file exists (it is not changed), or there is no such environment, or no such folder.
    """
    if path.exists():
        raise BadInput(f"{path} already exists and was not changed.", "Name another file, or remove this one first.")
    write_whole(path, draft_card(env_id, env_kwargs).encode())


def draft_card(env_id: Named, env_kwargs: Mapping[str, Any] | None = None) -> str:
    """The text of a card, as far as it can be derived automatically.

    Args:
        env_id: Gymnasium id.
        env_kwargs: arguments of `gymnasium.make`; the card is for these only.

    Returns:
        TOML; `load_card` refuses it, with a list of what remains, until every TODO is filled in.

    Raises:
        BadInput: if there is no such environment, or its spaces are not supported.
    """
    kwargs = dict(env_kwargs or {})
    env = make_environment(env_id, kwargs)
    try:
        observation, action = spaces_of(env)
        documentation = type(env.unwrapped).__doc__ or ""
        flattened = flattened_from(env)
        components = (
            [Entry(name, None, "a part of the observation") for name in flattened.names]
            if flattened
            else describe_observation(documentation, observation)
        )
        actions = _console_actions(env) or describe_actions(documentation, action)
        seen = list(zip(components, _bounds(observation, len(components)), strict=True))
        done = list(zip(actions, _bounds(action, len(actions)), strict=True))
        lines = [
            *_head(env_id, kwargs, documentation, env),
            *(line for part in seen for line in _component(*part)),
            *(line for part in done for line in _action(*part, action)),
            *_EXAMPLES,
            *(line for part in seen for line in _range_claim(*part)),
        ]
    finally:
        env.close()
    return "\n".join(lines) + "\n"


def _head(env_id: str, kwargs: Mapping[str, Any], documentation: str, env: Environment) -> Iterator[str]:
    yield "# A draft: replace every TODO in your own words, then check the card against the environment."
    yield f"env_id = {_toml(env_id)}"
    if kwargs:
        yield f"env_kwargs = {_toml(kwargs)}"
    for field, question in _QUESTIONS.items():
        yield from (f"#   {line}" for line in section(documentation, _QUOTED.get(field, ""))[:_QUOTED_LINES])
        yield f"{field} = {_toml(f'{PLACEHOLDER}: {question}')}"
    seconds = _seconds_per_step(env)
    yield (
        f"seconds_per_step = {seconds}" if seconds else "# seconds_per_step = 0.02   # simulated time, if there is any"
    )
    yield "# Facts of the physics that a newcomer needs, with numbers; not what to do about them."
    yield f"advice = [{_toml(f'{PLACEHOLDER}: for example what one step of an action changes')}]"


def _component(entry: Entry, bounds: Bounds | None) -> Iterator[str]:
    yield from ("", "[[components]]", f"name = {_toml(entry.name)}", f"unit = {_toml(_or_todo(entry.unit))}")
    yield f"meaning = {_toml(f'{PLACEHOLDER}: {entry.text}; what does its sign say?')}"
    if bounds and all(bound.is_integer() for bound in bounds) and bounds[1] > 1:
        yield "decimals = 0"
    elif bounds and bounds[1] - bounds[0] < 1:
        yield "decimals = 3"


def _action(entry: Entry, bounds: Bounds | None, space: Space) -> Iterator[str]:
    yield from ("", "[[actions]]", f"name = {_toml(entry.name)}")
    yield f"meaning = {_toml(f'{PLACEHOLDER}: {entry.text}; what does it move, and which way?')}"
    if not space.is_discrete:
        low, high = bounds or (-math.inf, math.inf)
        yield from (f"unit = {_toml(_or_todo(entry.unit))}", f"low = {low}", f"high = {high}")


def _range_claim(entry: Entry, bounds: Bounds | None) -> Iterator[str]:
    if bounds:
        low, high = bounds
        yield from (
            "",
            "[[claims]]",
            'kind = "range"',
            f"text = {_toml(f'{entry.name} is between {low:g} and {high:g}')}",
        )
        yield from (f"component = {_toml(entry.name)}", f"low = {low}", f"high = {high}")


def _bounds(space: Space, count: int) -> list[Bounds | None]:
    """Finite bounds of `count` components; None where the space has none or they are those of its dtype."""
    low, high = space.low or (), space.high or ()
    if len(low) != count:
        return [None] * count
    pairs = [Bounds(_shortest(a, space.dtype), _shortest(b, space.dtype)) for a, b in zip(low, high, strict=True)]
    return [pair if _says_something(pair, space.dtype) else None for pair in pairs]


def _says_something(bounds: Bounds, dtype: str) -> bool:
    if np.dtype(dtype).kind in "iu":
        return bounds != (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return max(abs(bounds.low), abs(bounds.high)) < _UNBOUNDED


def _shortest(value: float, dtype: str) -> float:
    """4.8 for the float32 nearest to 4.8."""
    return float(str(np.asarray(value, dtype=dtype)))


def _console_actions(env: Environment) -> list[Entry]:
    """The names that an Atari console gives to its actions."""
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    names: list[str] = cast("Any", meanings)() if callable(meanings) else []
    return [Entry(name.lower(), "", name) for name in names]


def _seconds_per_step(env: Environment) -> float | None:
    for name in ("dt", "tau"):
        value = getattr(env.unwrapped, name, None)
        if isinstance(value, float) and value > 0:
            return value
    return None


def _or_todo(unit: str | None) -> str:
    return f"{PLACEHOLDER}: unit, or nothing" if unit is None else unit


def _toml(value: object) -> str:
    match value:
        case bool() | int() | str():
            return json.dumps(value, ensure_ascii=False)
        case float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(_toml, cast('list[object]', value)))}]"
        case dict():
            pairs = cast("dict[str, object]", value).items()
            return f"{{ {', '.join(f'{_toml(key)} = {_toml(inner)}' for key, inner in pairs)} }}"
        case _:
            raise BadInput(f"A card cannot hold {value!r}; arguments are numbers, strings, booleans and lists of them.")


@dataclass(frozen=True)
class Entry:
    """The documentation of one component or action."""

    name: str  # a SQL identifier
    unit: str | None  # empty for a pure number; None if not documented
    text: str


def describe_observation(documentation: str, space: Space) -> list[Entry]:
    """One entry per component, from the documentation's table if one fits the space."""
    return _unique(_find(documentation, "Observation", space.size) or _plain("component", space.size))


def describe_actions(documentation: str, space: Space) -> list[Entry]:
    """One entry per discrete action, or per dimension of a continuous one."""
    count = (space.n or 0) if space.is_discrete else space.size
    return _unique(_find(documentation, "Action", count) or _plain("action", count))


def section(documentation: str, title: str) -> list[str]:
    """The lines under the first heading that contains a title, without blank ones; empty if there is none."""
    found: list[str] = []
    inside = False
    for line in inspect.cleandoc(documentation).splitlines():
        heading = _HEADING.match(line)
        if heading and found:
            break
        if heading:
            inside = bool(title) and title.lower() in heading["title"].lower()
        elif inside and line.strip():
            found.append(line.rstrip())
    return found


def _find(documentation: str, title: str, count: int) -> list[Entry]:
    """The first table, else the list, that numbers exactly `count` entries from 0."""
    lines = section(documentation, title)
    for table in _tables(lines):
        entries = _from_table(table, count)
        if entries:
            return entries
    listed = [match for match in map(_LISTED.match, lines) if match]
    if [int(match["number"]) for match in listed] == list(range(count)):
        return [Entry(_identifier(match["text"]), None, _plain_text(match["text"])) for match in listed]
    return []


def _tables(lines: list[str]) -> Iterator[list[list[str]]]:
    table: list[list[str]] = []
    for line in [*lines, ""]:
        if line.strip().startswith("|"):
            table.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif table:
            yield table
            table = []


def _from_table(table: list[list[str]], count: int) -> list[Entry]:
    header, *rows = table
    units = [column for column, title in enumerate(header) if "unit" in title.lower()]
    numbered = [row for row in rows if row[0].isdigit() and len(row) == len(header) > 1]
    if [int(row[0]) for row in numbered] != list(range(count)):
        return []
    return [
        Entry(_identifier(row[1]), _unit(row[units[0]]) if units else None, _plain_text(row[1])) for row in numbered
    ]


def _unit(text: str) -> str:
    """`m` of `position (m)`; empty of `unitless`."""
    brackets = re.search(r"\(([^()]*)\)", text)
    unit = brackets[1] if brackets else text
    return "" if unit.lower() in ("unitless", "none", "-") else unit


def _identifier(text: str) -> str:
    """The most telling words, as a SQL identifier: `angle_torso` of `angle of the torso (rad)`."""
    spelled = _NEGATIVE.sub(" minus ", _BRACKETS.sub(" ", text).lower())
    words = re.findall(r"[a-z0-9]+", spelled)
    name = ""
    for word in [word for word in words if word not in _STOPWORDS] or words:
        if len(name) + len(word) < _LONGEST_NAME:
            name = f"{name}_{word}" if name else word
    return name if name[:1].isalpha() else f"n_{name}"


def _plain_text(text: str) -> str:
    return " ".join(text.replace("`", "").replace("*", "").split())


def _plain(what: str, count: int) -> list[Entry]:
    return [Entry(f"{what}_{index}", None, "not documented") for index in range(count)]


def _unique(entries: list[Entry]) -> list[Entry]:
    """The same entries; a name that others have too, or that is taken, gets a number."""
    given = [entry.name for entry in entries]
    names: list[str] = []
    for index, name in enumerate(given):
        if given.count(name) > 1 or name in names:
            stem = name[: _LONGEST_NAME - 5]
            taken = {*given, *names}
            name = next(new for n in range(index, index + 1000) if (new := f"{stem}_{n}") not in taken)
        names.append(name)
    return [Entry(name, entry.unit, entry.text) for name, entry in zip(names, entries, strict=True)]
