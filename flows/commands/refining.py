"""`refine`, `ablate`, `evaluate`, `pipeline` and `demo`: better policies, and the evidence that they are."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import resolve_name
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refine import evaluation
from storage import datasets as stored
from storage.errors import BadInput, Prerequisite

from .. import datasets, deployment, labelling, refinement, reporting, runtime, simulation
from .options import (
    DEFAULT_STORE,
    ActingOption,
    BaselineOption,
    CollectOptions,
    DatasetOption,
    EnvKwargsOption,
    GateOptions,
    ImproveOptions,
    JsonOption,
    LabelOptions,
    RunsOption,
    StoreOption,
    TrustOption,
    WorkersOption,
    open_dataset,
    taking,
)
from .output import print_result, print_rows, progress_bars

if TYPE_CHECKING:
    from storage.store import Store


@taking(config=ImproveOptions)
def refine(
    config: refinement.ImproveConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunsOption = None,
    rules: Annotated[
        bool,
        typer.Option(
            "--rules", help="Imitate corrective rules at all steps that they match, instead of single labels."
        ),
    ] = False,
    baseline: BaselineOption = None,
    env: TrustOption = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Play nothing and estimate from logged steps; the default without an environment."
        ),
    ] = False,
    accept_estimate: Annotated[
        bool, typer.Option("--accept-estimate", help="Put the refined policy in force on an estimate alone.")
    ] = False,
    track: Annotated[
        Path | None,
        typer.Option("--track", help="Folder of trackio, offline, that gets one run per comparison."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Refine a dataset's policy with its annotations, beside placebos, and let the gate judge every arm."""
    opened, dataset_id = open_dataset(store, dataset, ruled=rules)
    named = simulation.Named.of(baseline)
    if estimate or stored.read_manifest(opened, dataset_id).env_id is None:
        _check_for_estimate(config, track)
        _estimate(opened, dataset_id, config, run, rules, baseline=named, accept=accept_estimate, as_json=as_json)
        return
    if accept_estimate:
        raise BadInput("--accept-estimate is for estimates; the simulator judges this dataset.", "Add --estimate.")
    if track is not None:
        reporting.load_tracker(track)  # what is missing is reported before hours of work
    home = simulation.Named.of(env)
    with progress_bars() as bars:
        found = refinement.improve_and_relabel(
            opened, dataset_id, config, run_ids=run, rules=rules, baseline=named, env_id=home, report=bars
        )
    if track is not None:
        reporting.enter_run(opened, found.best.outcome, config, track)
    _print_relabelled(found, as_json)


def _check_for_estimate(config: refinement.ImproveConfig, track: Path | None) -> None:
    """Refuse what an estimate has not.

    Raises:
        BadInput: saying which option to leave out.
    """
    if config.expert or config.random_states:
        raise BadInput("An estimate has no reference arms.", "Leave --expert and --random-states out.")
    if config.promote_rules:
        raise BadInput("An estimate puts no rules in force.", "Leave --promote-rules out.")
    if config.promote == "best":
        raise BadInput("An estimate puts no other arm in force.", "Leave --promote best out.")
    if config.relabel:
        raise BadInput("An estimate plays nothing, so there is nothing to relabel.", "Leave --relabel out.")
    if config.log_dir or track:
        raise BadInput("An estimate is neither logged nor tracked.", "Leave --log-dir and --track out.")


def _estimate(
    store: Store,
    dataset_id: str,
    config: refinement.ImproveConfig,
    run_ids: list[str] | None,
    rules: bool,
    *,
    baseline: simulation.Named | None,
    accept: bool,
    as_json: bool,
) -> None:
    """Refine without a simulator, and print what is estimated."""
    asked = refinement.EstimateConfig(
        refine=config.refine,
        ope=evaluation.OpeConfig(seed=config.refine.seed),
        mode=config.gate.mode,
        accept=accept,
        workers=config.workers,
        **({"placebo_draws": config.gate.placebo_draws} if "placebo_draws" in config.gate.model_fields_set else {}),
    )
    with progress_bars() as bars:
        estimated = refinement.estimate_refinement(
            store, dataset_id, asked, run_ids=run_ids, rules=rules, baseline=baseline, report=bars
        )
    labels = f"{len(estimated.material.labels)} labels; ESTIMATED, not played"
    title = f"{dataset_id}: {labels}; baseline: {estimated.origin.origin}"
    _print(title, refinement.show_estimate(estimated), as_json)


@taking(judged=GateOptions)
def ablate(
    judged: refinement.ImproveConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunsOption = None,
    baseline: BaselineOption = None,
    env: TrustOption = None,
    use: Annotated[str, typer.Option("--use", help="Which of A, R and RA, comma-separated.")] = "A,R,RA",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds, from --seed on.")] = 3,
    draws: Annotated[int, typer.Option("--draws", min=2, help="Draws of each placebo per training seed.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Refine with suggestions, with rewards and with both, beside all arms, over several training seeds."""
    chosen = {"modes": [mode.strip() for mode in use.split(",") if mode.strip()], "seeds": seeds}
    improve = judged.model_copy(update={"random_states": True})
    config = refinement.AblateConfig.model_validate(chosen | {"improve": improve})
    opened, dataset_id = open_dataset(store, dataset)
    named = {"baseline": simulation.Named.of(baseline), "env_id": simulation.Named.of(env)}
    with progress_bars() as bars:
        found = refinement.ablate(opened, dataset_id, config, run_ids=run, **named, report=bars)
    first = next(iter(found.outcomes.values()))
    labels = f"{first.n_labels} labels, {seeds} training seeds"
    _print(f"{dataset_id}: {labels}; baseline: {first.baseline.origin}", refinement.show_ablation(found), as_json)


def evaluate(
    policy: Annotated[str, typer.Argument(help="Policy id of the store, or a specification as for collect --policy.")],
    store: StoreOption = DEFAULT_STORE,
    env: Annotated[
        str | None, typer.Option("--env", help="Gymnasium id; default: the policy's own environment.")
    ] = None,
    env_kwargs: EnvKwargsOption = None,
    episodes: Annotated[int, typer.Option(min=2, help="How many episodes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode.")] = 5_000_000,
    mode: ActingOption = "greedy",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play a policy on fresh seeds: mean return with its 95% bootstrap interval."""
    from storage.store import Store

    config = refinement.EvaluateConfig(
        policy=simulation.Named(policy),
        env_id=simulation.Named.of(env),
        env_kwargs=simulation.parse_env_kwargs(env_kwargs),
        episodes=episodes,
        seed=seed,
        mode=mode,
        workers=workers,
    )
    with Store.create_for(store) as opened, progress_bars() as bars:
        result = refinement.evaluate(opened, config, bars)
    found = evaluation.Interval(result["return"], result["low"], result["high"], episodes)
    about = f"{mode}, {episodes} episodes of {result['env_id']}, seeds from {seed}"
    print_result(as_json, result, f"{result['policy_id']}: {found} ({about})")


@taking(label=LabelOptions, improve=ImproveOptions, collect=CollectOptions)
def pipeline(
    collect: datasets.CollectConfig,
    label: labelling.LabelConfig,
    improve: refinement.ImproveConfig,
    store: StoreOption = DEFAULT_STORE,
    seed: Annotated[int, typer.Option("--seed", min=0, help="First seed of the episodes, and of the training.")] = 0,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=1, help="Repeat with the policy in force, or with a better list of rules."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Collect, annotate, refine and judge in one Prefect flow; after an interruption each step resumes.

    It takes the options of `collect`, `annotate` and `refine`.
    """
    runtime.quieten_prefect()
    server = runtime.start_server()
    config = deployment.PipelineConfig(store=store, collect=collect, label=label, improve=improve)
    if rounds is not None:
        _go_round(config, rounds, server, as_json)
        return
    with progress_bars() as bars, runtime.listening(bars), runtime.served(server):
        outcome = deployment.pipeline_flow(config)
    _print_outcome(outcome, as_json)


def _go_round(pipeline: deployment.PipelineConfig, rounds: int, server: runtime.Server | None, as_json: bool) -> None:
    """Run the rounds, print them, and end with the exit code of a prerequisite where answers are missing.

    Raises:
        Prerequisite: if a round waits for answers.
    """
    if pipeline.collect is None:
        raise BadInput("--rounds needs a collection: each round collects with another policy.")
    if pipeline.collect.dataset is not None:
        raise BadInput("Each round of --rounds collects a new dataset, so --dataset cannot name it.", "Leave it out.")
    parts = {"collect": pipeline.collect, "label": pipeline.label, "improve": pipeline.improve}
    config = refinement.RoundsConfig.model_validate({"store": pipeline.store, "rounds": rounds, **parts})
    with progress_bars() as bars, runtime.listening(bars), runtime.served(server):
        series = deployment.rounds_flow(config)
    title = f"{pipeline.collect.env_id}: {len(series.rounds)} of {rounds} rounds"
    _print(title, refinement.show_rounds(series), as_json)
    if series.waits:
        raise Prerequisite(f"{series.ended[0].upper()}{series.ended[1:]}.", "Run the same command when they are there.")


def demo(
    store: StoreOption = DEFAULT_STORE,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the shipped LunarLander example end to end, with recorded answers: no key, no network, no cost."""
    if not store.exists():  # else there may be nothing to train
        parts = ("..refinement.arms", "..simulation.workers")
        runtime.start_workers(workers, *(resolve_name(part, __package__ or "") for part in parts))
    from ..demo import run_demo  # takes a second, in which the workers start

    with progress_bars() as bars, runtime.listening(bars):
        result = run_demo(store, workers)
    replay = result.replay
    _print_outcome(
        result.outcome,
        as_json,
        {"seconds": result.seconds, "replay_exact": replay.exact, "report": result.report},
        f"replay of episode {replay.episode_id}: {replay.detail}",
        f"{result.seconds:.0f} seconds",
        str(result.report or "for a report, install the extra: pip install 'trajnote[plots]'"),
    )


def _print_outcome(
    outcome: refinement.Outcome, as_json: bool, more: Mapping[str, object] | None = None, *lines: str
) -> None:
    shown = refinement.show_comparison(outcome)
    title = f"{outcome.dataset_id}: {outcome.n_labels} labels; baseline: {outcome.baseline.origin}"
    print_rows(as_json, {**shown.values, **(more or {})}, title, shown.rows, *shown.sentences, *lines)


def _print_relabelled(found: refinement.Relabelled, as_json: bool) -> None:
    """The rounds, if there are several, and the outcome of the one that counts."""
    outcome = found.best.outcome
    if len(found.rounds) == 1:
        _print_outcome(outcome, as_json)
        return
    shown = refinement.show_relabelling(found)
    if not as_json:
        _print(f"{outcome.dataset_id}: {len(found.rounds) - 1} rounds of relabelling", shown, as_json)
    _print_outcome(outcome, as_json, shown.values)


def _print(title: str, shown: refinement.Overview, as_json: bool) -> None:
    print_rows(as_json, shown.values, title, shown.rows, *shown.sentences)
