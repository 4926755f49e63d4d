"""`annotate` and `annotations`: asking a language model, and taking in labels from anywhere else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storage.errors import BadInput

from .asking import asks
from .options import DEFAULT_STORE, DatasetOption, JsonOption, ProviderOption, StoreOption
from .output import print_json, print_lines, progress_bars

if TYPE_CHECKING:
    from annotate.costs import Estimate
    from annotate.runs import RunSummary

    from ..labelling import LabelConfig, Planned

ExportOption = Annotated[
    Path | None, typer.Option("--export", help="file: write the unanswered requests here, and stop.")
]
annotate_app = typer.Typer(name="annotate", invoke_without_command=True, subcommand_metavar="[COMMAND]")
annotations_app = typer.Typer(name="annotations", help="Labels that exist already.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(annotate_app)
    app.add_typer(annotations_app)


@annotate_app.callback()
@asks
def annotate(
    context: typer.Context,
    config: LabelConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    export: ExportOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked and cost; send nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a language model for critical steps, better actions and grades; asked again, only what is open is asked.

    Without a command this is `annotate run`.
    """
    if context.invoked_subcommand is not None:
        _refuse_stray_options(context)
    elif dry_run:
        _plan(config, store, dataset, as_json=as_json)
    else:
        _run(config, store, dataset, export, as_json=as_json)


@annotate_app.command("plan")
@asks
def annotate_plan(
    config: LabelConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what would be asked and what it would cost; nothing is sent."""
    _plan(config, store, dataset, as_json=as_json)


@annotate_app.command("run")
@asks
def annotate_run(
    config: LabelConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    export: ExportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask what is open, wait for the answers, and enter the labels."""
    _run(config, store, dataset, export, as_json=as_json)


@annotate_app.command("retry")
def annotate_retry(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Annotation run, or the beginning of its id; default: newest.")
    ] = None,
    provider: ProviderOption = "anthropic",
    answers: Annotated[Path | None, typer.Option(help="file: corrected answers; recorded: file or folder.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Server that speaks the Messages API.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests under way at once.")] = 4,
    budget: Annotated[
        float | None, typer.Option(min=0.0, help="Dollars this run may cost over all its commands, at most.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=256, help="Cap on a reply.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Ask anew what has failed, or whose reply left no label; earlier replies are kept as evidence."""
    from storage.store import Store

    from ..labelling import LabelConfig, retry

    config = LabelConfig(
        provider=provider,
        answers=answers,
        base_url=base_url,
        concurrency=concurrency,
        budget_usd=budget,
        max_tokens=max_tokens,
    )
    with progress_bars() as bars:
        summary = retry(Store.open(store), run, config, bars)
    tell_run(summary, as_json)


@annotations_app.command("import")
def annotations_import(
    path: Annotated[Path, typer.Argument(help="JSON lines of dataset_id, episode_id, step, suggested_action, ...")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Take in labels of any labeller; every line is checked first, and one bad line keeps all of them out.

    Fields: dataset_id, episode_id, step, suggested_action (number, list or name), implicit_reward in [-1, 1],
    confidence in [0, 1], rationale; optional: critical, model.
    """
    from annotate.importing import import_annotations
    from storage.store import Store

    summary = import_annotations(Store.open(store), path)
    if as_json:
        print_json({"run_ids": list(summary.run_ids), "lines": summary.lines, "labels": summary.labels})
    else:
        already = "" if summary.labels or not summary.lines else "; they were imported before"
        print_lines(f"{summary.labels} new labels from {summary.lines} lines{already}: {', '.join(summary.run_ids)}")


def _refuse_stray_options(context: typer.Context) -> None:
    stray = [
        name for name in context.params if str(context.get_parameter_source(name)) == "ParameterSource.COMMANDLINE"
    ]
    if stray:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in stray)
        raise BadInput(
            f"{options} stands before the command {context.invoked_subcommand}.",
            f"Write options after it: `trajnote annotate {context.invoked_subcommand} {options} ...`.",
        )


def _plan(config: LabelConfig, store: Path, dataset: str | None, *, as_json: bool) -> None:
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..labelling import plan

    opened = Store.open(store)
    _tell_plan(plan(opened, resolve_dataset(opened, dataset), config), as_json)


def _run(config: LabelConfig, store: Path, dataset: str | None, export: Path | None, *, as_json: bool) -> None:
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..labelling import export as write_requests
    from ..labelling import label

    opened = Store.open(store)
    dataset_id = resolve_dataset(opened, dataset)
    if export is not None:
        _tell_export(write_requests(opened, dataset_id, config, export), export, as_json)
        return
    with progress_bars() as bars:
        summary = label(opened, dataset_id, config, bars)
    tell_run(summary, as_json)


def _tell_plan(planned: Planned, as_json: bool) -> None:
    estimate = planned.estimate
    told: dict[str, Any] = {
        "run_id": planned.plan.run.run_id,
        "dataset_id": planned.plan.run.dataset_id,
        "model": planned.plan.run.model,
        "requests": estimate.requests,
        "answered": estimate.answered,
        "input_tokens": estimate.tokens.input,
        "output_tokens": estimate.tokens.output,
        "cost_usd": estimate.cost_usd,
        "cached_input_tokens": estimate.cached.cache_read,
        "cached_usd": estimate.cached_usd,
        "worst_usd": estimate.worst_usd,
        "longest_reply": estimate.longest_reply,
        "batch": estimate.batch,
        "basis": estimate.basis,
    }
    if as_json:
        print_json(told)
        return
    print_lines(
        f"{told['run_id']}: {estimate.requests} requests to {told['model']}, {estimate.answered} answered before",
        f"about {estimate.tokens.input} input tokens, {estimate.cached.cache_read} of them from the cache if it holds, "
        f"and {estimate.tokens.output} output tokens",
        *_tell_dollars(estimate),
        f"how good: {estimate.basis}",
        "nothing was sent",
    )


def _tell_dollars(estimate: Estimate) -> list[str]:
    if estimate.cost_usd is None or estimate.cached_usd is None or estimate.worst_usd is None:
        return ["no list price is known for this model"]
    what = "in batches, at their discount" if estimate.batch else "in single calls; --provider batch costs about half"
    return [
        f"about ${estimate.cached_usd:.2f} to ${estimate.cost_usd:.2f} {what}",
        f"at most ${estimate.worst_usd:.2f}: a token a byte, and replies of {estimate.longest_reply:,} tokens, which "
        "--max-tokens sets (a run without it allows what the server does); --budget caps it lower",
    ]


def _tell_export(count: int, path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"requests": count, "path": str(path)})
    else:
        print_lines(f"{count} requests in {path}")


def tell_run(summary: RunSummary, as_json: bool) -> None:
    """Print what a run has come to.

    Raises:
        ProviderFailed: if labels are missing because of what the server did; what was answered is kept.
    """
    if as_json:
        print_json(
            {
                "run_id": summary.run_id,
                "dataset_id": summary.dataset_id,
                "model": summary.model,
                "done": summary.done,
                "was_done": summary.was_done,
                "episodes": summary.episodes,
                "asked": summary.asked,
                "answered": summary.answered,
                "reused": summary.reused,
                "pending": summary.pending,
                "failed": summary.failed,
                "labels": summary.totals.labels,
                "rules": summary.totals.rules,
                "rejections": summary.totals.rejections,
                "input_tokens": summary.totals.tokens.input,
                "output_tokens": summary.totals.tokens.output,
                "cost_usd": summary.totals.cost_usd,
                "estimated_usd": summary.estimated_usd,
                "stopped": summary.stopped,
                "errors": summary.errors,
            }
        )
    else:
        _tell_brought_and_bill(summary)
    if summary.failure is not None:
        raise summary.failure


_UNDER_WAY = "{} requests are under way in batches; `trajnote annotate ingest` enters their answers"


def _tell_brought_and_bill(summary: RunSummary) -> None:
    state = "was done before" if summary.was_done else "is done" if summary.done else "is open: run the command again"
    if summary.pending and not summary.done:
        state = "is open"
    if summary.failure is not None and not summary.done:
        state = "has failed"
    print_lines(
        f"{summary.run_id} of {summary.dataset_id} {state}",
        f"{_tell_brought(summary)}, {summary.totals.rejections} rejections from {summary.episodes} episodes; "
        f"{summary.answered} requests answered now, {summary.reused} before, {summary.pending} open",
        *_tell_bill(summary),
        *((_UNDER_WAY.format(summary.under_way),) if summary.under_way else ()),
        *((f"stopped: {summary.stopped}",) if summary.stopped and not summary.is_halted else ()),
    )


def _tell_brought(summary: RunSummary) -> str:
    return f"{summary.totals.rules} rules" if summary.totals.rules else f"{summary.totals.labels} labels"


def _tell_bill(summary: RunSummary) -> list[str]:
    """The bill beside what was expected when the requests were sent."""
    cost, expected = summary.totals.cost_usd, summary.estimated_usd
    if not cost:
        return []
    if not expected:
        return [f"cost: ${cost:.4f}"]
    return [f"cost: ${cost:.4f}, {cost / expected:.0%} of the ${expected:.4f} estimated without a cache"]
