"""`annotate` and `annotations`: asking a language model, at once or in batches; importing and inspecting labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from storage.errors import BadInput, ProviderFailed

from .options import (
    DEFAULT_STORE,
    AnswersOption,
    BaseUrlOption,
    BudgetOption,
    ConcurrencyOption,
    DatasetOption,
    JsonOption,
    MaxTokensOption,
    ProviderOption,
    RunsOption,
    StoreOption,
    TrustOption,
    label_options,
    taking,
)
from .output import print_json, print_lines, print_table, progress_bars

if TYPE_CHECKING:
    from annotate.costs import Estimate
    from annotate.explain import Explanation
    from annotate.importing import ReviewSummary
    from annotate.runs import Polled, RunSummary

    from ..labelling import Checkup, GoldReport, LabelConfig, Planned

ExportOption = Annotated[
    Path | None, typer.Option("--export", help="file: write the unanswered requests here, and stop.")
]
BatchServerOption = Annotated[
    str | None, typer.Option("--base-url", help="Server that has Message Batches; default: Anthropic's.")
]
annotate_app = typer.Typer(name="annotate", invoke_without_command=True, subcommand_metavar="[COMMAND]")
annotations_app = typer.Typer(name="annotations", help="Labels that exist already.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(annotate_app)
    app.add_typer(annotations_app)


@annotate_app.callback()
@taking(config=label_options)
def annotate(
    context: typer.Context,
    config: LabelConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    export: ExportOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show questions and cost; send nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a language model for critical steps, better actions and grades; run again, it asks only what is open.

    Without a command this is `annotate run`.
    """
    if context.invoked_subcommand is not None:
        _refuse_stray_options(context)
    elif dry_run:
        _plan(config, store, dataset, as_json=as_json)
    else:
        _run(config, store, dataset, export, as_json=as_json)


@annotate_app.command("plan")
@taking(config=label_options)
def annotate_plan(
    config: LabelConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the first request in full: all that a reader gets.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what would be asked and what it would cost; nothing is sent."""
    _plan(config, store, dataset, as_json=as_json, show=show)


@annotate_app.command("run")
@taking(config=label_options)
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
        str | None,
        typer.Argument(metavar="[RUN]", help="Annotation run, or the beginning of its id; default: the newest."),
    ] = None,
    provider: ProviderOption = "anthropic",
    answers: AnswersOption = None,
    base_url: BaseUrlOption = None,
    concurrency: ConcurrencyOption = 4,
    budget: BudgetOption = None,
    max_tokens: MaxTokensOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Ask again what failed, or whose reply gave no label; earlier replies are kept as evidence."""
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
    print_run(summary, as_json)


@annotations_app.command("import")
def annotations_import(
    path: Annotated[Path, typer.Argument(help="JSON lines of dataset_id, episode_id, step, suggested_action, ...")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Import labels from any source; every line is checked first, and one bad line rejects the file.

    Fields: dataset_id, episode_id, step, suggested_action (number, list or name), implicit_reward in [-1, 1],
    confidence in [0, 1], rationale; optional: critical, model. The file that a review saves is taken too: of several
    answers to one item the newest counts.
    """
    from annotate.importing import ReviewSummary, import_labels
    from storage.store import Store

    summary = import_labels(Store.open(store), path)
    if isinstance(summary, ReviewSummary):
        _print_review(summary, as_json)
    elif as_json:
        print_json({"run_ids": list(summary.run_ids), "lines": summary.lines, "labels": summary.labels})
    else:
        already = "" if summary.labels or not summary.lines else "; they were imported before"
        print_lines(f"{summary.labels} new labels from {summary.lines} lines{already}: {', '.join(summary.run_ids)}")


def _print_review(summary: ReviewSummary, as_json: bool) -> None:
    if as_json:
        print_json(asdict(summary))
        return
    already = "" if summary.answers else "; they were imported before"
    replaced = f", {summary.replaced} in the place of earlier ones" if summary.replaced else ""
    print_lines(
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
            f"{options} stands before the command {context.invoked_subcommand}.",
            f"Write options after it: `trajnote annotate {context.invoked_subcommand} {options} ...`.",
        )


def _plan(config: LabelConfig, store: Path, dataset: str | None, *, as_json: bool, show: bool = False) -> None:
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..labelling import plan

    opened = Store.open(store)
    planned = plan(opened, resolve_dataset(opened, dataset), config)
    if show and not as_json:
        print_lines(*_prompt_lines(planned.plan.requests[0].sent), "")
    _print_plan(planned, as_json, planned.plan.requests[0].sent if show else None)


def _prompt_lines(params: Mapping[str, Any]) -> list[str]:
    """A request as a reader meets it: what is said to whom, and the rest of its parameters."""
    said = [("system", params["system"]), *((each["role"], each["content"]) for each in params["messages"])]
    lines = [line for who, content in said for line in (f"--- {who}", *_texts(content))]
    rest = {name: value for name, value in params.items() if name not in ("system", "messages")}
    return [*lines, "--- parameters", json.dumps(rest)]


def _texts(content: str | Sequence[Mapping[str, Any]]) -> list[str]:
    if isinstance(content, str):
        return content.splitlines()
    return [line for block in content for line in str(block.get("text", f"[{block['type']}]")).splitlines()]


def _run(config: LabelConfig, store: Path, dataset: str | None, export: Path | None, *, as_json: bool) -> None:
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..labelling import export as write_requests
    from ..labelling import label

    opened = Store.open(store)
    dataset_id = resolve_dataset(opened, dataset)
    if export is not None:
        _print_export(write_requests(opened, dataset_id, config, export), export, as_json)
        return
    with progress_bars() as bars:
        summary = label(opened, dataset_id, config, bars)
    print_run(summary, as_json)


def _print_plan(planned: Planned, as_json: bool, prompt: Mapping[str, Any] | None = None) -> None:
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
        print_json(told if prompt is None else told | {"prompt": prompt})
        return
    print_lines(
        f"{told['run_id']}: {estimate.requests} requests to {told['model']}, {estimate.answered} answered before",
        f"about {estimate.tokens.input} input tokens, {estimate.cached.cache_read} of them from the cache if it holds, "
        f"and {estimate.tokens.output} output tokens",
        *_dollar_lines(estimate),
        f"how good: {estimate.basis}",
        "nothing was sent",
    )


def _dollar_lines(estimate: Estimate) -> list[str]:
    if estimate.cost_usd is None or estimate.cached_usd is None or estimate.worst_usd is None:
        return ["no list price is known for this model"]
    what = "in batches, at their discount" if estimate.batch else "in single calls; --provider batch costs about half"
    return [
        f"about ${estimate.cached_usd:.2f} to ${estimate.cost_usd:.2f} {what}",
        f"at most ${estimate.worst_usd:.2f}: a token a byte, and replies of {estimate.longest_reply:,} tokens, which "
        "--max-tokens sets (a run without it allows what the server does); --budget caps it lower",
    ]


def _print_export(count: int, path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"requests": count, "path": str(path)})
    else:
        print_lines(f"{count} requests in {path}")


def print_run(summary: RunSummary, as_json: bool) -> None:
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
        _print_summary(summary)
    if summary.failure is not None:
        raise summary.failure


_UNDER_WAY = "{} requests are under way in batches; `trajnote annotate ingest` enters their answers"


def _print_summary(summary: RunSummary) -> None:
    state = "was done before" if summary.was_done else "is done" if summary.done else "is open: run the command again"
    if summary.pending and not summary.done:
        state = "is open"
    if summary.failure is not None and not summary.done:
        state = "has failed"
    print_lines(
        f"{summary.run_id} of {summary.dataset_id} {state}",
        f"{_gained(summary)}, {summary.totals.rejections} rejections from {summary.episodes} episodes; "
        f"{summary.answered} requests answered now, {summary.reused} before, {summary.pending} open",
        *_bill_lines(summary),
        *((_UNDER_WAY.format(summary.under_way),) if summary.under_way else ()),
        *((f"stopped: {summary.stopped}",) if summary.stopped and not summary.is_halted else ()),
    )


def _gained(summary: RunSummary) -> str:
    return f"{summary.totals.rules} rules" if summary.totals.rules else f"{summary.totals.labels} labels"


def _bill_lines(summary: RunSummary) -> list[str]:
    """The bill beside what was expected when the requests were sent."""
    cost, expected = summary.totals.cost_usd, summary.estimated_usd
    if not cost:
        return []
    if not expected:
        return [f"cost: ${cost:.4f}"]
    return [f"cost: ${cost:.4f}, {cost / expected:.0%} of the ${expected:.4f} estimated without a cache"]


@annotate_app.command("submit")
@taking(config=label_options)
def annotate_submit(
    config: LabelConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send what is open in Message Batches and return at once; `annotate ingest` fetches the answers."""
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
    base_url: BatchServerOption = None,
    give_up: Annotated[
        list[str] | None,
        typer.Option(help="Batch that cannot be settled without its key: it is counted, and asked again."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far the batches of all runs are; those whose outcome is unknown are settled first."""
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
        _print_polled(found, unknown)
    _fail([polled.failure for polled in found if polled.failure])


def _print_polled(found: Sequence[Polled], unknown: Sequence[str]) -> None:
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
    store: StoreOption = DEFAULT_STORE, base_url: BatchServerOption = None, as_json: JsonOption = False
) -> None:
    """Fetch the answers of batches that have ended, of all runs, and enter the labels."""
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
            help="Judge by the labels of this run, which a trusted reader made; repeatable: several readers.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge labels before training: coverage, consistency, calibration, agreement; a verdict with its reasons.

    With --gold: how often suggestions and `critical` are right, with exact intervals, and which of two runs more often.
    """
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..labelling import as_plain, check_labels, gold_as_plain, score_against_gold

    opened = Store.open(store)
    if gold:
        scored = score_against_gold(opened, gold, dataset=dataset, runs=run)
        if as_json:
            print_json(gold_as_plain(scored))
        else:
            _print_gold(scored)
        return
    dataset_id = resolve_dataset(opened, dataset)
    found = check_labels(opened, dataset_id, run)
    if as_json:
        print_json({"dataset_id": dataset_id, "runs": [as_plain(checkup) for checkup in found]})
        return
    for checkup in found:
        _print_checkup(checkup)


@annotate_app.command("why")
@taking(config=label_options)
def annotate_why(
    config: LabelConfig,
    request_id: Annotated[
        str | None, typer.Argument(metavar="[REQUEST_ID]", help="Request of the store, or the beginning of its id.")
    ] = None,
    miss: Annotated[
        bool, typer.Option("--miss", help="Explain what a run with these options would have to ask anew.")
    ] = False,
    explanations: Annotated[int, typer.Option("--explanations", min=1, help="How many at most, with --miss.")] = 3,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show in which field a request differs from the nearest one in the store: why it has no answer yet."""
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
        found, missing = explain_misses(opened, planned, explanations)
    if as_json:
        print_json({"unanswered": missing, "explained": [asdict(each) | {"words": each.words} for each in found]})
        return
    if missing is not None:
        print_lines(f"{missing} requests have no answer in {store}" + (f"; the first {len(found)}:" if found else ""))
    for each in found:
        _print_explanation(each)


def _print_explanation(explanation: Explanation) -> None:
    about = "" if explanation.episode_id is None else f", about episode {explanation.episode_id}"
    print_lines(f"{explanation.request_id} ({explanation.state}{about}): {explanation.words}")
    for difference in explanation.differences:
        print_lines(f"  {difference.field}, {difference.kind}:", *(f"    {line}" for line in difference.diff))


@annotations_app.command("replay")
def annotations_replay(
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunsOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Labels at most, drawn by a fixed shuffle.")] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Policy that continues; default: the one that made the dataset.")
    ] = None,
    mode: Annotated[
        Literal["greedy", "sampled"] | None, typer.Option("--mode", help="How it acts; default: as in the dataset.")
    ] = None,
    continuations: Annotated[int, typer.Option(min=1, help="Pairs per label, where the policy acts by chance.")] = 4,
    horizon: Annotated[int | None, typer.Option(min=1, help="Steps of a continuation at most.")] = None,
    env: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the advantage of each suggestion: take it once from its exact state, then let the policy continue.

    The table label_replays and `annotate quality` show it; no label is dropped because of it.
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


def _print_gold(found: GoldReport) -> None:
    from ..labelling import describe_gain, describe_gold, describe_rivalry, score_rows

    print_lines(*describe_gold(found))
    for score in found.scores:
        asked = f", prompts {score.prompt_version}" if score.prompt_version else ""
        print_table(f"{score.run_id} ({score.model}{asked}): {describe_gain(score)}", score_rows(score))
    print_lines(*map(describe_rivalry, found.rivalries))


def _print_checkup(checkup: Checkup) -> None:
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
