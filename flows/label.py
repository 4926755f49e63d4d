"""`annotate`: which dataset, which card, which provider; the run itself is `annotate/run.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from annotate.batch_config import BatchConfig
from annotate.cards import Card, load_card
from annotate.estimates import Counter, Estimate
from annotate.planning import RunPlan, estimate_run, plan_run, unanswered_requests
from annotate.providers.file import FileProvider, export_requests
from annotate.providers.protocol import Provider
from annotate.providers.recorded import RecordedProvider
from annotate.requests import AnnotateConfig
from annotate.run import RunSummary, annotate_run
from annotate.selection import Method
from storage.errors import BadInput, Prerequisite
from storage.schema import Frozen
from storage.steps import read_manifest
from storage.store import Store

from .frames import FrameRenderer
from .progress import Report, silent

ProviderName = Literal["anthropic", "batch", "file", "recorded"]


class LabelConfig(Frozen):
    """What is asked, and who answers."""

    provider: ProviderName = Field(default="anthropic", description="who answers")
    annotate: AnnotateConfig = Field(default_factory=AnnotateConfig)
    card: str | None = Field(default=None, description="path of a card; the environment's packaged one when null")
    limit: int | None = Field(default=None, ge=1, description="annotate only so many episodes")
    select: Method = Field(default="first", description="which ones: first, stratified or novel")
    select_seed: int = Field(default=0, ge=0, description="seed of that choice")
    answers: Path | None = Field(default=None, description="file: replies to take in; recorded: file or folder")
    base_url: str | None = Field(default=None, description="server that speaks the Messages API; Anthropic's when null")
    concurrency: int = Field(default=4, ge=1, le=64, description="requests under way at once")
    count: bool = Field(default=False, description="have the server count the tokens of some requests for a plan")
    budget_usd: float | None = Field(default=None, ge=0, description="dollars a run may cost over all its commands")
    batch: BatchConfig = Field(default_factory=BatchConfig, description="size and number of batches")
    poll_s: float = Field(default=30.0, gt=0, description="seconds between two looks at batches under way")


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
    return Planned(made, estimate_run(store, made, batch=config.provider == "batch", count=_counter(config)))


def write_questions(store: Store, dataset_id: str, config: LabelConfig) -> RunPlan:
    """The questions that a configuration asks about a dataset."""
    return plan_run(
        store,
        dataset_id,
        _card_of(store, dataset_id, config),
        config.annotate,
        limit=config.limit,
        select=config.select,
        select_seed=config.select_seed,
        frames=FrameRenderer(store, dataset_id) if config.annotate.frames else None,
    )


def label(store: Store, dataset_id: str, config: LabelConfig, report: Report = silent) -> RunSummary:
    """Annotate a dataset; running it again asks only what has no answer yet.

    Raises:
        BadInput: if there is no such dataset or card, or a recorded answer is missing.
        Prerequisite: if the provider needs a key or a file that was not given.
        ProviderFailed: if the server refuses everything.
    """
    if config.provider == "batch":
        from .batching import run  # the SDK takes a second to load

        return run(store, dataset_id, config, report)
    provider = make_provider(config)
    made = write_questions(store, dataset_id, config)
    return annotate_run(store, made, provider, report, budget_usd=config.budget_usd)


def export(store: Store, dataset_id: str, config: LabelConfig, path: Path) -> int:
    """Write the questions without an answer into a file, for any model that anybody runs; returns how many."""
    return export_requests(path, unanswered_requests(store, write_questions(store, dataset_id, config)))


def make_provider(config: LabelConfig) -> Provider:
    """The provider that a configuration names.

    Raises:
        Prerequisite: if it needs a key or a file that was not given.
    """
    if config.provider == "batch":
        raise BadInput("Batches are not answered one by one.", "Use --provider anthropic, or `trajnote annotate run`.")
    if config.provider == "anthropic":
        from annotate.providers.anthropic import AnthropicProvider  # the SDK takes a second to load

        return AnthropicProvider(base_url=config.base_url, concurrency=config.concurrency)
    if config.answers is None:
        raise Prerequisite(
            f"The provider {config.provider} needs a file of answers.",
            "Name it with --answers; requests are written with --provider file --export FILE.",
        )
    return FileProvider(config.answers) if config.provider == "file" else RecordedProvider(config.answers)


def _counter(config: LabelConfig) -> Counter | None:
    """What counts tokens, if that is asked for."""
    if not config.count:
        return None
    from annotate.providers.anthropic import AnthropicProvider  # the SDK takes a second to load

    return AnthropicProvider(base_url=config.base_url).count_tokens


def _card_of(store: Store, dataset_id: str, config: LabelConfig) -> Card:
    manifest = read_manifest(store, dataset_id)
    if config.card is not None:
        return load_card(config.card)
    if manifest.env_id is None:
        raise BadInput(f"The dataset {dataset_id} has no environment.", "Name its card with --card FILE.toml.")
    return load_card(manifest.env_id, manifest.env_kwargs)
