"""`annotate quality`, `annotate why` and `annotations replay`: what there is to know of labels and requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .annotating import annotate_app
from .options import DEFAULT_STORE, DatasetOption, JsonOption, StoreOption
from .output import print_json, print_lines, print_table

if TYPE_CHECKING:
    from ..health import Checkup

RunOption = Annotated[
    list[str] | None,
    typer.Option("--run", help="Annotation run, or the beginning of its id; repeatable; default: all."),
]


def register(app: typer.Typer) -> None:
    """Add this group's commands to `annotate` and `annotations`, which are part of the app already."""


@annotate_app.command("quality")
def annotate_quality(
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge labels before training: coverage, consistency, calibration, agreement; a verdict with its reasons."""
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..health import as_plain, check_labels

    opened = Store.open(store)
    dataset_id = resolve_dataset(opened, dataset)
    found = check_labels(opened, dataset_id, run)
    if as_json:
        print_json({"dataset_id": dataset_id, "runs": [as_plain(checkup) for checkup in found]})
        return
    for checkup in found:
        _tell_checkup(checkup)


def _tell_checkup(checkup: Checkup) -> None:
    quality, judgement = checkup.quality, checkup.judgement
    print_lines(f"{quality.run_id} ({quality.model}): {judgement.verdict}")
    print_lines(*(f"  {reason.standing:<9} {reason.about}: {reason.text}" for reason in judgement.reasons))
    if quality.suggestions:
        print_lines("  suggested: " + ", ".join(f"{name} {count}" for name, count in quality.suggestions.items()))
    if quality.coverage is not None:
        shares = " ".join(f"{share:.0%}" for share in quality.coverage.by_tenth)
        print_lines(f"  labels by tenth of the episode: {shares}")
    if quality.calibration is not None and quality.calibration.sources:
        print_table(
            "agreement by confidence",
            [
                {
                    "confidence": f"{found.low:g} to {found.high:g}",
                    "labels": found.labels,
                    "mean": found.confidence,
                    **{source: found.agreement.get(source) for source in quality.calibration.sources},
                }
                for found in quality.calibration.bins
            ],
        )
