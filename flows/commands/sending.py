"""`annotate submit | poll | ingest`: Message Batches one verb at a time, to send tonight and collect tomorrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from storage.errors import ProviderFailed

from .annotating import annotate_app
from .asking import asks
from .options import DEFAULT_STORE, DatasetOption, JsonOption, StoreOption
from .output import print_json, print_lines

if TYPE_CHECKING:
    from annotate.runs import Polled

    from ..labelling import LabelConfig

BaseUrlOption = Annotated[str | None, typer.Option(help="Server that has Message Batches; default: Anthropic's.")]


def register(app: typer.Typer) -> None:
    """The commands are in the group `annotate`, which is in the app already."""


@annotate_app.command("submit")
@asks
def annotate_submit(
    config: LabelConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send what is open in Message Batches and come back at once; `annotate ingest` collects the answers."""
    from dataclasses import asdict

    from annotate.ledger import GO_ON
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..labelling import submit

    opened = Store.open(store)
    sent = submit(opened, resolve_dataset(opened, dataset), config)
    if as_json:
        print_json(asdict(sent))
        return
    print_lines(
        f"{sent.run_id}: {sent.requests} requests in {len(sent.batch_ids)} new batches; "
        f"{sent.under_way} under way in all, {sent.open} still to be sent, {sent.failed} failed",
        *((f"stopped: {sent.stopped}",) if sent.stopped else ()),
        *((GO_ON,) if sent.is_halted else ()),
        *((f"{sent.unknown} batches are unknown: `trajnote annotate poll` settles them",) if sent.unknown else ()),
        *sent.warnings,
    )


@annotate_app.command("poll")
def annotate_poll(
    store: StoreOption = DEFAULT_STORE,
    base_url: BaseUrlOption = None,
    give_up: Annotated[
        list[str] | None,
        typer.Option(help="Batch that cannot be settled, for want of its key: it is counted and asked again."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how far the batches of all runs are; batches whose outcome is unknown are settled first."""
    from storage.store import Store

    from ..labelling import poll

    found, unknown = poll(Store.open(store), base_url, give_up=give_up or ())
    if as_json:
        told = [
            {
                "batch_id": p.batch_id,
                "run_id": p.run_id,
                "ended": p.ended,
                "counts": p.remote.counts if p.remote else {},
            }
            for p in found
        ]
        print_json({"batches": told, "unknown": unknown, "warnings": [p.warning for p in found if p.warning]})
    else:
        _tell_polled(found, unknown)
    _fail([polled.failure for polled in found if polled.failure])


def _tell_polled(found: Sequence[Polled], unknown: Sequence[str]) -> None:
    for polled in found:
        counts = ", ".join(
            f"{count} {state}" for state, count in (polled.remote.counts if polled.remote else {}).items()
        )
        print_lines(f"{polled.batch_id} {'has ended' if polled.ended else 'is under way'}: {counts}")
        if polled.warning:
            print_lines(polled.warning)
    print_lines(*unknown, *(("nothing is under way",) if not found and not unknown else ()))


@annotate_app.command("ingest")
def annotate_ingest(
    store: StoreOption = DEFAULT_STORE, base_url: BaseUrlOption = None, as_json: JsonOption = False
) -> None:
    """Fetch the answers of batches that have ended, of all runs, and enter the labels."""
    from dataclasses import asdict

    from storage.store import Store

    from ..labelling import ingest

    done = ingest(Store.open(store), base_url)
    if as_json:
        told = asdict(done)
        print_json({name: value for name, value in told.items() if name not in ("trouble", "unentered")})
        _fail(done.failed)
        return
    print_lines(
        f"{done.batches} batches finished: {done.answered} answers, {done.returned} came back without one; "
        f"{done.read} answers read into labels; {done.under_way} batches under way",
        *(f"{count} times without an answer: {reason}" for reason, count in done.reasons.most_common(5)),
        *done.warnings,
    )
    _fail(done.failed)


def _fail(failures: Sequence[str]) -> None:
    """What went wrong with single batches, when the others have been handled."""
    if failures:
        raise ProviderFailed(
            f"{len(failures)} could not be handled: {'; '.join(failures[:3])}.", "All others were; run it again later."
        )
