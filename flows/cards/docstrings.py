"""Reads what Gymnasium environments say about themselves: the numbered tables and lists of their docstrings.

It finds words and units; it does not judge whether they are true.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from storage.schema import Space

_STOPWORDS = {"a", "an", "and", "by", "of", "on", "the", "to"}
_LONGEST_NAME = 40
_HEADING = re.compile(r"^ {0,3}#{1,6}\s*(?P<title>.+?)\s*:?\s*$")
_LISTED = re.compile(r"^\s*[-*]\s*(?P<number>\d+)\s*[:=]\s*(?P<text>.+)$")
_NEGATIVE = re.compile(r"(?<!\w)-(?=\d)")
_BRACKETS = re.compile(r"\([^()]*\)")


@dataclass(frozen=True)
class Entry:
    """What is said about one component or action."""

    name: str  # a SQL identifier
    unit: str | None  # empty for a pure number; None if nothing is said
    text: str


def describe_observation(documentation: str, space: Space) -> list[Entry]:
    """One entry per component, from the documentation's table where there is one that fits the space."""
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
    """The words that tell most, as a SQL identifier: `angle_torso` of `angle of the torso (rad)`."""
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
