"""`trajnote.toml`: the deployments of a machine, read and checked; every problem is named with what is allowed.

It starts nothing. Paths in the file are relative to its folder; no secret belongs in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from refine.policies import Mode
from storage.disk import describe_invalid, parse_toml, read_file
from storage.errors import BadInput, Prerequisite, did_you_mean
from storage.schema import Frozen

from ..labelling import LabelConfig
from ..refinement import ImproveConfig
from ..runtime import parse_runner
from ..simulation import Named

SETTINGS = Path("trajnote.toml")
TEMPLATE = Path(__file__).parents[1] / "templates" / "trajnote.toml"
_ZONE_ERRORS = (KeyError, ValueError, OSError)


class CollectPlan(Frozen):
    """New episodes of the policy in force, once in each period."""

    policy: Named = Field(description="policy that acts until one is promoted, as in `trajnote collect --policy`")
    episodes: int = Field(default=20, ge=1, description="number of episodes in each period")
    per: Literal["hour", "day", "week"] = Field(default="day", description="the period, in the deployment's time zone")
    mode: Mode = Field(default="sampled", description="greedy, or sampled from the policy's distribution")
    seed: int = Field(default=0, ge=0, description="seed of the very first episode; each further one has the next seed")
    max_steps: int | None = Field(default=None, ge=1, description="truncate episodes after so many steps; null: never")


class DeploymentConfig(Frozen):
    """One deployment: where its rollouts come from, who labels them, when it refines, and when it runs."""

    store: Path = Field(default=Path("trajnote-store"), description="folder of the store")
    env_id: Named | None = Field(
        default=None, description="environment of collected episodes and of files in the inbox"
    )
    env_kwargs: Mapping[str, Any] = Field(default_factory=dict, description="arguments of gymnasium.make")
    inbox: Path | None = Field(default=None, description="folder into which files of rows are dropped")
    datasets: tuple[str, ...] = Field(default=(), description="datasets of the store, by prefixes of their names")
    collect: CollectPlan | None = Field(default=None, description="new episodes to play")
    label: LabelConfig = Field(
        default_factory=LabelConfig, description="who labels: the options of `trajnote annotate`"
    )
    improve: ImproveConfig = Field(default_factory=ImproveConfig, description="refinement and gate")
    baseline: Named | None = Field(
        default=None, description="baseline of the first refinement; null: the policy of the newest dataset"
    )
    refine_after: int = Field(default=100, ge=1, description="new labels needed for another refinement")
    report: bool = Field(default=True, description="write the HTML report of a refinement, if its extra is installed")
    pictures: int = Field(default=200, ge=0, description="pictures of single steps in that report")
    cron: str | None = Field(default=None, description="when it runs, for example `0 2 * * *`")
    interval_s: float | None = Field(default=None, gt=0, description="or the seconds from one run to the next")
    timezone: str = Field(default="UTC", description="of the schedule and of the periods, for example Europe/Paris")
    runner: str | None = Field(
        default=None, description="where work runs: processes, threads, dask[:ADDRESS] or ray[:ADDRESS]"
    )
    notify: str | None = Field(
        default=None, description="a Prefect block, `type/name`, that sends notices of failures and promotions"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.inbox is None and self.collect is None and not self.datasets:
            raise ValueError("a deployment needs rollouts: give it `inbox`, `datasets` or `collect`")
        if self.collect is not None and self.env_id is None:
            raise ValueError("`collect` needs `env_id`")
        if self.cron is not None and self.interval_s is not None:
            raise ValueError("`cron` and `interval_s` exclude each other")
        if self.notify is not None and self.notify.count("/") != 1:
            raise ValueError(
                f"`notify` is {self.notify!r}; `block-type/name` is expected, for example slack-webhook/me"
            )
        if self.runner is not None:
            try:
                parse_runner(self.runner)
            except BadInput as error:
                raise ValueError(f"`runner`: {error}") from None
        try:
            ZoneInfo(self.timezone)
        except _ZONE_ERRORS:
            raise ValueError(f"there is no time zone {self.timezone!r}") from None
        return self


class Settings(Frozen):
    """All of `trajnote.toml`."""

    deployments: Mapping[str, DeploymentConfig] = Field(min_length=1, description="by name")


def read_settings(path: Path = SETTINGS, store: Path | None = None) -> Settings:
    """Read and check the file.

    Args:
        path: the file.
        store: in place of the stores that it names; TRAJNOTE_STORE, if that is set, when None.

    Raises:
        Prerequisite: if there is none.
        BadInput: naming every key that does not fit, what was received and what is allowed.
    """
    if not path.exists():
        raise Prerequisite(f"There is no {path}.", "Write one with `trajnote init`, or name it with --settings.")
    try:
        content = parse_toml(read_file(path), str(path), "`trajnote init` writes one that can be read.")
        found = Settings.model_validate(_anchored(content, path.resolve().parent))
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors(include_url=False))
        end = "" if problems.endswith("?") else "."
        raise BadInput(f"{path}: {problems}{end}", "`trajnote init` writes a file that explains each key.") from error
    named = store or Path(os.environ.get("TRAJNOTE_STORE", ""))
    return found if named == Path() else _all_in(found, named.expanduser().absolute())


def _all_in(settings: Settings, store: Path) -> Settings:
    """The same deployments, each in one store."""
    moved = {name: config.model_copy(update={"store": store}) for name, config in settings.deployments.items()}
    return settings.model_copy(update={"deployments": moved})


def read_deployment(name: str | None, path: Path = SETTINGS, store: Path | None = None) -> tuple[str, DeploymentConfig]:
    """One deployment of the file, with its name; the only one when None. The store as for `read_settings`.

    Raises:
        BadInput: if there is no such deployment, or none was named and there are several.
    """
    known = read_settings(path, store).deployments
    if name is None and len(known) == 1:
        return next(iter(known.items()))
    if name is None or name not in known:
        near = did_you_mean(name or "", known)
        wanted = "Which deployment?" if name is None else f"There is no deployment {name!r} in {path}.{near}"
        raise BadInput(wanted, f"Known: {', '.join(known)}.")
    return name, known[name]


def write_template(path: Path) -> None:
    """Write a file with comments, to be edited.

    Raises:
        BadInput: if the file is there already.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise BadInput(f"The file {path} exists already.", "Edit it, or name another one with --settings.") from error


def _anchored(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The file's values with paths made absolute, and with what stands at the top given to every deployment."""
    shared = {name: value for name, value in content.items() if name != "deployments"}
    deployments = content.get("deployments")
    if not isinstance(deployments, dict):
        return dict(content)
    return {"deployments": {name: _anchor(shared, own, folder) for name, own in deployments.items()}}


def _anchor(shared: Mapping[str, Any], own: Any, folder: Path) -> Any:
    if not isinstance(own, dict):
        return own
    found: dict[str, Any] = {**shared, **own}
    found.setdefault("store", "trajnote-store")
    for name in ("store", "inbox"):
        if isinstance(found.get(name), str):
            found[name] = str(folder / Path(found[name]).expanduser())
    for section, name in (("label", "answers"), ("label", "card"), ("collect", "policy")):
        if isinstance(found.get(section), dict) and isinstance(found[section].get(name), str):
            found[section] = {**found[section], name: _find(found[section][name], folder)}
    if isinstance(found.get("baseline"), str):
        found["baseline"] = _find(found["baseline"], folder)
    return found


def _find(text: str, folder: Path) -> str:
    """A path, or a specification that ends with one, made absolute where it names something in the file's folder."""
    start, colon, path = text.rpartition(":")
    return f"{start}{colon}{folder / path}" if path and (folder / path).exists() else text


def _describe(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        place = ".".join(str(part) for part in problem["loc"])
        allowed = _keys_beside(problem["loc"])
        near = did_you_mean(str(problem["loc"][-1]), allowed)
        return f"{place} is not a known key; allowed are {', '.join(allowed)}{near and '.'}{near}"
    return describe_invalid(problem)


def _keys_beside(place: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where a wrong one stands."""
    model: type[BaseModel] = Settings if len(place) < 3 else DeploymentConfig
    for part in place[2:-1]:
        field = model.model_fields.get(str(part))
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        model = inner[0] if inner else model
    return list(model.model_fields)
