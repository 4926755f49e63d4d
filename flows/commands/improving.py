"""`refine`, `evaluate`, `pipeline` and `demo`: better policies, and the evidence that they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from storage.errors import BadInput

from ..runtime import quieten_prefect
from .options import (
    DEFAULT_STORE,
    ActingOption,
    DatasetOption,
    EnvKwargsOption,
    JsonOption,
    ProviderOption,
    StoreOption,
    TrustOption,
    WorkersOption,
)
from .output import print_json, print_lines, print_table, progress_bars
from .rounding import go_round

if TYPE_CHECKING:
    from storage.store import Store

    from ..refinement import ImproveConfig, Outcome
    from ..simulation import Named

ModeOption = Annotated[
    Literal["A", "R", "RA"],
    typer.Option("--mode", help="A: suggestions; R: implicit rewards; RA: both (arXiv 2505.20671)."),
]
AlgorithmOption = Annotated[
    Literal["recipe", "bc", "dqn", "discrete_cql", "td3_plus_bc", "iql", "awac", "rebrac"],
    typer.Option("--algorithm", help="What learns beside the suggestions; bc and recipe for any actions."),
]
RewardWeightOption = Annotated[
    float, typer.Option("--reward-weight", min=0, help="R: an implicit reward of 1 in units of the environment's.")
]
RewardCapOption = Annotated[
    float | None,
    typer.Option("--reward-cap", help="R: most that a reward may change, in root mean squares of the environment's."),
]
ShapingOption = Annotated[
    Literal["additive", "potential"],
    typer.Option("--shaping", help="R: add implicit rewards, or as potentials, which keep the best policy."),
]
AgreementOption = Annotated[
    bool, typer.Option("--agreement", help="A: a label counts less where annotators of its state disagree.")
]
SupportOption = Annotated[
    float,
    typer.Option(
        "--support", min=0, max=1, help="A: a suggestion less likely than this share of the likeliest counts less."
    ),
]
RampOption = Annotated[
    int, typer.Option("--ramp-steps", min=0, help="A: steps over which the suggestions gain their full weight.")
]
ReferenceOption = Annotated[
    bool,
    typer.Option(
        "--reference",
        help="Train everything with d3rlpy; default: recipe, discrete_cql and td3_plus_bc without it, much faster.",
    ),
]
RobustOption = Annotated[
    bool, typer.Option("--robust", help="Try other readings of the labels too, for annotators who may be wrong.")
]
RunOption = Annotated[
    list[str] | None, typer.Option("--run", help="Annotation run whose labels count; repeatable; default: all.")
]
RulesOption = Annotated[
    bool, typer.Option("--rules", help="Imitate corrective rules at all steps that they match, not single labels.")
]
BaselineOption = Annotated[
    str | None, typer.Option("--baseline", help="Another baseline than the policy that made the dataset.")
]
FirstSeedOption = Annotated[int, typer.Option(min=0, help="First of the gate's seeds: select, accept, report follow.")]
SelectOption = Annotated[
    int | None, typer.Option("--select", min=2, help="Episodes per candidate that choose among them, at most.")
]
AcceptOption = Annotated[
    int | None,
    typer.Option("--accept", min=10, help="Episodes that accept or reject the winner; by racing, at most so many."),
]
MethodOption = Annotated[
    Literal["racing", "full"], typer.Option("--gate", help="racing: stop when it is clear; full: play every episode.")
]
ReportOption = Annotated[int, typer.Option("--report", min=10, help="Episodes that are reported.")]
DrawsOption = Annotated[int, typer.Option("--draws", min=2, help="Draws of the shuffled and the random arm.")]
GateModeOption = Annotated[
    Literal["greedy", "sampled"], typer.Option("--gate-mode", help="How policies act while the gate chooses.")
]
ExpertOption = Annotated[
    str | None, typer.Option("--expert", help="Also the arm oracle: this policy's actions in the labelled states.")
]
RandomStatesOption = Annotated[
    bool, typer.Option("--random-states", help="Also the arm random_states: other states, the annotator's own rules.")
]
EstimateOption = Annotated[
    bool,
    typer.Option("--estimate", help="Play nothing, estimate from the logged steps; so without --env, too."),
]
AcceptEstimateOption = Annotated[
    bool, typer.Option("--accept-estimate", help="Put the refined policy in force on an estimate alone.")
]
LogOption = Annotated[
    Path | None, typer.Option("--log-dir", help="Folder for d3rlpy's logs of the labels' training: CSV, TensorBoard.")
]
TrackOption = Annotated[
    Path | None, typer.Option("--track", help="Folder of trackio, offline: one run per comparison is entered there.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the training and of the placebos.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(refine)
    app.command()(evaluate)
    app.command()(pipeline)
    app.command()(demo)


def refine(
    store: StoreOption = DEFAULT_STORE,
    dataset: DatasetOption = None,
    run: RunOption = None,
    rules: RulesOption = False,
    baseline: BaselineOption = None,
    env: TrustOption = None,
    mode: ModeOption = "A",
    algorithm: AlgorithmOption = "recipe",
    shaping: ShapingOption = "additive",
    reward_weight: RewardWeightOption = 1.0,
    reward_cap: RewardCapOption = None,
    agreement: AgreementOption = False,
    support: SupportOption = 0.0,
    ramp_steps: RampOption = 0,
    robust: RobustOption = False,
    reference: ReferenceOption = False,
    seed: SeedOption = 0,
    first_seed: FirstSeedOption = 1_000_000,
    select: SelectOption = None,
    accept: AcceptOption = None,
    report: ReportOption = 100,
    draws: DrawsOption = 3,
    gate_mode: GateModeOption = "greedy",
    expert: ExpertOption = None,
    random_states: RandomStatesOption = False,
    gate: MethodOption = "racing",
    estimate: EstimateOption = False,
    accept_estimate: AcceptEstimateOption = False,
    log_dir: LogOption = None,
    track: TrackOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refine a dataset's policy with its annotations, beside all controls, and let the gate judge every arm."""
    from storage.datasets import read_manifest, resolve_dataset
    from storage.store import Store

    from ..refinement import improve
    from ..reporting import enter_run, load_tracker
    from ..simulation import Named

    config = _configure(
        refine={
            "mode": mode,
            "algorithm": algorithm,
            "shaping": shaping,
            "reward_weight": reward_weight,
            "reward_cap": reward_cap,
            "agreement": agreement,
            "support": support,
            "ramp_steps": ramp_steps,
            "robust": robust,
            "engine": "reference" if reference else "fast",
            "seed": seed,
        },
        gate={
            "first_seed": first_seed,
            "select": select,
            "accept": accept,
            "report": report,
            "mode": gate_mode,
            "method": gate,
            "placebo_draws": draws,
        },
        workers=workers,
    ).model_copy(update={"expert": Named.of(expert), "random_states": random_states, "log_dir": log_dir})
    opened, named = Store.open(store), Named.of(baseline)
    dataset_id = resolve_dataset(opened, dataset)
    if estimate or read_manifest(opened, dataset_id).env_id is None:
        if expert or random_states:
            raise BadInput("An estimate has no arms beside the placebos.", "Leave --expert and --random-states out.")
        if log_dir or track:
            raise BadInput("An estimate is neither logged nor tracked.", "Leave --log-dir and --track out.")
        _appraise(opened, dataset_id, config, run, rules, baseline=named, accept=accept_estimate, as_json=as_json)
        return
    if accept_estimate:
        raise BadInput("--accept-estimate is for estimates; the simulator judges this dataset.", "Add --estimate.")
    if track is not None:
        load_tracker(track)  # what is missing is told before hours of work
    with progress_bars() as bars:
        outcome = improve(
            opened, dataset_id, config, run_ids=run, rules=rules, baseline=named, env_id=Named.of(env), report=bars
        )
    if track is not None:
        enter_run(opened, outcome, config, track)
    _tell(outcome, as_json)


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
    """Refine without a simulator, and tell what is estimated."""
    from refine.evaluation import OpeConfig

    from ..estimation import AppraiseConfig, appraise, estimate_rows, estimate_sentences
    from ..estimation import estimate_json as to_json

    asked = AppraiseConfig(
        refine=config.refine,
        ope=OpeConfig(seed=config.refine.seed),
        mode=config.gate.mode,
        placebo_draws=config.gate.placebo_draws,
        accept=accept,
        workers=config.workers,
    )
    with progress_bars() as bars:
        appraisal = appraise(store, dataset_id, asked, run_ids=run_ids, rules=rules, baseline=baseline, report=bars)
    if as_json:
        print_json(to_json(appraisal))
        return
    labels = len(appraisal.material.labels)
    print_table(
        f"{dataset_id}: {labels} labels; ESTIMATED, not played; baseline: {appraisal.origin.origin}",
        estimate_rows(appraisal),
    )
    print_lines(*estimate_sentences(appraisal))


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


def pipeline(
    env: Annotated[str, typer.Option("--env", help="Gymnasium id.")],
    policy: Annotated[str, typer.Option("--policy", help="As for collect.")],
    store: StoreOption = DEFAULT_STORE,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to collect.")] = 30,
    seed: SeedOption = 0,
    provider: ProviderOption = "anthropic",
    answers: Annotated[Path | None, typer.Option("--answers", help="Recorded answers, or replies to import.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask.")] = None,
    card: Annotated[
        str | None, typer.Option("--card", help="TOML card; default: the environment's packaged one.")
    ] = None,
    mode: ModeOption = "A",
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Go on with what is in force, at most so many times.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Annotate only so many episodes.")] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Collect, annotate, refine and judge in one Prefect flow; each step resumes what an interruption left."""
    from ..runtime import served, start_server

    quieten_prefect()
    server = start_server()
    from annotate.prompting import AnnotateConfig

    from ..datasets import CollectConfig
    from ..deployment import PipelineConfig, pipeline_flow
    from ..labelling import LabelConfig
    from ..runtime import listening
    from ..simulation import Named

    asked = AnnotateConfig(model=model) if model else AnnotateConfig()
    config = PipelineConfig(
        store=store,
        collect=CollectConfig(env_id=Named(env), policy=Named(policy), episodes=episodes, seed=seed, mode="sampled"),
        label=LabelConfig(provider=provider, answers=answers, annotate=asked, card=card, limit=limit),
        improve=_configure(refine={"mode": mode, "seed": seed}, gate={}, workers=workers),
    )
    if rounds is not None:
        go_round(config, rounds, server, as_json)
        return
    with progress_bars() as bars, listening(bars), served(server):
        outcome = pipeline_flow(config)
    _tell(outcome, as_json)


def demo(
    store: StoreOption = DEFAULT_STORE,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the shipped LunarLander example end to end, with recorded answers: no key, no network, no cost."""
    from ..runtime import start_server

    quieten_prefect()
    server = start_server()
    from ..demo import run_demo
    from ..runtime import listening

    with progress_bars() as bars, listening(bars):
        result = run_demo(store, workers, server)
    replay = result.replay
    if as_json:
        more = {"seconds": result.seconds, "replay_exact": replay.exact, "report": result.report}
        _tell(result.outcome, as_json, more)
        return
    _tell(result.outcome, as_json)
    print_lines(f"replay of episode {replay.episode_id}: {replay.detail}", f"{result.seconds:.0f} seconds")
    print_lines(str(result.report or "a report to look at needs the extra: pip install 'trajnote[plots]'"))


def _configure(refine: dict[str, Any], gate: dict[str, Any], workers: int | None) -> ImproveConfig:
    from refine.config import RefineConfig

    from ..refinement import GateConfig, ImproveConfig

    return ImproveConfig(
        refine=RefineConfig.model_validate(refine), gate=GateConfig.model_validate(gate), workers=workers
    )


def _tell(outcome: Outcome, as_json: bool, extra: dict[str, Any] | None = None) -> None:
    from ..refinement import comparison_json as to_json
    from ..refinement import comparison_rows, comparison_sentences

    if as_json:
        print_json({**to_json(outcome), **(extra or {})})
        return
    print_table(
        f"{outcome.dataset_id}: {outcome.n_labels} labels; baseline: {outcome.baseline.origin}",
        comparison_rows(outcome),
    )
    print_lines(*comparison_sentences(outcome), *(f"{name}: {value}" for name, value in (extra or {}).items()))
