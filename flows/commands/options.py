"""The options of commands, each spelled and explained once.

A command that is `taking` options of a builder gets what they say as one object: what is asked and who answers, as a
`LabelConfig`, or what is learned and how it is judged, as an `ImproveConfig`. A new option of such a kind is one
parameter of the builder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from ..datasets import CollectConfig
    from ..labelling import LabelConfig
    from ..refinement import ImproveConfig

DEFAULT_STORE = Path("trajnote-store")
StoreOption = Annotated[
    Path, typer.Option("--store", envvar="TRAJNOTE_STORE", help="Folder of the store.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="Dataset id or a unique beginning of it; default: the newest one.")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one per core.")]
ProviderOption = Annotated[
    Literal["anthropic", "batch", "file", "recorded"], typer.Option("--provider", help="Who answers.")
]
ActingOption = Annotated[
    Literal["greedy", "sampled"],
    typer.Option("--mode", help="The likeliest action, or one drawn from the distribution."),
]
EnvKwargsOption = Annotated[str | None, typer.Option("--env-kwargs", help="Arguments of gymnasium.make, as JSON.")]
TrustOption = Annotated[
    str | None,
    typer.Option("--env", help="The dataset's environment, where it came with the data and you trust its module."),
]
PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy",
        help="random, policy:PATH_OR_ID, rules:LIST_ID, d3rlpy:PATH, sb3:ALGO:PATH, torch:PATH, onnx:PATH or "
        "py:MODULE:CALLABLE. "
        "Files of d3rlpy are pickles: load only what you trust.",
    ),
]
EnvOption = Annotated[str, typer.Option("--env", help="Gymnasium id, or module:EnvId or file.py:Class of your own.")]
EpisodesOption = Annotated[int, typer.Option("--episodes", min=1, help="How many episodes.")]
MaxStepsOption = Annotated[int | None, typer.Option("--max-steps", min=1, help="Truncate longer episodes there.")]
EnvsOption = Annotated[int, typer.Option("--envs", min=1, help="Environments side by side; never changes the result.")]
EngineOption = Annotated[
    Literal["gymnasium", "envpool"],
    typer.Option("--engine", help="Whose code the environment runs in; envpool is faster, and its physics may differ."),
]
TrustFileOption = Annotated[
    bool, typer.Option("--trust", help="sb3: let the library load the file, which runs the code in it.")
]
RawOption = Annotated[
    bool, typer.Option("--no-normalisation", help="sb3: play on observations as they are, whatever lies beside it.")
]
DatasetNameOption = Annotated[str | None, typer.Option("--dataset", help="Name; default: made from the content.")]
CardOption = Annotated[
    str | None, typer.Option("--card", help="TOML card; default: the dataset's own, or else the packaged one.")
]
NewCardOption = Annotated[str | None, typer.Option("--card", help="TOML card that names components and actions.")]
CardArgument = Annotated[str, typer.Argument(help="Gymnasium id, or path of a TOML card.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model to ask, as its server calls it.")]
AnswersOption = Annotated[
    Path | None, typer.Option("--answers", help="file: replies to import; recorded: file or folder of answers.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Most episodes to annotate.")]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        help="Server that speaks the Messages API (Ollama, LiteLLM, ...), or bedrock[:REGION], vertex[:REGION].",
    ),
]
ConcurrencyOption = Annotated[int, typer.Option("--concurrency", min=1, max=64, help="Requests under way at once.")]
BudgetOption = Annotated[
    float | None, typer.Option("--budget", min=0.0, help="Dollars this run may cost over all its commands, at most.")
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", min=256, help="Cap on a reply; default: what the server allows the model, or else 12,000."
    ),
]
RunsOption = Annotated[
    list[str] | None,
    typer.Option("--run", help="Annotation run, or the beginning of its id; repeatable; default: all."),
]
UseOption = Annotated[
    Literal["A", "R", "RA"],
    typer.Option("--use", help="A: suggestions; R: implicit rewards; RA: both (the modes of arXiv 2505.20671)."),
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
BetasOption = Annotated[
    str | None,
    typer.Option(
        "--betas",
        help="Weights of the distance to the baseline, with commas, one training each; default: 0.1,0.3, "
        "and 0.03,0.1 for continuous actions.",
    ),
]
SnapshotsOption = Annotated[
    str | None,
    typer.Option(
        "--snapshots",
        help="Training steps after which a candidate is kept, with commas, up to 10000; default: by the actions, "
        "and by the share of the steps that are labelled.",
    ),
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
RulesOption = Annotated[
    bool, typer.Option("--rules", help="Imitate corrective rules at all steps that they match, not single labels.")
]
BaselineOption = Annotated[
    str | None, typer.Option("--baseline", help="Another baseline than the policy that made the dataset.")
]
FirstSeedOption = Annotated[
    int | None, typer.Option(min=0, help="First of the gate's seeds; default: the first ones that nothing has used.")
]
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
ReportOption = Annotated[
    int,
    typer.Option("--report", min=10, help="Episodes that are reported; half as many in the mode of no verdict."),
]
DrawsOption = Annotated[
    int | None,
    typer.Option("--draws", min=2, help="Draws of each placebo, at most; default: 19, and 3 with --estimate."),
]
GateModeOption = Annotated[
    Literal["greedy", "sampled"], typer.Option("--gate-mode", help="How policies act while the gate chooses.")
]
ExpertOption = Annotated[
    str | None, typer.Option("--expert", help="Also the arm oracle: this policy's actions in the labelled states.")
]
RandomStatesOption = Annotated[
    bool, typer.Option("--random-states", help="Also the arm random_states: other states, the annotator's own rules.")
]
PromoteRulesOption = Annotated[
    bool, typer.Option("--promote-rules", help="The rules themselves may win and be put in force.")
]
PromoteOption = Annotated[
    Literal["labels", "best"],
    typer.Option("--promote", help="What may be put in force: the labels' policy, or the best accepted arm's."),
]
RelabelOption = Annotated[
    int,
    typer.Option("--relabel", min=0, help="Rounds in which the learner plays and its rules label what it played."),
]
EstimateOption = Annotated[
    bool,
    typer.Option("--estimate", help="Play nothing, estimate from logged steps; the default without an environment."),
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


def taking(**builders: Callable[..., object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of builders; it receives what each builds as its parameter of that name.

    An option of the command's own takes the place of a builder's of the same name, and the builder gets its value.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own, options = _parameters(command), {name: _parameters(each) for name, each in builders.items()}
        for name in builders:
            del own[name]

        def wrapped(**given: Any) -> None:
            built = {name: builders[name](**{each: given[each] for each in options[name]}) for name in builders}
            command(**{name: given[name] for name in own}, **built)

        parameters = {name: each for known in [*options.values(), own] for name, each in known.items()}
        needed = [name for name, each in parameters.items() if each.default is inspect.Parameter.empty]
        ordered = {name: parameters[name] for name in [*needed, *own, *parameters]}
        vars(wrapped)["__signature__"] = inspect.Signature(list(ordered.values()))
        wrapped.__annotations__ = {name: each.annotation for name, each in ordered.items()}
        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        return wrapped

    return decorate


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function, as keywords, with their annotations as objects."""
    configs = {"CollectConfig": object, "LabelConfig": object, "ImproveConfig": object}  # importing them takes long
    hints = get_type_hints(function, localns=configs, include_extras=True)
    return {
        name: parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(function).parameters.items()
    }


def collect_options(
    env: EnvOption,
    policy: PolicyOption,
    episodes: EpisodesOption = 30,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode; episode i has seed + i.")] = 0,
    mode: ActingOption = "sampled",
    env_kwargs: EnvKwargsOption = None,
    max_steps: MaxStepsOption = None,
    envs: EnvsOption = 64,
    workers: WorkersOption = None,
    engine: EngineOption = "gymnasium",
    dataset: DatasetNameOption = None,
    trust: TrustFileOption = False,
    no_normalisation: RawOption = False,
) -> CollectConfig:
    """What the options of collecting say."""
    from ..datasets import CollectConfig
    from ..policies import with_options
    from ..simulation import Named, parse_env_kwargs

    return CollectConfig(
        env_id=Named(env),
        env_kwargs=parse_env_kwargs(env_kwargs),
        engine=engine,
        policy=Named(with_options(policy, trust=trust, raw=no_normalisation)),
        mode=mode,
        episodes=episodes,
        seed=seed,
        envs=envs,
        workers=workers,
        max_steps=max_steps,
        dataset=dataset,
    )


def label_options(
    provider: ProviderOption = "anthropic",
    model: ModelOption = None,
    answers: AnswersOption = None,
    labels: Annotated[int, typer.Option(min=1, help="Labels asked for per episode, one for each window.")] = 8,
    rows: Annotated[
        int | None, typer.Option(min=4, help="Rows of an episode's table; default: five per label.")
    ] = None,
    limit: LimitOption = None,
    choose: Annotated[
        Literal["first", "stratified", "novel", "failing"],
        typer.Option(
            "--choose",
            help="Which episodes, with --limit: the first, evenly over returns and lengths, unlike, or failing ones.",
        ),
    ] = "first",
    choose_seed: Annotated[int, typer.Option("--choose-seed", min=0, help="Seed of that choice.")] = 0,
    two_stage: Annotated[
        bool, typer.Option("--two-stage", help="Identify critical steps first, suggest actions in a second call.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Independent answers per episode.")] = 1,
    frames: Annotated[
        bool, typer.Option("--frames", help="Show a picture of the critical steps in the second stage.")
    ] = False,
    study: Annotated[
        bool, typer.Option("--study", help="First ask for a playbook of the whole dataset, which every reader gets.")
    ] = False,
    env: TrustOption = None,
    kind: Annotated[
        Literal["labels", "rules"],
        typer.Option("--kind", help="Labels of steps, or corrective rules: conditions on the state, with an action."),
    ] = "labels",
    max_rules: Annotated[int, typer.Option("--max-rules", min=1, max=40, help="rules: how many to ask for.")] = 10,
    tables: Annotated[int, typer.Option(min=1, max=50, help="rules: episodes shown, worst to best.")] = 4,
    card: CardOption = None,
    base_url: BaseUrlOption = None,
    concurrency: ConcurrencyOption = 4,
    budget: BudgetOption = None,
    max_tokens: MaxTokensOption = None,
    batch_size: Annotated[int, typer.Option(min=1, max=100_000, help="batch: most requests in each.")] = 1_000,
    batches: Annotated[int, typer.Option(min=1, max=100, help="batch: under way at once.")] = 4,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="batch: ask again what was refused or came back too often.")
    ] = False,
    count: Annotated[
        bool, typer.Option("--count", help="plan: let the server count the tokens of some requests, for free.")
    ] = False,
) -> LabelConfig:
    """What the options of asking say."""
    from annotate.ledger import BatchConfig
    from annotate.prompting import AnnotateConfig

    from ..labelling import LabelConfig
    from ..simulation import Named

    asked: dict[str, Any] = {
        "windows": labels,
        "rows": rows or 5 * labels,
        "two_stage": two_stage,
        "samples": samples,
        "frames": frames,
        "kind": kind,
        "rules": max_rules,
        "tables": tables,
    }
    return LabelConfig(
        provider=provider,
        annotate=AnnotateConfig.model_validate(asked | ({"model": model} if model else {})),
        env_id=None if env is None else Named(env),
        card=card,
        study=study,
        limit=limit,
        select=choose,
        select_seed=choose_seed,
        answers=answers,
        base_url=base_url,
        concurrency=concurrency,
        budget_usd=budget,
        max_tokens=max_tokens,
        batch=BatchConfig(size=batch_size, in_flight=batches, retry_failed=retry_failed),
        count=count,
    )


def improve_options(
    use: UseOption = "A",
    algorithm: AlgorithmOption = "recipe",
    betas: BetasOption = None,
    snapshots: SnapshotsOption = None,
    shaping: ShapingOption = "additive",
    reward_weight: RewardWeightOption = 1.0,
    reward_cap: RewardCapOption = None,
    agreement: AgreementOption = False,
    support: SupportOption = 0.0,
    ramp_steps: RampOption = 0,
    robust: RobustOption = False,
    reference: ReferenceOption = False,
    seed: SeedOption = 0,
    first_seed: FirstSeedOption = None,
    select: SelectOption = None,
    accept: AcceptOption = None,
    report: ReportOption = 100,
    draws: DrawsOption = None,
    gate_mode: GateModeOption = "greedy",
    gate: MethodOption = "racing",
    expert: ExpertOption = None,
    random_states: RandomStatesOption = False,
    promote_rules: PromoteRulesOption = False,
    promote: PromoteOption = "labels",
    relabel: RelabelOption = 0,
    log_dir: LogOption = None,
    workers: WorkersOption = None,
) -> ImproveConfig:
    """What the options of a refinement say."""
    from refine.config import RefineConfig

    from ..refinement import GateConfig, ImproveConfig
    from ..simulation import Named

    refine = {
        "mode": use,
        "algorithm": algorithm,
        "betas": None if betas is None else betas.split(","),
        "snapshots": None if snapshots is None else snapshots.split(","),
        "shaping": shaping,
        "reward_weight": reward_weight,
        "reward_cap": reward_cap,
        "agreement": agreement,
        "support": support,
        "ramp_steps": ramp_steps,
        "robust": robust,
        "engine": "reference" if reference else "fast",
        "seed": seed,
    }
    sizes = {"first_seed": first_seed, "select": select, "accept": accept, "report": report}
    judging = {"mode": gate_mode, "method": gate} | ({} if draws is None else {"placebo_draws": draws})
    return ImproveConfig(
        refine=RefineConfig.model_validate(refine),
        gate=GateConfig.model_validate(sizes | judging),
        random_states=random_states,
        expert=None if expert is None else Named(expert),
        promote_rules=promote_rules,
        promote=promote,
        relabel=relabel,
        log_dir=log_dir,
        workers=workers,
    )
