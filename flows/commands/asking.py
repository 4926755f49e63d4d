"""The options that say what is asked and who answers, once for all commands of `annotate`.

A command that is wrapped by `asks` gets them as one `LabelConfig`; a new option is one parameter of `_configure`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import ProviderOption, TrustOption

if TYPE_CHECKING:
    from ..labelling import LabelConfig


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it receives them as its parameter `config`."""
    own = [name for name in inspect.signature(command).parameters if name != "config"]
    options = inspect.signature(_configure).parameters

    def wrapped(**given: Any) -> None:
        config = _configure(**{name: given.pop(name) for name in options})
        command(config=config, **given)

    parameters = [*(_parameter(command, name) for name in own), *(_parameter(_configure, name) for name in options)]
    vars(wrapped)["__signature__"] = inspect.Signature(parameters)
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    return wrapped


def _parameter(function: Callable[..., Any], name: str) -> inspect.Parameter:
    """A parameter with its annotation evaluated, as keyword."""
    parameter = inspect.signature(function).parameters[name]
    names = vars(inspect.getmodule(function))
    annotation = eval(parameter.annotation, names) if isinstance(parameter.annotation, str) else parameter.annotation
    return parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY)


def _configure(
    provider: ProviderOption = "anthropic",
    model: Annotated[str | None, typer.Option(help="Model to ask, as its server calls it.")] = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", help="file: replies to take in; recorded: file or folder of answers.")
    ] = None,
    labels: Annotated[int, typer.Option(min=1, help="Labels asked for per episode, one for each window.")] = 8,
    rows: Annotated[
        int | None, typer.Option(min=4, help="Rows of an episode's table; default: five per label.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Annotate only so many episodes.")] = None,
    select: Annotated[
        Literal["first", "stratified", "novel", "failing"],
        typer.Option(
            help="Which episodes, with --limit: the first, evenly over returns and lengths, unlike, or failing ones."
        ),
    ] = "first",
    select_seed: Annotated[int, typer.Option(min=0, help="Seed of that choice.")] = 0,
    two_stage: Annotated[
        bool, typer.Option("--two-stage", help="Identify critical steps first, suggest actions in a second call.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Independent answers per episode.")] = 1,
    frames: Annotated[
        bool, typer.Option("--frames", help="Show a picture of the critical steps in the second stage.")
    ] = False,
    env: TrustOption = None,
    kind: Annotated[
        Literal["labels", "rules"],
        typer.Option("--kind", help="Labels of steps, or corrective rules: conditions on the state, with an action."),
    ] = "labels",
    rules: Annotated[int, typer.Option("--rules", min=1, max=40, help="rules: so many are asked for, at most.")] = 10,
    tables: Annotated[int, typer.Option(min=1, max=50, help="rules: episodes shown, worst to best.")] = 4,
    card: Annotated[
        str | None, typer.Option("--card", help="TOML card; default: the dataset's own, or else the packaged one.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Server that speaks the Messages API: Ollama, vLLM, llama.cpp, LiteLLM.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests under way at once.")] = 4,
    budget: Annotated[
        float | None, typer.Option(min=0.0, help="Dollars this run may cost over all its commands, at most.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=256, help="Cap on a reply; default: what the server allows the model, or else 12,000."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=100_000, help="batch: requests in each, at most.")] = 1_000,
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
        "rules": rules,
        "tables": tables,
    }
    return LabelConfig(
        provider=provider,
        annotate=AnnotateConfig.model_validate(asked | ({"model": model} if model else {})),
        env_id=Named.of(env),
        card=card,
        limit=limit,
        select=select,
        select_seed=select_seed,
        answers=answers,
        base_url=base_url,
        concurrency=concurrency,
        budget_usd=budget,
        max_tokens=max_tokens,
        batch=BatchConfig(size=batch_size, in_flight=batches, retry_failed=retry_failed),
        count=count,
    )
