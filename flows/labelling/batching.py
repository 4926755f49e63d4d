"""`annotate submit | poll | ingest`, and a whole run by batches: plain functions over `annotate/`'s verbs.

Each may be killed at any instant and called again. It loads the SDK, so import it only where batches are meant.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from annotate.ledger import BatchConfig
from annotate.providers import BatchServer
from annotate.runs import Ingested, Polled, RunPlan, RunSummary, Submission, run_batches
from annotate.runs import give_up as give_up_batch
from annotate.runs import ingest as ingest_batches
from annotate.runs import poll as poll_batches
from annotate.runs import submit as submit_batches
from storage.store import Store

from ..runtime import Report, silent
from .annotation import LabelConfig, write_questions


def submit(store: Store, dataset_id: str, config: LabelConfig) -> Submission:
    """Send what is open of a dataset's questions in batches, and come back at once.

    Raises:
        BadInput: if there is no such dataset or card, or a budget and no list price to hold against it.
        Prerequisite: if there is no key.
        ProviderFailed: if the server refuses, or is out of reach.
        CatalogLocked: if another process works on the same run.
    """
    with batch_server(config.base_url) as server:
        plan = write_questions(store, dataset_id, config)
        return submit_batches(
            store, plan, server, config.batch, budget_usd=config.budget_usd, max_tokens=config.max_tokens
        )


def poll(
    store: Store,
    base_url: str | None = None,
    config: BatchConfig | None = None,
    *,
    give_up: Sequence[str] = (),
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
        give_up_batch(store, batch_id)
    with batch_server(base_url) as server:
        return poll_batches(store, server, config or BatchConfig())


def ingest(store: Store, base_url: str | None = None, config: BatchConfig | None = None) -> Ingested:
    """Fetch what has ended, of all runs, and enter replies and labels."""
    with batch_server(base_url) as server:
        return ingest_batches(store, server, config or BatchConfig())


def run_plan(store: Store, plan: RunPlan, config: LabelConfig, report: Report = silent) -> RunSummary:
    """Submit, wait and ingest until nothing is open. Raises what `submit` raises."""
    with batch_server(config.base_url) as server:
        return run_batches(
            store,
            plan,
            server,
            config.batch,
            report,
            budget_usd=config.budget_usd,
            max_tokens=config.max_tokens,
            poll_s=config.poll_s,
        )


@contextmanager
def batch_server(base_url: str | None) -> Generator[BatchServer]:
    """A connection to a server with Message Batches, for as long as it is used."""
    server = BatchServer(base_url)
    try:
        yield server
    finally:
        server.close()
