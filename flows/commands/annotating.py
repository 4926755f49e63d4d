"""`annotate` and `annotations`: asking a language model, at once or in batches; importing and inspecting labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from annotate import importing, ledger, runs
from storage.errors import BadInput, ProviderFailed

from .. import labelling, simulation
from .options import (
    DEFAULT_STORE,
    AnswerOptions,
    DatasetOption,
    JsonOption,
    LabelOptions,
    RunsOption,
    StoreOption,
    TrustOption,
    open_dataset,
    open_store,
    taking,
)
from .output import print_json, print_lines, print_result, print_table, progress_bars

if TYPE_CHECKING:
    from annotate.costs import Estimate
    from annotate.explain import Explanation

ExportOption = Annotated[
    Path | None, typer.Option("--export", help="file: write the unanswered requests here, and stop.")
]
BatchServerOption = Annotated[
    str | None, typer.Option("--base-url", help="Server with Message Batches; default: Anthropic's.")
]
annotate_app = typer.Typer(name="annotate", invoke_without_command=True, subcommand_metavar="[COMMAND]")
annotations_app = typer.Typer(name="annotations", help="Import and replay labels.", no_args_is_help=True)


@annotate_app.callback()
@taking(options=LabelOptions)
def annotate(
    context: typer.Context,
    options: LabelOptions,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    export: ExportOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show requests and cost; send nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a language model for critical steps, better actions and grades; a rerun asks only what is open.

    Without a command this is `annotate run`.
    """
    if context.invoked_subcommand is not None:
        _refuse_stray_options(context)
    elif dry_run:
        _plan(options.config(), store, dataset, as_json=as_json)
    else:
        _run(options.config(), store, dataset, export, as_json=as_json)


@annotate_app.command("plan")
@taking(config=LabelOptions)
def annotate_plan(
    config: labelling.LabelConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the first request in full, as the model gets it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what would be asked and what it would cost; nothing is sent."""
    _plan(config, store, dataset, as_json=as_json, show=show)


@annotate_app.command("run")
@taking(config=LabelOptions)
def annotate_run(
    config: labelling.LabelConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    export: ExportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask what is open, wait for the answers, and enter the labels."""
    _run(config, store, dataset, export, as_json=as_json)


@annotate_app.command("retry")
@taking(config=AnswerOptions)
def annotate_retry(
    config: labelling.LabelConfig,
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Annotation run id, or a unique prefix; default: the newest."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Ask again what failed, or whose reply gave no label; earlier replies are kept as evidence."""
    with progress_bars() as bars:
        summary = labelling.retry(open_store(store), run, config, bars)
    print_run(summary, as_json)


@annotations_app.command("import")
def annotations_import(
    path: Annotated[Path, typer.Argument(help="JSON lines of dataset_id, episode_id, step, suggested_action, ...")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Import labels from any source; every line is checked first, and one bad line rejects the file.

    Fields: dataset_id, episode_id, step, suggested_action (number, list or name), implicit_reward in [-1, 1],
    confidence in [0, 1], rationale; optional: critical, model. Files saved by a review can be imported too: of several
    answers to one item the newest counts.
    """
    summary = importing.import_labels(open_store(store), path)
    if isinstance(summary, importing.ReviewSummary):
        _print_review(summary, as_json)
        return
    already = "" if summary.labels or not summary.lines else "; they were imported before"
    print_result(
        as_json,
        {"run_ids": list(summary.run_ids), "lines": summary.lines, "labels": summary.labels},
        f"{summary.labels} new labels from {summary.lines} lines{already}: {', '.join(summary.run_ids)}",
    )


def _print_review(summary: importing.ReviewSummary, as_json: bool) -> None:
    already = "" if summary.answers else "; they were imported before"
    replaced = f", {summary.replaced} replacing earlier ones" if summary.replaced else ""
    print_result(
        as_json,
        asdict(summary),
        f"{summary.answers} new answers of {', '.join(summary.models)} from {summary.lines} lines{replaced}{already}",
        f"{summary.labels} labels: {', '.join(summary.run_ids)}",
    )


def _refuse_stray_options(context: typer.Context) -> None:
    stray = [
        name for name in context.params if str(context.get_parameter_source(name)) == "ParameterSource.COMMANDLINE"
    ]
    if stray:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in stray)
        raise BadInput(
            f"Before the command {context.invoked_subcommand}: {options}.",
            f"Write options after it: `trajnote annotate {context.invoked_subcommand} {options} ...`.",
        )


def _plan(
    config: labelling.LabelConfig, store: Path, dataset: str | None, *, as_json: bool, show: bool = False
) -> None:
    planned = labelling.plan(*open_dataset(store, dataset), config)
    prompt = planned.plan.requests[0].sent if show else None
    if prompt is not None and not as_json:
        print_lines(*_prompt_lines(prompt), "")
    _print_plan(planned, as_json, prompt)


def _prompt_lines(params: Mapping[str, Any]) -> list[str]:
    """A request as a reader meets it: what is said to whom, and the rest of its parameters."""
    parts = [("system", params["system"]), *((each["role"], each["content"]) for each in params["messages"])]
    lines = [line for who, content in parts for line in (f"--- {who}", *_texts(content))]
    rest = {name: value for name, value in params.items() if name not in ("system", "messages")}
    return [*lines, "--- parameters", json.dumps(rest)]


def _texts(content: str | Sequence[Mapping[str, Any]]) -> list[str]:
    if isinstance(content, str):
        return content.splitlines()
    return [line for block in content for line in str(block.get("text", f"[{block['type']}]")).splitlines()]


def _run(
    config: labelling.LabelConfig, store: Path, dataset: str | None, export: Path | None, *, as_json: bool
) -> None:
    opened, dataset_id = open_dataset(store, dataset)
    if export is not None:
        count = labelling.export(opened, dataset_id, config, export)
        print_result(as_json, {"requests": count, "path": str(export)}, f"{count} requests in {export}")
        return
    with progress_bars() as bars:
        summary = labelling.label(opened, dataset_id, config, bars)
    print_run(summary, as_json)


def _print_plan(planned: labelling.Planned, as_json: bool, prompt: Mapping[str, Any] | None = None) -> None:
    run, estimate = planned.plan.run, planned.estimate
    values = {
        "run_id": run.run_id,
        "dataset_id": run.dataset_id,
        "model": run.model,
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
    print_result(
        as_json,
        values if prompt is None else values | {"prompt": prompt},
        f"{run.run_id}: {estimate.requests} requests to {run.model}, {estimate.answered} answered before",
        f"about {estimate.tokens.input} input tokens, {estimate.cached.cache_read} of them from the server's cache, "
        f"and {estimate.tokens.output} output tokens",
        *_dollar_lines(estimate),
        f"basis: {estimate.basis}",
        "nothing was sent",
    )


def _dollar_lines(estimate: Estimate) -> list[str]:
    if estimate.cost_usd is None or estimate.cached_usd is None or estimate.worst_usd is None:
        return ["no list price is known for this model"]
    what = "in batches, at their discount" if estimate.batch else "in single calls; --provider batch costs about half"
    return [
        f"about ${estimate.cached_usd:.2f} to ${estimate.cost_usd:.2f} {what}",
        f"at most ${estimate.worst_usd:.2f}, at one token per byte and replies of {estimate.longest_reply:,} tokens, "
        "which --max-tokens sets (default: what the server allows); --budget caps it lower",
    ]


def print_run(summary: runs.RunSummary, as_json: bool) -> None:
    """Print what a run has come to.

    Raises:
        ProviderFailed: if labels are missing because of what the server did; what was answered is kept.
    """
    totals = summary.totals
    gained = f"{totals.rules} rules" if totals.rules else f"{totals.labels} labels"
    print_result(
        as_json,
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
            "labels": totals.labels,
            "rules": totals.rules,
            "rejections": totals.rejections,
            "input_tokens": totals.tokens.input,
            "output_tokens": totals.tokens.output,
            "cost_usd": totals.cost_usd,
            "estimated_usd": summary.estimated_usd,
            "stopped": summary.stopped,
            "is_study": summary.is_study,
            "errors": summary.errors,
        },
        f"{summary.run_id} of {summary.dataset_id} {_state(summary)}",
        f"{gained}, {totals.rejections} rejections from {summary.episodes} episodes; "
        f"{summary.answered} requests answered now, {summary.reused} before, {summary.pending} open",
        *_bill_lines(summary),
        *((_UNDER_WAY.format(summary.under_way),) if summary.under_way else ()),
        *((_EPISODES_NEXT,) if summary.is_study and summary.done else ()),
        *((f"stopped: {summary.stopped}",) if summary.stopped and not summary.is_halted else ()),
    )
    if summary.failure is not None:
        raise summary.failure


_EPISODES_NEXT = "the study is answered; the requests about the episodes come next: run this again with --export"
_UNDER_WAY = "{} requests are under way in batches; `trajnote annotate ingest` enters their answers"


def _state(summary: runs.RunSummary) -> str:
    if summary.done:
        return "was done before" if summary.was_done else "is done"
    if summary.failure is not None:
        return "has failed"
    return "is open" if summary.pending else "is open: run the command again"


def _bill_lines(summary: runs.RunSummary) -> list[str]:
    """The bill beside what was expected when the requests were sent."""
    cost, expected = summary.totals.cost_usd, summary.estimated_usd
    if not cost:
        return []
    if not expected:
        return [f"cost: ${cost:.4f}"]
    return [f"cost: ${cost:.4f}, {cost / expected:.0%} of the ${expected:.4f} estimated without a cache"]


@annotate_app.command("submit")
@taking(config=LabelOptions)
def annotate_submit(
    config: labelling.LabelConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send what is open in Message Batches and return at once; `annotate ingest` fetches the answers."""
    sent = labelling.submit(*open_dataset(store, dataset), config)
    print_result(
        as_json,
        asdict(sent),
        f"{sent.run_id}: {sent.requests} requests in {len(sent.batch_ids)} new batches; "
        f"{sent.under_way} under way in all, {sent.open} still to be sent, {sent.failed} failed",
        *((f"stopped: {sent.stopped}",) if sent.stopped else ()),
        *((ledger.GO_ON,) if sent.is_halted else ()),
        *((f"{sent.unknown} batches are unknown: `trajnote annotate poll` settles them",) if sent.unknown else ()),
        *sent.warnings,
    )


@annotate_app.command("poll")
def annotate_poll(
    store: StoreOption = DEFAULT_STORE,
    base_url: BatchServerOption = None,
    give_up: Annotated[
        list[str] | None,
        typer.Option(help="Give up a batch that this key cannot see: count its cost, and ask its requests again."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the progress of the batches of all runs; those whose outcome is unknown are settled first."""
    found, unknown = labelling.poll(open_store(store), base_url, give_up=give_up or ())
    batches = [
        {"batch_id": p.batch_id, "run_id": p.run_id, "ended": p.ended, "counts": p.remote.counts if p.remote else {}}
        for p in found
    ]
    print_result(
        as_json,
        {"batches": batches, "unknown": unknown, "warnings": [p.warning for p in found if p.warning]},
        *(line for polled in found for line in _poll_lines(polled)),
        *unknown,
        *(("nothing is under way",) if not found and not unknown else ()),
    )
    _fail([polled.failure for polled in found if polled.failure])


def _poll_lines(polled: runs.Polled) -> list[str]:
    counts = ", ".join(f"{count} {state}" for state, count in (polled.remote.counts if polled.remote else {}).items())
    line = f"{polled.batch_id} {'has ended' if polled.ended else 'is under way'}: {counts}"
    return [line, polled.warning] if polled.warning else [line]


@annotate_app.command("ingest")
def annotate_ingest(
    store: StoreOption = DEFAULT_STORE, base_url: BatchServerOption = None, as_json: JsonOption = False
) -> None:
    """Fetch the answers of batches that have ended, of all runs, and enter the labels."""
    done = labelling.ingest(open_store(store), base_url)
    print_result(
        as_json,
        {name: value for name, value in asdict(done).items() if name not in ("problem", "unentered")},
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
            f"Batches that could not be handled ({len(failures)}): {'; '.join(failures[:3])}.",
            "All others were; run this again later.",
        )


@annotate_app.command("quality")
def annotate_quality(
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunsOption = None,
    gold: Annotated[
        list[str] | None,
        typer.Option(
            "--gold",
            metavar="RUN|READER",
            help="Judge by the labels of this run or reader, a gold set; repeatable for several readers.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge labels before training: coverage, consistency, calibration, agreement; a verdict with its reasons.

    With --gold: how often suggestions and `critical` are right, with exact intervals, and how runs compare.
    """
    if gold:
        scored = labelling.score_against_gold(open_store(store), gold, dataset=dataset, runs=run)
        if as_json:
            print_json(labelling.gold_as_plain(scored))
        else:
            _print_gold(scored)
        return
    opened, dataset_id = open_dataset(store, dataset)
    found = labelling.check_labels(opened, dataset_id, run)
    if as_json:
        print_json({"dataset_id": dataset_id, "runs": [labelling.as_plain(checkup) for checkup in found]})
        return
    for checkup in found:
        _print_checkup(checkup)


@annotate_app.command("why")
@taking(config=LabelOptions)
def annotate_why(
    config: labelling.LabelConfig,
    request_id: Annotated[
        str | None, typer.Argument(metavar="[REQUEST_ID]", help="Request id, or a unique prefix.")
    ] = None,
    miss: Annotated[
        bool, typer.Option("--miss", help="Explain which requests a run with these options would still have to ask.")
    ] = False,
    explanations: Annotated[
        int, typer.Option("--explanations", min=1, help="With --miss: explain at most so many requests.")
    ] = 3,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show in which field a request differs from the nearest one in the store: why it has no answer yet."""
    from annotate import explain  # it loads DuckDB

    if (request_id is None) != miss:
        raise BadInput("`annotate why` takes a request's id or --miss.", "--miss takes the options of `annotate`.")
    if request_id is not None:
        found, missing = [explain.explain_request(open_store(store), request_id)], None
    else:
        opened, dataset_id = open_dataset(store, dataset)
        planned = labelling.plan(opened, dataset_id, config).plan
        found, missing = explain.explain_misses(opened, planned, explanations)
    more = f"; the first {len(found)}:" if found else ""
    print_result(
        as_json,
        {"unanswered": missing, "explained": [asdict(each) | {"words": each.words} for each in found]},
        *(() if missing is None else (f"{missing} requests have no answer in {store}{more}",)),
        *(line for each in found for line in _explanation_lines(each)),
    )


def _explanation_lines(explanation: Explanation) -> Iterator[str]:
    about = "" if explanation.episode_id is None else f", about episode {explanation.episode_id}"
    yield f"{explanation.request_id} ({explanation.state}{about}): {explanation.words}"
    for difference in explanation.differences:
        yield f"  {difference.field}, {difference.kind}:"
        yield from (f"    {line}" for line in difference.diff)


@annotations_app.command("replay")
def annotations_replay(
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunsOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Replay at most so many labels, drawn with a fixed seed.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Policy that continues; default: the one that made the dataset.")
    ] = None,
    mode: Annotated[
        Literal["greedy", "sampled"] | None,
        typer.Option("--mode", help="How that policy acts; default: as in the dataset."),
    ] = None,
    continuations: Annotated[
        int, typer.Option(min=1, help="Pairs of continuations per label, if the policy samples its actions.")
    ] = 4,
    horizon: Annotated[int | None, typer.Option(min=1, help="Steps of a continuation, at most.")] = None,
    env: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the advantage of each suggestion: take it once from its exact state, then let the policy continue.

    Results are in the table label_replays and in `annotate quality`; no label is dropped because of them.
    """
    config = labelling.ReplayConfig(
        limit=limit,
        policy=simulation.Named.of(policy),
        env_id=simulation.Named.of(env),
        mode=mode,
        continuations=continuations,
        horizon=horizon,
    )
    opened, dataset_id = open_dataset(store, dataset)
    with progress_bars() as bars:
        found = labelling.replay_labels(opened, dataset_id, config, run_ids=run, report=bars)
    lines = [
        f"{found.labels} suggestions, {found.confirmations} of them the logged action; {found.replayed} replayed "
        f"exactly, {found.inexact} not, {found.fresh} of them now in {found.environment_steps} environment steps"
    ]
    if found.advantage is not None:
        lines.append(
            f"mean advantage {found.advantage:+.4g}: {found.better:.0%} better than the logged action, "
            f"{found.worse:.0%} worse"
        )
    print_result(as_json, vars(found), *lines)


def _print_gold(found: labelling.GoldReport) -> None:
    print_lines(*labelling.describe_gold(found))
    for score in found.scores:
        asked = f", prompts {score.prompt_version}" if score.prompt_version else ""
        title = f"{score.run_id} ({score.model}{asked}): {labelling.describe_gain(score)}"
        print_table(title, labelling.score_rows(score))
    print_lines(*map(labelling.describe_rivalry, found.rivalries))


def _print_checkup(checkup: labelling.Checkup) -> None:
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
