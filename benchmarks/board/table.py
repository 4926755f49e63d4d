"""The board as a Markdown table, and its place between two comments of a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from refine.evaluation.gate import Interval
from storage.disk.atomic import write_whole
from storage.errors import BadInput

from .jobs import JUDGED
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
    "rules": "rules",
    "relabelled": "rules, relabelled",
    "rules_played": "rules played",
    "placebos": "placebos of the rules",
    "placebos_relabelled": "placebos of the rules, relabelled",
    "continued_rules": "PPO continued, steps of `rules`",
    "continued_relabelled": "PPO continued, steps of `rules, relabelled`",
}
RULES = ("rules", "rules_played", "relabelled", "continued_rules", "continued_relabelled")
"""The rows of the second table, after the baseline's."""
RIVALS = {"rules": "continued_rules", "relabelled": "continued_relabelled"}
"""Which row has the same environment steps."""
_HEAD = ("environment", "method", "accepted", "greedy [95%]", "sampled [95%]", "labels", "dollars", "steps", "core s")
_RULES_HEAD = (
    "environment",
    "method",
    "seeds",
    "accepted",
    "credited",
    "greedy [95%]",
    "sampled [95%]",
    "steps",
    "core s",
)
_WHOLE_FROM, _FINE_BELOW = 1000, 2


def draw_table(results: Sequence[Result]) -> str:
    """The Markdown table: one line per environment and method, and one with the verdicts on the labels."""
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    for env in dict.fromkeys(result.env for result in results):
        own = [result for result in results if result.env == env]
        lines += [_line(_cells(result, first=result is own[0])) for result in own]
    return "\n".join(lines)


def draw_labels(results: Sequence[Result]) -> str:
    """All that the page says of labels of single steps; empty without a row of them."""
    own = [result for result in results if result.arm not in (*RULES, *JUDGED)]
    if all(result.arm == "baseline" for result in own):
        return ""
    parts = [draw_table(own), verdicts(own), _describe_time(own)]
    return "\n\n".join(part for part in parts if part)


def draw_rules(results: Sequence[Result], environments: Sequence[str] = ()) -> str:
    """All that the page says of rules: the rows, and wins, ties and losses; empty without a row of them.

    Args:
        results: of all methods.
        environments: those that the second table names even where nothing was played.
    """
    known: dict[str, dict[str, Result]] = {}
    for result in results:
        known.setdefault(result.env, {})[result.arm] = result
    ruled = {env: own for env, own in known.items() if "rules" in own}
    if not ruled:
        return ""
    lines = [_line(_RULES_HEAD), _line(["---"] * len(_RULES_HEAD))]
    for own in ruled.values():
        shown = [own[arm] for arm in ("baseline", *RULES) if arm in own]
        lines += [_line(_rules_cells(result, own, first=result is shown[0])) for result in shown]
    parts = [
        "\n".join(lines),
        _draw_contest(ruled | {env: ruled.get(env, {}) for env in environments}),
        _describe_time([r for own in ruled.values() for r in own.values()]),
    ]
    return "\n\n".join(parts)


def _draw_contest(ruled: Mapping[str, Mapping[str, Result]]) -> str:
    """One line per environment: rules minus more training with the same steps, and how often they win."""
    head = ["environment"] + [cell for arm in RIVALS for cell in (f"{WORDS[arm]} minus PPO continued [95%]", "")]
    lines, counts = [_line(head), _line(["---"] * len(head))], {arm: dict.fromkeys(_OUTCOMES, 0) for arm in RIVALS}
    for env, own in ruled.items():
        cells = [env]
        for arm, rival in RIVALS.items():
            found = gain(own, arm, rival)
            outcome = "" if found is None else _name_outcome(found)
            cells += ["not played" if found is None else short(found), outcome]
            if outcome:
                counts[arm][outcome] += 1
        lines.append(_line(cells))
    told: list[str] = []
    for arm, found in counts.items():
        missing = len(ruled) - sum(found.values())
        counted = ", ".join(f"{n} {name}" for name, n in (found | {"not played": missing}).items())
        told.append(f"- {WORDS[arm]} against PPO continued: {counted}.")
    return "\n".join([*lines, "", *told])


_OUTCOMES: tuple[str, ...] = ("win", "tie", "loss")


def _name_outcome(difference: Interval) -> str:
    return "win" if difference.is_above_zero else "loss" if difference.high < 0 else "tie"


def _rules_cells(result: Result, own: Mapping[str, Result], *, first: bool) -> list[str]:
    name, words = (result.env if first else ""), WORDS[result.arm]
    if not result.seeds:
        return [name, words, f"failed: {result.failures[0]}", "", "", "", "", "", ""]
    placebos = next((own[arm] for arm, whose in JUDGED.items() if whose == result.arm and arm in own), None)
    credited = "" if placebos is None else f"{placebos.credited} of {placebos.seeds}"
    rounds = sorted({row.rounds for row in result.rows if row.rounds})
    return [
        name,
        " ".join([words, *(f"({n} rounds)" for n in rounds)]),
        str(result.seeds),
        "" if result.accepted is None else f"{result.accepted} of {result.seeds}",
        credited,
        short(result.greedy),
        short(result.sampled),
        "" if result.arm == "baseline" else f"{_mean_steps(result):,.0f}",
        f"{sum(row.seconds for row in result.rows):.0f}",
    ]


def _describe_time(results: Sequence[Result]) -> str:
    seconds = sum(row.seconds for result in results for row in result.rows)
    return f"All rows took {seconds / 60:.0f} minutes of one core."


def _mean_steps(result: Result) -> float:
    """Environment steps of a training seed: of datasets and gates, or of more training."""
    return sum(row.train_steps or (row.collected_steps + row.gate_steps) for row in result.rows) / len(result.rows)


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
    return [
        name,
        words,
        accepted.strip(),
        short(result.greedy),
        short(result.sampled),
        str(rows[0].labels or ""),
        "" if rows[0].dollars is None else f"{rows[0].dollars:.2f}",
        "" if result.arm == "baseline" else f"{_mean_steps(result):,.0f}",
        f"{sum(row.seconds for row in rows):.0f}",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
