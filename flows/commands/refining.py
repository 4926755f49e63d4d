"""`refine`, `ablate`, `evaluate`, `pipeline` and `demo`: better policies, and the evidence that they are."""

from __future__ import annotations

from importlib.util import resolve_name
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storage.errors import BadInput

from .options import (
    DEFAULT_STORE,
    AcceptEstimateOption,
    AcceptOption,
    ActingOption,
    BaselineOption,
    DatasetOption,
    EnvKwargsOption,
    EstimateOption,
    ExpertOption,
    FirstSeedOption,
    GateModeOption,
    JsonOption,
    MethodOption,
    ReportOption,
    RulesOption,
    RunsOption,
    SeedOption,
    SelectOption,
    StoreOption,
    TrackOption,
    TrustOption,
    WorkersOption,
    collect_options,
    improve_options,
    label_options,
    taking,
)
from .output import print_json, print_lines, print_table, progress_bars

if TYPE_CHECKING:
    from storage.store import Store

    from ..datasets import CollectConfig
    from ..deployment import PipelineConfig
    from ..labelling import LabelConfig
    from ..refinement import ImproveConfig, Outcome, Overview, Relabelled
    from ..runtime import Server
    from ..simulation import Named


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(refine)
    app.command()(ablate)
    app.command()(evaluate)
    app.command()(pipeline)
    app.command()(demo)


@taking(config=improve_options)
def refine(
    config: ImproveConfig,
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunsOption = None,
    rules: RulesOption = False,
    baseline: BaselineOption = None,
    env: TrustOption = None,
    estimate: EstimateOption = False,
    accept_estimate: AcceptEstimateOption = False,
    track: TrackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refine a dataset's policy with its annotations, beside all controls, and let the gate judge every arm."""
    from storage.annotations import resolve_ruled_dataset
    from storage.datasets import read_manifest, resolve_dataset
    from storage.store import Store

    from ..refinement import improve_and_relabel
    from ..reporting import enter_run, load_tracker
    from ..simulation import Named

    opened, named = Store.open(store), Named.of(baseline)
    dataset_id = (resolve_ruled_dataset if rules else resolve_dataset)(opened, dataset)
    if estimate or read_manifest(opened, dataset_id).env_id is None:
        _check_for_estimate(config, track)
        _appraise(opened, dataset_id, config, run, rules, baseline=named, accept=accept_estimate, as_json=as_json)
        return
    if accept_estimate:
        raise BadInput("--accept-estimate is for estimates; the simulator judges this dataset.", "Add --estimate.")
    if track is not None:
        load_tracker(track)  # what is missing is reported before hours of work
    with progress_bars() as bars:
        found = improve_and_relabel(
            opened, dataset_id, config, run_ids=run, rules=rules, baseline=named, env_id=Named.of(env), report=bars
        )
    if track is not None:
        enter_run(opened, found.best.outcome, config, track)
    _print_relabelled(found, as_json)


def _check_for_estimate(config: ImproveConfig, track: Path | None) -> None:
    """Refuse what an estimate has not.

    Raises:
        BadInput: saying which option to leave out.
    """
    if config.expert or config.random_states:
        raise BadInput("An estimate has no arms beside the placebos.", "Leave --expert and --random-states out.")
    if config.promote_rules:
        raise BadInput("An estimate puts no rules in force.", "Leave --promote-rules out.")
    if config.promote == "best":
        raise BadInput("An estimate puts no other arm in force.", "Leave --promote best out.")
    if config.relabel:
        raise BadInput("An estimate plays nothing, so there is nothing to relabel.", "Leave --relabel out.")
    if config.log_dir or track:
        raise BadInput("An estimate is neither logged nor tracked.", "Leave --log-dir and --track out.")


def _appraise(
    store: Store,
    dataset_id: str,
    config: ImproveConfig,
    run_ids: list[str] | None,
    rules: bool,
    *,
    baseline: Named | None,
    accept: bool,
    as_json: bool,
) -> None:
    """Refine without a simulator, and print what is estimated."""
    from refine.evaluation import OpeConfig

    from ..refinement import AppraiseConfig, appraise, show_estimate

    asked = AppraiseConfig(
        refine=config.refine,
        ope=OpeConfig(seed=config.refine.seed),
        mode=config.gate.mode,
        accept=accept,
        workers=config.workers,
        **({"placebo_draws": config.gate.placebo_draws} if "placebo_draws" in config.gate.model_fields_set else {}),
    )
    with progress_bars() as bars:
        appraisal = appraise(store, dataset_id, asked, run_ids=run_ids, rules=rules, baseline=baseline, report=bars)
    labels = f"{len(appraisal.material.labels)} labels; ESTIMATED, not played"
    _print(f"{dataset_id}: {labels}; baseline: {appraisal.origin.origin}", show_estimate(appraisal), as_json)


def ablate(
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunsOption = None,
    baseline: BaselineOption = None,
    env: TrustOption = None,
    use: Annotated[str, typer.Option("--use", help="Which of A, R and RA, with commas.")] = "A,R,RA",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds, from --seed on.")] = 3,
    expert: ExpertOption = None,
    seed: SeedOption = 0,
    first_seed: FirstSeedOption = None,
    select: SelectOption = None,
    accept: AcceptOption = None,
    report: ReportOption = 100,
    draws: Annotated[int, typer.Option("--draws", min=2, help="Draws of each placebo and training seed.")] = 2,
    gate_mode: GateModeOption = "greedy",
    gate: MethodOption = "racing",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refine with suggestions, with rewards and with both, beside all arms and over several training seeds."""
    from storage.datasets import resolve_dataset
    from storage.store import Store

    from ..refinement import AblateConfig, show_ablation
    from ..refinement import ablate as compare
    from ..simulation import Named

    sizes = {"select": select, "accept": accept, "report": report, "placebo_draws": draws}
    judging = {"first_seed": first_seed, "mode": gate_mode, "method": gate} | sizes
    improve = {"refine": {"seed": seed}, "gate": judging, "workers": workers}
    chosen = {"modes": [mode.strip() for mode in use.split(",") if mode.strip()], "seeds": seeds}
    config = AblateConfig.model_validate(chosen | {"improve": improve | {"random_states": True, "expert": expert}})
    opened = Store.open(store)
    dataset_id = resolve_dataset(opened, dataset)
    named = {"baseline": Named.of(baseline), "env_id": Named.of(env)}
    with progress_bars() as bars:
        found = compare(opened, dataset_id, config, run_ids=run, **named, report=bars)
    first = next(iter(found.outcomes.values()))
    labels = f"{first.n_labels} labels, {seeds} training seeds"
    _print(f"{dataset_id}: {labels}; baseline: {first.baseline.origin}", show_ablation(found), as_json)


def evaluate(
    policy: Annotated[str, typer.Argument(help="Policy id of the store, or a specification as for collect --policy.")],
    store: StoreOption = DEFAULT_STORE,
    env: Annotated[str | None, typer.Option("--env", help="Gymnasium id; default: the one the policy is for.")] = None,
    env_kwargs: EnvKwargsOption = None,
    episodes: Annotated[int, typer.Option(min=2, help="How many episodes.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode.")] = 5_000_000,
    mode: ActingOption = "greedy",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play a policy on fresh seeds: mean return with its 95% bootstrap interval."""
    from refine.evaluation import Interval
    from storage.store import Store

    from ..refinement import EvaluateConfig
    from ..refinement import evaluate as play
    from ..simulation import Named, parse_env_kwargs

    config = EvaluateConfig(
        policy=Named(policy),
        env_id=Named.of(env),
        env_kwargs=parse_env_kwargs(env_kwargs),
        episodes=episodes,
        seed=seed,
        mode=mode,
        workers=workers,
    )
    with Store.create_for(store) as opened, progress_bars() as bars:
        result = play(opened, config, bars)
    if as_json:
        print_json(result)
    else:
        print_lines(
            f"{result['policy_id']}: {Interval(result['return'], result['low'], result['high'], episodes)} ({mode}, "
            f"{episodes} episodes of {result['env_id']}, seeds from {seed})"
        )


@taking(label=label_options, improve=improve_options, collect=collect_options)
def pipeline(
    collect: CollectConfig,
    label: LabelConfig,
    improve: ImproveConfig,
    store: StoreOption = DEFAULT_STORE,
    seed: Annotated[int, typer.Option("--seed", min=0, help="First seed of the episodes, and of the training.")] = 0,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=1, help="Repeat with the policy in force, or with a better list of rules."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Collect, annotate, refine and judge in one Prefect flow; each step resumes what an interruption left.

    It takes the options of `collect`, `annotate` and `refine`.
    """
    from ..runtime import quieten_prefect, served, start_server

    quieten_prefect()
    server = start_server()
    from ..deployment import PipelineConfig, pipeline_flow
    from ..runtime import listening

    config = PipelineConfig(store=store, collect=collect, label=label, improve=improve)
    if rounds is not None:
        _go_round(config, rounds, server, as_json)
        return
    with progress_bars() as bars, listening(bars), served(server):
        outcome = pipeline_flow(config)
    _print_outcome(outcome, as_json)


def _go_round(pipeline: PipelineConfig, rounds: int, server: Server | None, as_json: bool) -> None:
    """Run the rounds, print them, and end with the exit code of a prerequisite where answers are missing.

    Raises:
        Prerequisite: if a round waits for answers.
    """
    from storage.errors import BadInput, Prerequisite

    from ..deployment import rounds_flow
    from ..refinement import RoundsConfig, show_rounds
    from ..runtime import listening, served

    if pipeline.collect is None:
        raise BadInput("Rounds collect, each with another policy.")
    if pipeline.collect.dataset is not None:
        raise BadInput("Each round collects a dataset of its own, so none has this name.", "Leave --dataset out.")
    parts = {"collect": pipeline.collect, "label": pipeline.label, "improve": pipeline.improve}
    config = RoundsConfig.model_validate({"store": pipeline.store, "rounds": rounds, **parts})
    with progress_bars() as bars, listening(bars), served(server):
        series = rounds_flow(config)
    _print(f"{pipeline.collect.env_id}: {len(series.rounds)} of {rounds} rounds", show_rounds(series), as_json)
    if series.waits:
        raise Prerequisite(f"{series.ended[0].upper()}{series.ended[1:]}.", "Run the same command when they are there.")


def demo(
    store: StoreOption = DEFAULT_STORE,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the shipped LunarLander example end to end, with recorded answers: no key, no network, no cost."""
    from ..runtime import listening, start_workers

    if not store.exists():  # else there may be nothing to train
        parts = ("..refinement.arms", "..simulation.workers")
        start_workers(workers, *(resolve_name(part, __package__ or "") for part in parts))
    from ..demo import run_demo  # takes a second, in which the workers start

    with progress_bars() as bars, listening(bars):
        result = run_demo(store, workers)
    replay = result.replay
    if as_json:
        more = {"seconds": result.seconds, "replay_exact": replay.exact, "report": result.report}
        _print_outcome(result.outcome, as_json, more)
        return
    _print_outcome(result.outcome, as_json)
    print_lines(f"replay of episode {replay.episode_id}: {replay.detail}", f"{result.seconds:.0f} seconds")
    print_lines(str(result.report or "a report to look at needs the extra: pip install 'trajnote[plots]'"))


def _print_outcome(outcome: Outcome, as_json: bool, extra: dict[str, Any] | None = None) -> None:
    from ..refinement import show_comparison

    shown = show_comparison(outcome)
    title = f"{outcome.dataset_id}: {outcome.n_labels} labels; baseline: {outcome.baseline.origin}"
    _print(title, shown._replace(values={**shown.values, **(extra or {})}), as_json)


def _print_relabelled(found: Relabelled, as_json: bool) -> None:
    """The rounds, if there are several, and the outcome of the one that counts."""
    from ..refinement import show_relabelling

    outcome = found.best.outcome
    if len(found.rounds) == 1:
        _print_outcome(outcome, as_json)
        return
    shown = show_relabelling(found)
    if not as_json:
        _print(f"{outcome.dataset_id}: {len(found.rounds) - 1} rounds of relabelling", shown, as_json)
    _print_outcome(outcome, as_json, shown.values)


def _print(title: str, shown: Overview, as_json: bool) -> None:
    if as_json:
        print_json(shown.values)
        return
    print_table(title, shown.rows)
    print_lines(*shown.sentences)
