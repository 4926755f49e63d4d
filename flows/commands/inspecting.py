"""`annotate quality`, `annotate why` and `annotations replay`: what there is to know of labels and requests."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from storage.errors import BadInput

from .annotating import annotate_app, annotations_app
from .asking import asks
from .options import DEFAULT_STORE, DatasetOption, JsonOption, StoreOption, TrustOption
from .output import print_json, print_lines, print_table, progress_bars

if TYPE_CHECKING:
    from annotate.explain import Explanation

    from ..labelling import Checkup, LabelConfig

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

    from ..labelling import as_plain, check_labels

    opened = Store.open(store)
    dataset_id = resolve_dataset(opened, dataset)
    found = check_labels(opened, dataset_id, run)
    if as_json:
        print_json({"dataset_id": dataset_id, "runs": [as_plain(checkup) for checkup in found]})
        return
    for checkup in found:
        _tell_checkup(checkup)


@annotate_app.command("why")
@asks
def annotate_why(
    config: LabelConfig,
    request_id: Annotated[
        str | None, typer.Argument(metavar="[REQUEST_ID]", help="Request of the store, or the beginning of its id.")
    ] = None,
    miss: Annotated[
        bool, typer.Option("--miss", help="Explain what a run with these options would have to ask anew.")
    ] = False,
    show: Annotated[int, typer.Option(min=1, help="Explanations at most, with --miss.")] = 3,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say in which field a request differs from its nearest relative in the store: why it is not answered yet."""
    from annotate.explain import explain_misses, explain_request
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..labelling import plan

    if (request_id is None) != miss:
        raise BadInput("`annotate why` takes a request's id or --miss.", "--miss takes the options of `annotate`.")
    opened = Store.open(store)
    if request_id is not None:
        found, missing = [explain_request(opened, request_id)], None
    else:
        planned = plan(opened, resolve_dataset(opened, dataset), config).plan
        found, missing = explain_misses(opened, planned, show)
    if as_json:
        print_json({"unanswered": missing, "explained": [asdict(each) | {"words": each.words} for each in found]})
        return
    if missing is not None:
        print_lines(f"{missing} requests have no answer in {store}" + (f"; the first {len(found)}:" if found else ""))
    for each in found:
        _tell_explanation(each)


def _tell_explanation(explanation: Explanation) -> None:
    about = "" if explanation.episode_id is None else f", about episode {explanation.episode_id}"
    print_lines(f"{explanation.request_id} ({explanation.state}{about}): {explanation.words}")
    for difference in explanation.differences:
        print_lines(f"  {difference.field}, {difference.kind}:", *(f"    {line}" for line in difference.diff))


@annotations_app.command("replay")
def annotations_replay(
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Labels at most, drawn by a fixed shuffle.")] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Who goes on afterwards; default: the policy that made the dataset.")
    ] = None,
    mode: Annotated[
        Literal["greedy", "sampled"] | None, typer.Option("--mode", help="How it acts; default: as in the dataset.")
    ] = None,
    continuations: Annotated[int, typer.Option(min=1, help="Pairs for each label, where it acts by chance.")] = 4,
    horizon: Annotated[int | None, typer.Option(min=1, help="Steps of a continuation at most.")] = None,
    env: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take each suggestion once from its exact state and let the policy go on: its measured advantage.

    It is evidence, in the table label_replays and in `annotate quality`; no label is dropped because of it.
    """
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..labelling import ReplayConfig, replay_labels
    from ..simulation import Named

    config = ReplayConfig(
        limit=limit,
        policy=Named.of(policy),
        env_id=Named.of(env),
        mode=mode,
        continuations=continuations,
        horizon=horizon,
    )
    opened = Store.open(store)
    with progress_bars() as bars:
        found = replay_labels(opened, resolve_dataset(opened, dataset), config, run_ids=run, report=bars)
    if as_json:
        print_json(vars(found))
        return
    print_lines(
        f"{found.labels} suggestions, {found.confirmations} of them what was done; {found.replayed} replayed exactly, "
        f"{found.inexact} not, {found.fresh} of them now in {found.environment_steps} environment steps"
    )
    if found.advantage is not None:
        print_lines(
            f"mean advantage {found.advantage:+.4g}: {found.better:.0%} better than the logged action, "
            f"{found.worse:.0%} worse"
        )


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
