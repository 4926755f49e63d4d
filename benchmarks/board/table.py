"""The board as a Markdown table, and its place between two comments of a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from refine.evaluation.gate import Interval
from storage.disk.atomic import write_whole
from storage.errors import BadInput

from .results import Result, gain

WORDS = {
    "baseline": "baseline",
    "labels": "labelled",
    "no_labels": "no labels",
    "shuffled": "shuffled",
    "random": "random",
    "oracle": "oracle",
    "best_10": "10% BC",
    "offline": "offline RL",
    "continued": "PPO continued",
    "rice": "RICE's resets",
}
_HEAD = ("environment", "method", "accepted", "greedy [95%]", "sampled [95%]", "labels", "dollars", "steps", "core s")
_WHOLE_FROM, _FINE_BELOW = 1000, 2


def draw_table(results: Sequence[Result]) -> str:
    """The Markdown table: one line per environment and method, and one with the verdicts on the labels."""
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    for env in dict.fromkeys(result.env for result in results):
        own = [result for result in results if result.env == env]
        lines += [_line(_cells(result, first=result is own[0])) for result in own]
    return "\n".join(lines)


def verdicts(results: Sequence[Result]) -> str:
    """What the labels did in each environment: by how much they are above the baseline and above each placebo."""
    lines: list[str] = []
    for env in dict.fromkeys(result.env for result in results):
        own = {result.arm: result for result in results if result.env == env}
        gains = {other: gain(own, "labels", other) for other in own if other != "labels"}
        told = [f"{WORDS[other]} {short(found)}" for other, found in gains.items() if found]
        if told:
            lines.append(f"- {env}: labelled minus " + ", ".join(told))
    return "\n".join(lines)


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` in a page.

    Raises:
        BadInput: when the page has no such place.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    fence = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    content = page.read_text() if page.is_file() else ""
    if not fence.search(content):
        raise BadInput(f"{page} has no place for {name}.", f"Put the lines {begin} and {end} into it.")
    replaced = fence.sub(lambda _: f"{begin}\n{text}\n{end}", content, count=1)
    write_whole(page, replaced.encode())


def short(interval: Interval | None) -> str:
    """A mean and its interval with as many digits as say something."""
    if interval is None:
        return ""
    size = max(abs(interval.low), abs(interval.high))
    digits = 0 if size >= _WHOLE_FROM else 2 if size < _FINE_BELOW else 1
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _cells(result: Result, *, first: bool) -> list[str]:
    name, words = (result.env if first else ""), WORDS[result.arm]
    if not result.seeds:
        return [name, words, f"failed: {result.failures[0]}", "", "", "", "", "", ""]
    rows = result.rows
    accepted = "" if result.accepted is None else f"{result.accepted} of {result.seeds}"
    if result.failures:
        accepted += f" ({len(result.failures)} failed: {result.failures[0]})"
    steps = sum(row.train_steps or (row.collected_steps + row.gate_steps) for row in rows) / len(rows)
    return [
        name,
        words,
        accepted.strip(),
        short(result.greedy),
        short(result.sampled),
        str(rows[0].labels or ""),
        "" if rows[0].dollars is None else f"{rows[0].dollars:.2f}",
        "" if result.arm == "baseline" else f"{steps:,.0f}",
        f"{sum(row.seconds for row in rows):.0f}",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
