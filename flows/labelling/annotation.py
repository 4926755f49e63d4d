"""`annotate`: who answers a dataset's questions, and what that costs; the run itself is `annotate/runs/run.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from annotate.costs import Estimate, TokenCounter
from annotate.providers import FileProvider, Provider, RecordedProvider, export_requests
from annotate.runs import RunPlan, RunSummary, annotate_run, estimate_run, plan_again, unanswered_requests
from storage.errors import BadInput, Prerequisite
from storage.ledger import reopen_empty
from storage.store import Store

from ..runtime import Report, silent
from ..simulation import FrameRenderer
from .questions import LabelConfig, write_questions


@dataclass(frozen=True)
class Planned:
    """A run that could be started, and what it would cost."""

    plan: RunPlan
    estimate: Estimate


def plan(store: Store, dataset_id: str, config: LabelConfig) -> Planned:
    """Write the questions and price them; nothing is sent or stored.

    Raises:
        BadInput: if there is no such dataset or card, or they do not fit each other.
    """
    made = write_questions(store, dataset_id, config)
    estimate = estimate_run(
        store, made, batch=config.provider == "batch", count=_counter(config), max_tokens=config.max_tokens
    )
    return Planned(made, estimate)


def label(store: Store, dataset_id: str, config: LabelConfig, report: Report = silent) -> RunSummary:
    """Annotate a dataset; running it again asks only what has no answer yet.

    Raises:
        BadInput: if there is no such dataset or card, or a recorded answer is missing.
        Prerequisite: if the provider needs a key or a file that was not given.
        ProviderFailed: if the server refuses everything.
    """
    provider = _check_provider(config)
    return _answer(store, write_questions(store, dataset_id, config), provider, config, report)


def label_some(store: Store, dataset_id: str, config: LabelConfig, report: Report = silent) -> RunSummary:
    """As `label`, for what goes on with the labels.

    Raises:
        ProviderFailed: if the server's failures have left no label at all.
    """
    summary = label(store, dataset_id, config, report)
    if summary.failure is not None and not summary.totals.labels and not summary.totals.rules:
        raise summary.failure
    return summary


def retry(store: Store, run: str | None, config: LabelConfig, report: Report = silent) -> RunSummary:
    """Ask a run's requests anew that have failed, or whose reply left no label; earlier replies stay as evidence.

    Args:
        store: holds the run.
        run: its id, or the beginning of it; the newest one that asked a model when None.
        config: who answers; what is asked is in the run.
        report: shown the progress.

    Raises:
        BadInput: if there is no such run, or its prompt or its data have changed since.
        ProviderFailed: if the server refuses everything.
    """
    made = plan_again(store, run, lambda dataset_id: FrameRenderer(store, dataset_id))
    provider = _check_provider(config)
    if provider is None or provider.paid:
        with store.catalog.write() as con:
            reopen_empty(con, made.run.run_id)
    return _answer(store, made, provider, config, report)


def _check_provider(config: LabelConfig) -> Provider | None:
    """The provider, None for batches; what it needs is there."""
    if config.provider != "batch":
        return make_provider(config)
    from annotate.providers import read_key  # the SDK takes a second to load

    read_key(config.base_url)
    return None


def _answer(store: Store, made: RunPlan, provider: Provider | None, config: LabelConfig, report: Report) -> RunSummary:
    if provider is None:
        from .batching import run_plan  # the SDK takes a second to load

        return run_plan(store, made, config, report)
    return annotate_run(store, made, provider, report, budget_usd=config.budget_usd, max_tokens=config.max_tokens)


def export(store: Store, dataset_id: str, config: LabelConfig, path: Path) -> int:
    """Write the questions without an answer into a file, for any model; returns how many."""
    return export_requests(path, unanswered_requests(store, write_questions(store, dataset_id, config)))


def make_provider(config: LabelConfig) -> Provider:
    """The provider that a configuration names.

    Raises:
        Prerequisite: if it needs a key or a file that was not given.
    """
    if config.provider == "batch":
        raise BadInput("Batches are not answered one by one.", "Use --provider anthropic, or `trajnote annotate run`.")
    if config.provider == "anthropic":
        from annotate.providers import AnthropicProvider  # the SDK takes a second to load

        return AnthropicProvider(base_url=config.base_url, concurrency=config.concurrency)
    if config.answers is None:
        raise Prerequisite(
            f"The provider {config.provider} needs a file of answers.",
            "Name it with --answers; requests are written with --provider file --export FILE.",
        )
    return FileProvider(config.answers) if config.provider == "file" else RecordedProvider(config.answers)


def _counter(config: LabelConfig) -> TokenCounter | None:
    """What counts tokens, if that is asked for."""
    if not config.count:
        return None
    from annotate.providers import AnthropicProvider  # the SDK takes a second to load

    return AnthropicProvider(base_url=config.base_url).count_tokens
