"""What flows leave in Prefect's pages, and the notices that they send through a block.

Each piece of work leaves a markdown and a table artifact, and a failure has its reason in words. The store has
everything already: an artifact that cannot be left is no reason to fail. No secret gets in, because nothing is said
here that the command line does not print.

Notices of failures and promotions go to one of Prefect's own blocks, loaded by name; its address and secrets stay in
the block. A notice that cannot be delivered changes nothing but a note.
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
from prefect.blocks.core import Block
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.states import Failed
from prefect.utilities.asyncutils import run_coro_as_sync

from annotate.runs import RunSummary
from storage.datasets import catalogued_episodes
from storage.errors import TrajnoteError
from storage.store import Store

from ..refinement import Outcome, show_comparison
from .night import Night, describe_night

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


def publish(key: str, summary: Summary) -> None:
    """Leave a summary as two artifacts, `<key>` and `<key>-table`; every run adds a version of them."""
    name = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
    try:
        create_markdown_artifact(as_markdown(summary), key=name, description=summary.title)
        if summary.rows:
            rows = [{name: _cell(value) for name, value in row.items()} for row in summary.rows]
            create_table_artifact(rows, key=f"{name}-table", description=summary.title)
    except (PrefectException, OSError, RuntimeError) as error:
        _LOG.warning("no artifact was left: %s", error)


def log_warnings(warnings: Sequence[str]) -> None:
    """Enter warnings into the log of the flow run that goes on now."""
    for warning in warnings:
        get_run_logger().warning("%s", warning)


def as_markdown(summary: Summary) -> str:
    """A heading and a list; what comes from files and models is text, never markup."""
    lines = [f"- {_escape(line)}" for line in summary.lines]
    if summary.report is not None:
        lines.append(f"- report: [{_escape(summary.report.name)}]({summary.report.as_uri()})")
    return "\n".join([f"## {_escape(summary.title)}", "", *lines])


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


def summarise_dataset(store: Store, dataset_id: str) -> Summary:
    """A dataset: episodes, steps and the mean return with its interval."""
    from refine.evaluation import interval  # scipy takes a while to load

    episodes = catalogued_episodes(store, dataset_id)
    returns = interval([episode.return_ for episode in episodes]) if len(episodes) > 1 else episodes[0].return_
    steps = sum(episode.length for episode in episodes)
    counted: dict[str, object] = {"dataset": dataset_id, "episodes": len(episodes), "steps": steps}
    said = f"{len(episodes)} episodes, {steps} steps, return {returns}"
    return Summary(f"dataset {dataset_id}", [said], [counted | {"return [95%]": returns}])


def summarise_labels(summary: RunSummary) -> Summary:
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


def summarise_outcome(outcome: Outcome) -> Summary:
    """A refinement: the arms with their returns, the gate and the verdicts."""
    shown = show_comparison(outcome)
    start = f"{outcome.n_labels} labels; baseline: {outcome.baseline.origin}"
    return Summary(f"refinement of {outcome.dataset_id}", [start, *shown.sentences], shown.rows)


def summarise_night(night: Night) -> Summary:
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
    lines = [line for line in describe_night(night) if not line.startswith("report: ")]
    return Summary(f"night of {night.deployment}", lines, [*night.rows] or [counts], night.report)


def _escape(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _cell(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def notify(block: str | None, subject: str, body: str) -> str | None:
    """Send a notice through a block with `notify` (Slack, Teams, e-mail, ...) or `call` (Webhook).

    Args:
        block: `block-type/name`; nothing is sent when None.
        subject: one line.
        body: the text.

    Returns:
        Why it could not be delivered, without the block's address; None if it was, or nothing was to be sent.
    """
    if block is None:
        return None
    try:
        loaded: Any = _wait(Block.load(block))
        if hasattr(loaded, "notify"):
            _wait(loaded.notify(body, subject))
            return None
        if not hasattr(loaded, "call"):
            return f"the notice was not delivered: the block {block} can neither notify nor call"
        answer = _wait(loaded.call({"subject": subject, "text": f"{subject}\n{body}"}))
        status = getattr(answer, "status_code", 200)
        return None if status < 400 else f"the notice was not delivered: {block} was answered with {status}"
    except Exception as error:  # whatever a block of any kind raises; its text may hold the address
        return f"the notice was not delivered: the block {block} failed with {type(error).__name__}"


def notify_promotion(block: str | None, night: Night) -> str | None:
    """Send a notice if a night has promoted a policy; returns as `notify`."""
    if not night.promoted:
        return None
    return notify(block, f"trajnote {night.deployment}: {night.policy_id} is in force", "\n".join(night.verdicts))


def notify_warnings(block: str | None, night: Night) -> str | None:
    """Send a notice of what a night warns of, if there is anything; returns as `notify`."""
    if not night.warnings:
        return None
    return notify(block, f"trajnote {night.deployment} warns", "\n".join(night.warnings))


def notify_failure(block: str | None, deployment: str, error: Exception) -> str | None:
    """Send a notice of a failure; returns as `notify`."""
    return notify(block, f"trajnote {deployment} failed", f"{error}" or type(error).__name__)


def _wait(value: Any) -> Any:
    return run_coro_as_sync(value) if inspect.iscoroutine(value) else value
