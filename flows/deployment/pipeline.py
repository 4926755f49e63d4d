"""The Prefect flows: collect, label, improve, the pipeline of all three, and rounds of it; each calls a plain function.

Each task leaves artifacts that say what came of it; a refusal is a failed state in its own words.

What a run did is in the store; Prefect says when it ran. A run killed half-way is finished by the next one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from pydantic import Field, model_validator

from storage.errors import BadInput
from storage.schema import Frozen
from storage.store import Store

from ..datasets import CollectConfig, gather
from ..labelling import LabelConfig, label_some
from ..refinement import ImproveConfig, Outcome, RoundsConfig, Series, Work, improve, run_rounds, show_comparison
from ..runtime import listener
from .artifacts import fail_with_message, publish, summarise_dataset, summarise_labels, summarise_outcome

STORE = Path("trajnote-store")


class PipelineConfig(Frozen):
    """One pass to a judged refinement, from an environment and a policy or from a dataset that is there."""

    store: Path = Field(default=STORE, description="folder of the store")
    collect: CollectConfig | None = Field(default=None, description="what to collect")
    dataset_id: str | None = Field(default=None, description="the dataset, where nothing is to be collected")
    label: LabelConfig
    improve: ImproveConfig = Field(default_factory=ImproveConfig)

    @model_validator(mode="after")
    def _one_origin(self) -> PipelineConfig:
        if (self.collect is None) == (self.dataset_id is None):
            raise BadInput("A pipeline either collects a dataset or names one.")
        return self


@task(name="collect", persist_result=False)
def collect_task(store: Path, config: CollectConfig, card: str | None = None) -> str:
    """Collect a dataset under its card's names; returns its id."""
    opened = Store.create(store)
    dataset_id = gather(opened, config, card=card, report=listener()).dataset_id
    publish(f"collect-{dataset_id}", summarise_dataset(opened, dataset_id))
    return dataset_id


@task(name="label", persist_result=False)
def label_task(store: Path, dataset_id: str, config: LabelConfig) -> str:
    """Annotate a dataset; returns the id of the run."""
    summary = label_some(Store.open(store), dataset_id, config, listener())
    publish(f"label-{dataset_id}", summarise_labels(summary))
    return summary.run_id


@task(name="improve", persist_result=False)
def improve_task(store: Path, dataset_id: str, run_ids: list[str], config: ImproveConfig) -> Outcome:
    """Refine and judge."""
    outcome = improve(Store.open(store), dataset_id, config, run_ids=run_ids, report=listener())
    publish(f"improve-{dataset_id}", summarise_outcome(outcome))
    return outcome


@flow(name="collect", persist_result=False)
@fail_with_message
def collect_flow(config: CollectConfig, store: Path = STORE, card: str | None = None) -> str:
    """Collect a dataset under its card's names; returns its id."""
    return collect_task(store, config, card)


@flow(name="label", persist_result=False)
@fail_with_message
def label_flow(dataset_id: str, config: LabelConfig, store: Path = STORE) -> str:
    """Annotate a dataset; returns the id of the run."""
    return label_task(store, dataset_id, config)


@flow(name="improve", persist_result=False)
@fail_with_message
def improve_flow(dataset_id: str, run_ids: list[str], config: ImproveConfig, store: Path = STORE) -> dict[str, Any]:
    """Refine and judge; returns the outcome as plain values."""
    return show_comparison(improve_task(store, dataset_id, run_ids, config)).values


@flow(name="pipeline", persist_result=False)
@fail_with_message
def pipeline_flow(config: PipelineConfig) -> Outcome:
    """Collect, label, improve."""
    dataset_id = config.dataset_id or ""
    if config.collect is not None:
        dataset_id = collect_task(config.store, config.collect, config.label.card)
    run_id = label_task(config.store, dataset_id, config.label)
    return improve_task(config.store, dataset_id, [run_id], config.improve)


@flow(name="rounds", persist_result=False)
def rounds_flow(config: RoundsConfig) -> Series:
    """The pipeline again and again, each time with the policy that is in force, while that gains something."""
    return run_rounds(config, Work(collect_task, label_task, improve_task))
