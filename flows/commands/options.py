"""The options of commands, each spelled and explained once.

A command that is `taking` options of a class gets what they say as one object: what is asked and who answers, as a
`LabelConfig`, or what is learned and how it is judged, as an `ImproveConfig`. A new option of such a kind is one field
of the class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, get_type_hints

import typer

from annotate import ledger, prompting
from storage import annotations as annotated
from storage import datasets as stored

from .. import datasets, labelling, policies, refinement, simulation

if TYPE_CHECKING:
    from storage.store import Store

DEFAULT_STORE = Path("trajnote-store")
StoreOption = Annotated[
    Path, typer.Option("--store", envvar="TRAJNOTE_STORE", help="Folder of the store.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="Dataset id or a unique prefix of it; default: the newest.")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one per core.")]
ActingOption = Annotated[
    Literal["greedy", "sampled"],
    typer.Option("--mode", help="Take the likeliest action, or one drawn from the distribution."),
]
EnvKwargsOption = Annotated[str | None, typer.Option("--env-kwargs", help="Arguments of gymnasium.make, as JSON.")]
TrustOption = Annotated[
    str | None,
    typer.Option("--env", help="The dataset's environment, if only the data name it and you trust its module."),
]
DatasetNameOption = Annotated[
    str | None, typer.Option("--dataset", help="Name of the dataset; default: made from its content.")
]
NewCardOption = Annotated[str | None, typer.Option("--card", help="TOML card that names components and actions.")]
CardArgument = Annotated[str, typer.Argument(help="Gymnasium id, or path of a TOML card.")]
RunsOption = Annotated[
    list[str] | None,
    typer.Option("--run", help="Annotation run id, or a unique prefix; repeatable; default: all."),
]
BaselineOption = Annotated[
    str | None, typer.Option("--baseline", help="Baseline; default: the policy that made the dataset.")
]


def open_store(folder: Path) -> Store:
    """Open the store of a command."""
    from storage.store import Store  # DuckDB takes a while to load, and help does without it

    return Store.open(folder)


def open_dataset(folder: Path, name: str | None, *, ruled: bool = False) -> tuple[Store, str]:
    """Open the store of a command, and find its dataset: the one named, or the newest, among those with rules if so."""
    find = annotated.resolve_ruled_dataset if ruled else stored.resolve_dataset
    store = open_store(folder)
    return store, find(store, name)


class Options(Protocol):
    """Options of a command as fields, each with its default."""

    def config(self) -> object:
        """What they say."""
        ...


def taking(**kinds: Callable[..., Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of classes; it receives what each says as its parameter of that name.

    A parameter that is annotated with the class receives the options themselves. An option of the command's own takes
    the place of a class's of the same name, and the class gets its value.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        # what is not a class of options is a configuration, whose type takes long to import
        unread = {name for name, kind in kinds.items() if command.__annotations__.pop(name) == kind.__name__}
        own, options = _parameters(command), {name: _parameters(kind) for name, kind in kinds.items()}

        def wrapped(**given: Any) -> None:
            taken = {name: kinds[name](**{each: given[each] for each in options[name]}) for name in kinds}
            built = {name: each if name in unread else each.config() for name, each in taken.items()}
            command(**{name: given[name] for name in own}, **built)

        parameters = {name: each for known in [*options.values(), own] for name, each in known.items()}
        needed = [name for name, each in parameters.items() if each.default is inspect.Parameter.empty]
        ordered = {name: parameters[name] for name in [*needed, *own, *parameters]}
        vars(wrapped)["__signature__"] = inspect.Signature(list(ordered.values()))
        wrapped.__annotations__ = {name: each.annotation for name, each in ordered.items()}
        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        return wrapped

    return decorate


def _parameters(taker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The annotated parameters of a function or class, as keywords, with their annotations as objects."""
    hints, known = get_type_hints(taker, include_extras=True), inspect.signature(taker).parameters
    keyword = inspect.Parameter.KEYWORD_ONLY
    return {name: known[name].replace(annotation=hints[name], kind=keyword) for name in known if name in hints}


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """The options of collecting."""

    env: Annotated[str, typer.Option(help="Gymnasium id, or your own module:EnvId or file.py:Class.")]
    policy: Annotated[
        str,
        typer.Option(
            help="random, policy:PATH_OR_ID, rules:LIST_ID, d3rlpy:PATH, sb3:ALGO:PATH, torch:PATH, onnx:PATH or "
            "py:MODULE:CALLABLE. "
            "Files of d3rlpy are pickles: load only what you trust."
        ),
    ]
    episodes: Annotated[int, typer.Option(min=1, help="How many episodes.")] = 30
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode; episode i has seed + i.")] = 0
    mode: ActingOption = "sampled"
    env_kwargs: EnvKwargsOption = None
    max_steps: Annotated[int | None, typer.Option(min=1, help="Truncate episodes after so many steps.")] = None
    envs: Annotated[int, typer.Option(min=1, help="Environments played side by side; does not change the result.")] = 64
    workers: WorkersOption = None
    engine: Annotated[
        Literal["gymnasium", "envpool"],
        typer.Option(help="What runs the environment; envpool is faster, and its physics may differ."),
    ] = "gymnasium"
    dataset: DatasetNameOption = None
    trust: Annotated[
        bool, typer.Option("--trust", help="sb3: let the library load the file, which runs the code in it.")
    ] = False
    no_normalisation: Annotated[
        bool,
        typer.Option("--no-normalisation", help="sb3: use raw observations, even if statistics lie beside the file."),
    ] = False

    def config(self) -> datasets.CollectConfig:
        """What is collected."""
        policy = policies.with_options(self.policy, trust=self.trust, raw=self.no_normalisation)
        return datasets.CollectConfig(
            env_id=simulation.Named(self.env),
            env_kwargs=simulation.parse_env_kwargs(self.env_kwargs),
            engine=self.engine,
            policy=simulation.Named(policy),
            mode=self.mode,
            episodes=self.episodes,
            seed=self.seed,
            envs=self.envs,
            workers=self.workers,
            max_steps=self.max_steps,
            dataset=self.dataset,
        )


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Who answers, and for how much."""

    provider: Annotated[Literal["anthropic", "batch", "file", "recorded"], typer.Option(help="Who answers.")] = (
        "anthropic"
    )
    answers: Annotated[
        Path | None, typer.Option(help="file: replies to import; recorded: file or folder of answers.")
    ] = None
    base_url: Annotated[
        str | None,
        typer.Option(
            help="Server that speaks the Messages API (Ollama, LiteLLM, ...), or bedrock[:REGION], vertex[:REGION]."
        ),
    ] = None
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests in flight at once.")] = 4
    budget: Annotated[
        float | None, typer.Option(min=0.0, help="Cap in dollars for this run, over all its commands.")
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=256, help="Tokens of a reply at most; default: what the server allows the model, else 12,000."
        ),
    ] = None

    def config(self) -> labelling.LabelConfig:
        """Who answers, for a run that knows what it asks."""
        return self.answering()

    def answering(self, **asked: Any) -> labelling.LabelConfig:
        """Who answers, and what is asked."""
        return labelling.LabelConfig(
            provider=self.provider,
            answers=self.answers,
            base_url=self.base_url,
            concurrency=self.concurrency,
            budget_usd=self.budget,
            max_tokens=self.max_tokens,
            **asked,
        )


@dataclass(frozen=True, kw_only=True)
class LabelOptions(AnswerOptions):
    """What is asked, and who answers."""

    model: Annotated[str | None, typer.Option(help="Model to ask, by its name on the server.")] = None
    labels: Annotated[int, typer.Option(min=1, help="Labels asked for per episode, one for each window.")] = 8
    rows: Annotated[int | None, typer.Option(min=4, help="Rows of an episode's table; default: five per label.")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Annotate at most so many episodes.")] = None
    choose: Annotated[
        Literal["first", "stratified", "novel", "failing"],
        typer.Option(
            help="Episodes, with --limit: the first, evenly by return and length, most dissimilar, or failing."
        ),
    ] = "first"
    choose_seed: Annotated[int, typer.Option(min=0, help="Seed of that choice.")] = 0
    two_stage: Annotated[
        bool,
        typer.Option("--two-stage", help="Identify critical steps first, and suggest actions in a second request."),
    ] = False
    samples: Annotated[int, typer.Option(min=1, help="Independent answers per episode.")] = 1
    frames: Annotated[
        bool, typer.Option("--frames", help="Show a picture of the critical steps in the second stage.")
    ] = False
    study: Annotated[
        bool, typer.Option("--study", help="First ask for a playbook of the whole dataset, shown in every request.")
    ] = False
    env: TrustOption = None
    kind: Annotated[
        Literal["labels", "rules"],
        typer.Option(help="Ask for labels of steps, or for corrective rules: conditions on the state, with an action."),
    ] = "labels"
    max_rules: Annotated[int, typer.Option(min=1, max=40, help="rules: how many to ask for.")] = 10
    tables: Annotated[int, typer.Option(min=1, max=50, help="rules: episodes shown, worst to best.")] = 4
    card: Annotated[str | None, typer.Option(help="TOML card; default: the dataset's own, else the packaged one.")] = (
        None
    )
    batch_size: Annotated[int, typer.Option(min=1, max=100_000, help="batch: requests per batch, at most.")] = 1_000
    batches: Annotated[int, typer.Option(min=1, max=100, help="batch: batches in flight at once.")] = 4
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="batch: ask again requests that have failed.")
    ] = False
    count: Annotated[
        bool, typer.Option("--count", help="plan: let the server count the tokens of some requests, which is free.")
    ] = False

    def config(self) -> labelling.LabelConfig:
        """What is asked, and who answers."""
        alike = ("two_stage", "samples", "frames", "kind", "tables")
        asked = {
            "windows": self.labels,
            "rows": self.rows or 5 * self.labels,
            "rules": self.max_rules,
            **{name: getattr(self, name) for name in alike},
            **({"model": self.model} if self.model else {}),
        }
        return self.answering(
            annotate=prompting.AnnotateConfig.model_validate(asked),
            env_id=simulation.Named.of(self.env),
            card=self.card,
            study=self.study,
            limit=self.limit,
            select=self.choose,
            select_seed=self.choose_seed,
            batch=ledger.BatchConfig(size=self.batch_size, in_flight=self.batches, retry_failed=self.retry_failed),
            count=self.count,
        )


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """What learns from the labels."""

    use: Annotated[
        Literal["A", "R", "RA"],
        typer.Option(help="A: suggestions; R: implicit rewards; RA: both (the modes of arXiv 2505.20671)."),
    ] = "A"
    algorithm: Annotated[
        Literal["recipe", "bc", "dqn", "discrete_cql", "td3_plus_bc", "iql", "awac", "rebrac"],
        typer.Option(help="What the policy learns beside the suggestions; recipe and bc fit any actions."),
    ] = "recipe"
    betas: Annotated[
        str | None,
        typer.Option(
            help="Weights of the distance to the baseline, comma-separated, one training each; default: 0.1,0.3, "
            "or 0.03,0.1 for continuous actions."
        ),
    ] = None
    snapshots: Annotated[
        str | None,
        typer.Option(
            help="Training steps after which a candidate is kept, comma-separated, up to 10000; the default depends on "
            "the actions and on the share of labelled steps."
        ),
    ] = None
    shaping: Annotated[
        Literal["additive", "potential"],
        typer.Option(help="R: add implicit rewards, or differences of a potential, which keep the best policy."),
    ] = "additive"
    reward_weight: Annotated[float, typer.Option(min=0, help="R: what an implicit reward of 1 adds to a reward.")] = 1.0
    reward_cap: Annotated[
        float | None,
        typer.Option(help="R: cap on what is added to a reward, in root mean squares of the environment's."),
    ] = None
    agreement: Annotated[
        bool, typer.Option("--agreement", help="A: give labels less weight where annotators of the state disagree.")
    ] = False
    support: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="A: give suggestions less likely than this share of the likeliest less weight."
        ),
    ] = 0.0
    ramp_steps: Annotated[
        int, typer.Option(min=0, help="A: training steps until the suggestions have their full weight.")
    ] = 0
    robust: Annotated[
        bool, typer.Option("--robust", help="Also try other readings of the labels, in case the annotator is wrong.")
    ] = False
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            help="Train everything with d3rlpy; by default recipe, discrete_cql and td3_plus_bc use a faster engine.",
        ),
    ] = False

    def learning(self) -> dict[str, Any]:
        """What they say, as a `RefineConfig` has it."""
        alike = ("algorithm", "shaping", "reward_weight", "reward_cap", "agreement", "support", "ramp_steps", "robust")
        return {
            "mode": self.use,
            "betas": None if self.betas is None else self.betas.split(","),
            "snapshots": None if self.snapshots is None else self.snapshots.split(","),
            "engine": "reference" if self.reference else "fast",
            **{name: getattr(self, name) for name in alike},
        }


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """How a refinement is judged."""

    seed: Annotated[int, typer.Option(min=0, help="Seed of the training and of the placebos.")] = 0
    first_seed: Annotated[
        int | None,
        typer.Option(min=0, help="First of the gate's seeds; default: the first unused ones."),
    ] = None
    select: Annotated[
        int | None, typer.Option(min=2, help="Episodes per candidate for choosing the winner, at most.")
    ] = None
    accept: Annotated[
        int | None, typer.Option(min=10, help="Episodes for accepting or rejecting the winner; with racing, at most.")
    ] = None
    report: Annotated[
        int, typer.Option(min=10, help="Episodes that are reported; half as many in the mode without a verdict.")
    ] = 100
    draws: Annotated[
        int | None, typer.Option(min=2, help="Draws of each placebo, at most; default: 19, or 3 with --estimate.")
    ] = None
    gate_mode: Annotated[
        Literal["greedy", "sampled"], typer.Option(help="How policies act while the gate chooses and decides.")
    ] = "greedy"
    gate: Annotated[
        Literal["racing", "full"], typer.Option(help="racing: stop when the result is clear; full: play every episode.")
    ] = "racing"
    expert: Annotated[
        str | None, typer.Option(help="Add the arm oracle: this policy's actions in the labelled states.")
    ] = None
    workers: WorkersOption = None

    def config(self) -> refinement.ImproveConfig:
        """A refinement, and how it is judged."""
        return self.improving()

    def improving(self, learning: Mapping[str, Any] | None = None, **others: Any) -> refinement.ImproveConfig:
        """A refinement that is judged so; it learns as a `RefineConfig` says and differs in other fields."""
        from refine.config import RefineConfig

        sizes = {name: getattr(self, name) for name in ("first_seed", "select", "accept", "report")}
        draws = {} if self.draws is None else {"placebo_draws": self.draws}
        judging = {"mode": self.gate_mode, "method": self.gate, **sizes, **draws}
        return refinement.ImproveConfig(
            refine=RefineConfig.model_validate({"seed": self.seed, **(learning or {})}),
            gate=refinement.GateConfig.model_validate(judging),
            expert=simulation.Named.of(self.expert),
            workers=self.workers,
            **others,
        )


@dataclass(frozen=True, kw_only=True)
class ImproveOptions(GateOptions, LearnOptions):
    """What is learned, how it is judged, and what of it may be put in force."""

    random_states: Annotated[
        bool,
        typer.Option("--random-states", help="Add the arm random_states: random states, each with the nearest label."),
    ] = False
    promote_rules: Annotated[
        bool, typer.Option("--promote-rules", help="Let the rules themselves win and be put in force.")
    ] = False
    promote: Annotated[
        Literal["labels", "best"],
        typer.Option(help="What may be put in force: the labels' policy, or the best accepted arm's."),
    ] = "labels"
    relabel: Annotated[
        int, typer.Option(min=0, help="Rounds in which the learner plays and the rules label its steps.")
    ] = 0
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder for d3rlpy's logs of the labels' training: CSV, TensorBoard.")
    ] = None

    def config(self) -> refinement.ImproveConfig:
        """A refinement, and how it is judged."""
        named = ("random_states", "promote_rules", "promote", "relabel", "log_dir")
        return self.improving(self.learning(), **{name: getattr(self, name) for name in named})
