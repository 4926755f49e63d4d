"""`annotate`: what is asked about a dataset, who answers, and what it costs; the runs are in `annotate/runs`.

Providers and batches are named through their doors, since the SDK, which some of them load, takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from annotate import providers, runs
from annotate.cards import Card, load_card, own_card, packaged_card
from annotate.costs import Estimate
from annotate.ledger import BatchConfig
from annotate.prompting import AnnotateConfig, Method, render_playbook
from annotate.providers import FileProvider, Provider, RecordedProvider, export_requests
from annotate.runs import (
    RunPlan,
    RunSummary,
    annotate_run,
    estimate_run,
    plan_again,
    plan_run,
    unanswered_requests,
)
from storage.annotations import find_study
from storage.datasets import read_manifest
from storage.errors import BadInput, Prerequisite
from storage.ledger import reopen_empty
from storage.schema import Frozen
from storage.store import Store

from ..runtime import Report, silent
from ..simulation import FrameRenderer, Named

if TYPE_CHECKING:
    from annotate.runs import Ingested, Polled, Submission


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
    count = providers.AnthropicProvider(base_url=config.base_url).count_tokens if config.count else None
    is_batch = config.provider == "batch"
    estimate = estimate_run(store, made, batch=is_batch, count=count, max_tokens=config.max_tokens)
    return Planned(made, estimate)


def label(store: Store, dataset_id: str, config: LabelConfig, report: Report = silent) -> RunSummary:
    """Annotate a dataset; running it again asks only what has no answer yet.

    With a study, its summary is returned as long as that is not answered; answers from a file come in two files.

    Raises:
        BadInput: if there is no such dataset or card, or a recorded answer is missing.
        Prerequisite: if the provider needs a key or a file that was not given.
        ProviderFailed: if the server refuses everything.
    """
    provider = _check_provider(config)
    made = write_questions(store, dataset_id, config)
    if not made.is_study:
        return _answer(store, made, provider, config, report)
    studied = replace(_answer(store, made, provider, config, report), is_study=True)
    if not studied.done or config.provider == "file":  # whose answers to the episodes cannot be there yet
        return studied
    left = None if config.budget_usd is None else max(0.0, config.budget_usd - (studied.totals.cost_usd or 0.0))
    rest = config.model_copy(update={"budget_usd": left})
    return _answer(store, write_questions(store, dataset_id, rest), provider, rest, report)


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
    providers.read_key(config.base_url)
    return None


def _answer(store: Store, made: RunPlan, provider: Provider | None, config: LabelConfig, report: Report) -> RunSummary:
    budget_usd, max_tokens = config.budget_usd, config.max_tokens
    if provider is not None:
        return annotate_run(store, made, provider, report, budget_usd=budget_usd, max_tokens=max_tokens)
    with closing(providers.BatchServer(config.base_url)) as server:
        return runs.run_batches(
            store,
            made,
            server,
            config.batch,
            report,
            budget_usd=budget_usd,
            max_tokens=max_tokens,
            poll_s=config.poll_s,
        )


def submit(store: Store, dataset_id: str, config: LabelConfig) -> Submission:
    """Send what is open of a dataset's questions in batches, and come back at once.

    As `poll` and `ingest`, it may be killed at any instant and called again.

    Raises:
        BadInput: if there is no such dataset or card, or a budget and no list price to hold against it.
        Prerequisite: if there is no key.
        ProviderFailed: if the server refuses, or is out of reach.
        CatalogLocked: if another process works on the same run.
    """
    with closing(providers.BatchServer(config.base_url)) as server:
        made = write_questions(store, dataset_id, config)
        return runs.submit(
            store, made, server, config.batch, budget_usd=config.budget_usd, max_tokens=config.max_tokens
        )


def poll(
    store: Store, base_url: str | None = None, config: BatchConfig | None = None, *, give_up: Sequence[str] = ()
) -> tuple[list[Polled], list[str]]:
    """How far the batches under way are, of all runs; and what is unknown, in words.

    Args:
        store: holds the ledger.
        base_url: the server; Anthropic's own when None.
        config: how long a lost batch is waited for.
        give_up: batches to give up before, so that their requests may be asked again.

    Raises:
        BadInput: if one to give up is not under way.
        ProviderFailed: if the server does not answer.
    """
    for batch_id in give_up:
        runs.give_up(store, batch_id)
    with closing(providers.BatchServer(base_url)) as server:
        return runs.poll(store, server, config or BatchConfig())


def ingest(store: Store, base_url: str | None = None, config: BatchConfig | None = None) -> Ingested:
    """Fetch what has ended, of all runs, and enter replies and labels."""
    with closing(providers.BatchServer(base_url)) as server:
        return runs.ingest(store, server, config or BatchConfig())


def export(store: Store, dataset_id: str, config: LabelConfig, path: Path) -> int:
    """Write the questions without an answer into a file, for any model; returns how many."""
    return export_requests(path, unanswered_requests(store, write_questions(store, dataset_id, config)))


def make_provider(config: LabelConfig) -> Provider:
    """The provider that a configuration names.

    Raises:
        Prerequisite: if it needs a key or a file that was not given.
    """
    if config.provider == "batch":
        raise BadInput(
            "--provider batch cannot answer requests one by one.",
            "Use --provider anthropic, or `trajnote annotate run`.",
        )
    if config.provider == "anthropic":
        return providers.AnthropicProvider(base_url=config.base_url, concurrency=config.concurrency)
    if config.answers is None:
        raise Prerequisite(
            f"The provider {config.provider} needs a file of answers.",
            "Name it with --answers; requests are written with --provider file --export FILE.",
        )
    return FileProvider(config.answers) if config.provider == "file" else RecordedProvider(config.answers)


ProviderName = Literal["anthropic", "batch", "file", "recorded"]


class LabelConfig(Frozen):
    """What is asked, and who answers."""

    provider: ProviderName = Field(default="anthropic", description="who answers")
    annotate: AnnotateConfig = Field(default_factory=AnnotateConfig)
    env_id: Named | None = Field(default=None, description="environment of frames, if the user has to name it")
    card: str | None = Field(
        default=None, description="path of a card; null: the dataset's own, else the packaged one of the environment"
    )
    study: bool = Field(
        default=False, description="ask for a playbook of the dataset first, which every request then contains"
    )
    limit: int | None = Field(default=None, ge=1, description="annotate at most so many episodes")
    select: Method = Field(default="first", description="which ones: first, stratified, novel or failing")
    select_seed: int = Field(default=0, ge=0, description="seed of that choice")
    answers: Path | None = Field(default=None, description="file: replies to import; recorded: file or folder")
    base_url: str | None = Field(default=None, description="server that speaks the Messages API; Anthropic's when null")
    concurrency: int = Field(default=4, ge=1, le=64, description="requests in flight at once")
    count: bool = Field(default=False, description="let the server count the tokens of some requests for a plan")
    budget_usd: float | None = Field(default=None, ge=0, description="cap in dollars for a run, over all its commands")
    max_tokens: int | None = Field(
        default=None,
        ge=256,
        description="tokens of a reply at most; null: what the server allows the model, else 12,000",
    )
    batch: BatchConfig = Field(default_factory=BatchConfig, description="size and number of batches")
    poll_s: float = Field(default=30.0, gt=0, description="seconds between two looks at batches in flight")


def write_questions(store: Store, dataset_id: str, config: LabelConfig) -> RunPlan:
    """The questions that a configuration asks about a dataset; where a study is wanted and not there yet, only that."""
    card, asked = card_of(store, dataset_id, config.card), config.annotate
    if config.study:
        first = plan_run(store, dataset_id, card, asked.for_study())
        study = find_study(store, first.run.run_id)
        if study is None:
            return first
        asked = asked.model_copy(update={"playbook": render_playbook(study.assessment, study.terms)})
    return plan_run(
        store,
        dataset_id,
        card,
        asked,
        limit=config.limit,
        select=config.select,
        select_seed=config.select_seed,
        frames=FrameRenderer(store, dataset_id, config.env_id) if config.annotate.frames else None,
    )


def card_of(store: Store, dataset_id: str, card: str | None = None) -> Card:
    """The card that a dataset is annotated with: the one named, the dataset's own, or its environment's.

    Raises:
        BadInput: if there is none.
    """
    manifest = read_manifest(store, dataset_id)
    if card is not None:
        return load_card(card)
    if (own := own_card(store, manifest)) is not None:
        return own.card
    if manifest.env_id is None:
        raise BadInput(f"The dataset {dataset_id} has no environment.", "Name its card with --card FILE.toml.")
    return packaged_card(manifest.env_id, manifest.env_kwargs)
