"""The options of commands, each spelled and explained once.

A command that is wrapped by `asks` gets what says what is asked and who answers as one `LabelConfig`; a new option of
that kind is one parameter of `_configure`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from ..labelling import LabelConfig

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
RunOption = Annotated[
    list[str] | None, typer.Option("--run", help="Annotation run whose labels count; repeatable; default: all.")
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
ReportOption = Annotated[int, typer.Option("--report", min=10, help="Episodes that are reported.")]
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


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `_configure`; it receives them as its parameter `config`."""
    own, options = _parameters(command), _parameters(_configure)
    del own["config"]

    def wrapped(**given: Any) -> None:
        config = _configure(**{name: given.pop(name) for name in options})
        command(config=config, **given)

    parameters = [*own.values(), *options.values()]
    vars(wrapped)["__signature__"] = inspect.Signature(parameters)
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    return wrapped


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function, as keywords, with their annotations as objects."""
    hints = get_type_hints(function, localns={"LabelConfig": object}, include_extras=True)  # importing it takes long
    return {
        name: parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(function).parameters.items()
    }


def _configure(
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
        env_id=Named.of(env),
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
