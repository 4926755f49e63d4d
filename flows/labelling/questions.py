"""What is asked about a dataset, and of whom: one configuration, and the questions that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from annotate.cards import Card, load_card, own_card, packaged_card
from annotate.ledger import BatchConfig
from annotate.prompting import AnnotateConfig, Method
from annotate.runs import RunPlan, plan_run
from storage.datasets import read_manifest
from storage.errors import BadInput
from storage.schema import Frozen
from storage.store import Store

from ..simulation import FrameRenderer, Named

ProviderName = Literal["anthropic", "batch", "file", "recorded"]


class LabelConfig(Frozen):
    """What is asked, and who answers."""

    provider: ProviderName = Field(default="anthropic", description="who answers")
    annotate: AnnotateConfig = Field(default_factory=AnnotateConfig)
    env_id: Named | None = Field(
        default=None, description="environment of frames, where the user has to name the dataset's own"
    )
    card: str | None = Field(
        default=None, description="path of a card; when null the dataset's own, or else the environment's packaged one"
    )
    limit: int | None = Field(default=None, ge=1, description="annotate only so many episodes")
    select: Method = Field(default="first", description="which ones: first, stratified, novel or failing")
    select_seed: int = Field(default=0, ge=0, description="seed of that choice")
    answers: Path | None = Field(default=None, description="file: replies to import; recorded: file or folder")
    base_url: str | None = Field(default=None, description="server that speaks the Messages API; Anthropic's when null")
    concurrency: int = Field(default=4, ge=1, le=64, description="requests under way at once")
    count: bool = Field(default=False, description="have the server count the tokens of some requests for a plan")
    budget_usd: float | None = Field(default=None, ge=0, description="dollars a run may cost over all its commands")
    max_tokens: int | None = Field(
        default=None, ge=256, description="cap on a reply; what the server allows the model when null, or else 12,000"
    )
    batch: BatchConfig = Field(default_factory=BatchConfig, description="size and number of batches")
    poll_s: float = Field(default=30.0, gt=0, description="seconds between two looks at batches under way")


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
        frames=FrameRenderer(store, dataset_id, config.env_id) if config.annotate.frames else None,
    )


def _card_of(store: Store, dataset_id: str, config: LabelConfig) -> Card:
    manifest = read_manifest(store, dataset_id)
    if config.card is not None:
        return load_card(config.card)
    if (own := own_card(store, manifest)) is not None:
        return own
    if manifest.env_id is None:
        raise BadInput(f"The dataset {dataset_id} has no environment.", "Name its card with --card FILE.toml.")
    return packaged_card(manifest.env_id, manifest.env_kwargs)
