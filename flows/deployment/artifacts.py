"""What flows leave in Prefect's pages: a markdown and a table artifact each, and failures with their reason in words.

The store has everything already: an artifact that cannot be left is no reason to fail. No secret gets in, because
nothing is told here that the command line does not print.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.states import Failed

from annotate.runs import RunSummary
from storage.datasets import catalogued_episodes
from storage.errors import TrajnoteError
from storage.store import Store

from ..refinement import Outcome, show_comparison
from .night import Night, tell_night

P = ParamSpec("P")
R = TypeVar("R")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#])")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What is said of one piece of work."""

    title: str
    lines: Sequence[str]
    rows: Sequence[Mapping[str, object]]
    report: Path | None = None


def publish(key: str, told: Summary) -> None:
    """Leave what is told as two artifacts, `<key>` and `<key>-table`; every run adds a version of them."""
    name = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
    try:
        create_markdown_artifact(as_markdown(told), key=name, description=told.title)
        if told.rows:
            rows = [{name: _cell(value) for name, value in row.items()} for row in told.rows]
            create_table_artifact(rows, key=f"{name}-table", description=told.title)
    except (PrefectException, OSError, RuntimeError) as error:
        _LOG.warning("no artifact was left: %s", error)


def log_warnings(warnings: Sequence[str]) -> None:
    """Enter warnings into the log of the flow run that goes on now."""
    for warning in warnings:
        get_run_logger().warning("%s", warning)


def as_markdown(told: Summary) -> str:
    """A heading and a list; what comes from files and models is text, never markup."""
    lines = [f"- {_escape(line)}" for line in told.lines]
    if told.report is not None:
        lines.append(f"- report: [{_escape(told.report.name)}]({told.report.as_uri()})")
    return "\n".join([f"## {_escape(told.title)}", "", *lines])


def fail_with_message(work: Callable[P, R]) -> Callable[P, R]:
    """Have a flow that is refused end in a failed state whose message is the error's own sentence.

    Prefect would say the same with the exception's class before it and log a traceback. Whoever calls the flow gets
    the same exception as ever. (A task that returns a state hands it to its flow, so tasks just raise.)
    """

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return work(*args, **kwargs)
        except TrajnoteError as error:
            return Failed(message=str(error), data=error)  # pyright: ignore[reportReturnType] -- Prefect raises it

    # Prefect would look up the names of the types in this module
    run.__signature__ = inspect.signature(work, eval_str=True)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = inspect.get_annotations(work, eval_str=True)
    return run


def tell_dataset(store: Store, dataset_id: str) -> Summary:
    """A dataset: episodes, steps and the mean return with its interval."""
    from refine.evaluation import interval  # scipy takes a while to load

    episodes = catalogued_episodes(store, dataset_id)
    returns = interval([episode.return_ for episode in episodes]) if len(episodes) > 1 else episodes[0].return_
    steps = sum(episode.length for episode in episodes)
    counted: dict[str, object] = {"dataset": dataset_id, "episodes": len(episodes), "steps": steps}
    said = f"{len(episodes)} episodes, {steps} steps, return {returns}"
    return Summary(f"dataset {dataset_id}", [said], [counted | {"return [95%]": returns}])


def tell_labels(summary: RunSummary) -> Summary:
    """An annotation run: requests, labels and dollars."""
    dollars = summary.totals.cost_usd
    told: dict[str, object] = {
        "run": summary.run_id,
        "dataset": summary.dataset_id,
        "model": summary.model,
        "answered": summary.answered,
        "open": summary.pending,
        "labels": summary.totals.labels,
        "rejections": summary.totals.rejections,
        "dollars": dollars,
    }
    lines = [
        f"{summary.totals.labels} labels and {summary.totals.rejections} rejections from {summary.episodes} episodes",
        f"{summary.answered} requests answered now, {summary.reused} before, {summary.pending} open",
        f"${dollars or 0:.4f}" + (f", stopped: {summary.stopped}" if summary.stopped else ""),
    ]
    return Summary(f"labels of {summary.dataset_id}", lines, [told])


def tell_outcome(outcome: Outcome) -> Summary:
    """A refinement: the arms with their returns, the gate and the verdicts."""
    shown = show_comparison(outcome)
    start = f"{outcome.n_labels} labels; baseline: {outcome.baseline.origin}"
    return Summary(f"refinement of {outcome.dataset_id}", [start, *shown.sentences], shown.rows)


def tell_values(title: str, values: Mapping[str, Any]) -> Summary:
    """Plain values, one line each."""
    return Summary(title, [f"{name}: {value}" for name, value in values.items()], [values] if values else [])


def tell_artifact(night: Night) -> Summary:
    """A night: what it did; the table has the arms of a refinement, or the counts where there was none."""
    counts: dict[str, object] = {
        "datasets": len(night.took_in),
        "asked": night.asked,
        "answered": night.answered,
        "waiting": night.waiting,
        "new labels": night.new_labels,
        "labels": night.labels,
        "dollars": round(night.dollars, 6),
        "in force": night.policy_id,
    }
    lines = [line for line in tell_night(night) if not line.startswith("report: ")]
    return Summary(f"night of {night.deployment}", lines, [*night.rows] or [counts], night.report)


def _escape(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _cell(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
