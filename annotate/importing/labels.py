"""Labels from any source: a person, a controller, another program. All lines are checked before any is entered.

A line is a JSON object with `dataset_id`, `episode_id`, `step`, and `suggested_action` (a number, a list, or the name
of an action) or `implicit_reward` or both; `confidence`, `rationale`, `critical` and `model` may be left out.
Replies to our requests come in another way (`providers/answers.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from storage.annotations import insert_annotations
from storage.datasets import catalogued_episodes, list_datasets, read_manifest
from storage.disk import describe_invalid, read_lines, shorten
from storage.errors import BadInput
from storage.ledger import enter_imported_run
from storage.schema import Annotation, Frozen, Manifest, content_id
from storage.store import Store

from ..parsing import MAX_RATIONALE, clean_text, read_object
from ..prompting import label_vector

DEFAULT_MODEL = "imported"
R = TypeVar("R", bound=Frozen)


class LabelRow(Frozen):
    """One line, as its labeller wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    dataset_id: str
    episode_id: int
    step: int = Field(ge=0)
    suggested_action: float | list[float] | str | None = Field(
        default=None, description="the name of an action, a number, or a list of numbers"
    )
    implicit_reward: float | None = Field(default=None, ge=-1, le=1)
    confidence: float | None = Field(default=None, ge=0, le=1)
    rationale: str | None = None
    critical: bool = True
    model: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None


@dataclass(frozen=True)
class ImportSummary:
    """What an import did."""

    run_ids: tuple[str, ...]  # one for each dataset and labeller
    lines: int
    labels: int  # entered now; 0 when the same file was imported before


@dataclass
class _Batch:
    """Lines that passed, by dataset and labeller, and what is wrong with the others."""

    labels: dict[tuple[str, str], list[Mapping[str, Any]]] = field(default_factory=dict[tuple[str, str], Any])
    problems: list[str] = field(default_factory=list[str])
    seen: dict[tuple[object, ...], int] = field(default_factory=dict[tuple[object, ...], int])


class _Datasets:
    """What the store's datasets allow; each is looked up once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known = {dataset.dataset_id for dataset in list_datasets(store)}
        self._manifests: dict[str, Manifest] = {}
        self._lengths: dict[str, dict[int, int]] = {}

    def manifest(self, dataset_id: str) -> Manifest:
        if dataset_id not in self._known:
            raise ValueError(f"there is no dataset {dataset_id!r}; known: {', '.join(sorted(self._known)) or 'none'}")
        if dataset_id not in self._manifests:
            self._manifests[dataset_id] = read_manifest(self._store, dataset_id)
        return self._manifests[dataset_id]

    def check_step(self, row: LabelRow) -> None:
        lengths = self._lengths.get(row.dataset_id)
        if lengths is None:
            episodes = catalogued_episodes(self._store, row.dataset_id)
            lengths = self._lengths[row.dataset_id] = {episode.episode_id: episode.length for episode in episodes}
        if row.episode_id not in lengths:
            raise ValueError(f"there is no episode {row.episode_id}; known: {min(lengths)} to {max(lengths)}")
        if row.step >= lengths[row.episode_id]:
            raise ValueError(
                f"there is no step {row.step} in episode {row.episode_id}; its actions are at steps 0 to "
                f"{lengths[row.episode_id] - 1}"
            )


def import_annotations(store: Store, path: Path) -> ImportSummary:
    """Enter the labels of a JSON Lines file; entering the same file again changes nothing.

    Args:
        store: holds the datasets that the labels are about.
        path: the file.

    Raises:
        BadInput: listing every bad line with its number and reason; nothing is written then.
    """
    batch = _Batch()
    datasets = _Datasets(store)
    lines = list(read_lines(path))
    for number, text in lines:
        try:
            _read_line(text, number, datasets, batch)
        except ValueError as error:
            batch.problems.append(f"line {number}: {error}")
    refuse_bad_lines(path, batch.problems, len(lines))
    if not lines:
        raise BadInput(f"{path} holds no labels.", "Each line is a JSON object with dataset_id, episode_id, step, ...")
    return _write(store, batch, len(lines))


def _write(store: Store, batch: _Batch, lines: int) -> ImportSummary:
    runs = {
        content_id("i_", [dataset_id, model, labels]): (dataset_id, model, labels)
        for (dataset_id, model), labels in batch.labels.items()
    }
    entered = 0
    with store.catalog.write() as con:
        for run_id, (dataset_id, model, labels) in runs.items():
            if enter_imported_run(con, run_id, dataset_id, model):
                insert_annotations(con, [_annotation(run_id, dataset_id, model, label) for label in labels])
                entered += len(labels)
    return ImportSummary(tuple(runs), lines, entered)


def _annotation(run_id: str, dataset_id: str, model: str, label: Mapping[str, Any]) -> Annotation:
    return Annotation(
        annotation_id=content_id("n_", [run_id, None, label["episode_id"], label["step"]]),
        run_id=run_id,
        request_id=None,
        dataset_id=dataset_id,
        model=model,
        prompt_version=None,
        **label,
    )


def _read_line(text: str, number: int, datasets: _Datasets, batch: _Batch) -> None:
    row = parse_line(text, LabelRow)
    manifest = datasets.manifest(row.dataset_id)
    datasets.check_step(row)
    if row.suggested_action is None and row.implicit_reward is None:
        raise ValueError("it has neither suggested_action nor implicit_reward")
    action, action_label = (
        (None, None) if row.suggested_action is None else read_import_action(row.suggested_action, manifest)
    )
    model = clean_text(row.model or DEFAULT_MODEL, 200)
    key = (row.dataset_id, model, row.episode_id, row.step)
    if key in batch.seen:
        raise ValueError(
            f"{model} has already labelled step {row.step} of episode {row.episode_id} in line {batch.seen[key]}"
        )
    batch.seen[key] = number
    batch.labels.setdefault((row.dataset_id, model), []).append(
        {
            "episode_id": row.episode_id,
            "step": row.step,
            "critical": row.critical,
            "suggested_action": action,
            "suggested_label": action_label,
            "implicit_reward": row.implicit_reward,
            "confidence": row.confidence,
            "rationale": None if row.rationale is None else clean_text(row.rationale, MAX_RATIONALE),
        }
    )


def refuse_bad_lines(path: Path, problems: Sequence[str], lines: int) -> None:
    """Refuse a whole file for its bad lines, so that it is never entered in part.

    Raises:
        BadInput: if there is a problem.
    """
    if problems:
        raise BadInput(
            f"{path}: {len(problems)} of {lines} lines cannot be used: {'; '.join(problems)}.",
            "Correct or remove them; nothing was written.",
        )


def parse_line(text: str, kind: type[R]) -> R:
    """A line of a JSON Lines file as an object of a model.

    Raises:
        ValueError: saying what is wrong with it.
    """
    return validated(kind, read_object(text))


def validated(kind: type[R], entry: Mapping[str, object]) -> R:
    """An object of a model.

    Raises:
        ValueError: naming each field that does not fit, once.
    """
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        raise ValueError("; ".join(_misfits(kind, entry, error.errors(include_url=False)))) from None


def _misfits(kind: type[Frozen], entry: Mapping[str, object], errors: Iterable[ErrorDetails]) -> Iterator[str]:
    """What does not fit; a field of several forms, of which none does, is described by what may stand there."""
    for place, found in groupby(errors, key=lambda error: str((*error["loc"], "")[0])):
        problems = list(found)
        allowed = kind.model_fields[place].description if place in kind.model_fields else None
        if len(problems) > 1 and allowed:
            yield f"{place} is {shorten(repr(entry[place]))}; allowed: {allowed}"
        else:
            yield from (describe_invalid(problem, levels=1) for problem in problems)


def read_import_action(action: float | list[float] | str, manifest: Manifest) -> tuple[tuple[float, ...], str]:
    """An action of a dataset's space, by name or by numbers, and its name.

    Raises:
        ValueError: saying what is allowed.
    """
    space, names = manifest.action_space, manifest.action_names
    if isinstance(action, str):
        if not space.is_discrete or action not in names:
            raise ValueError(
                f"suggested_action {clean_text(action, 60)!r} is not one of the actions {', '.join(names)}"
            )
        return (float(space.start + names.index(action)),), action
    values = tuple(float(x) for x in (action if isinstance(action, list) else [action]))
    if len(values) != space.size:
        raise ValueError(f"suggested_action has {len(values)} numbers; {space.size} are needed ({', '.join(names)})")
    if not space.is_discrete:
        _check_bounds(values, manifest)
        return values, label_vector(names, values, [2] * len(values))
    last = space.start + (space.n or 1) - 1
    if not values[0].is_integer() or not space.start <= values[0] <= last:
        raise ValueError(f"suggested_action {values[0]:g} is out of range; allowed are {space.start} to {last}")
    return values, names[int(values[0]) - space.start]


def _check_bounds(values: tuple[float, ...], manifest: Manifest) -> None:
    space = manifest.action_space
    lows, highs = space.low or (-math.inf,) * space.size, space.high or (math.inf,) * space.size
    for name, value, low, high in zip(manifest.action_names, values, lows, highs, strict=True):
        if not low <= value <= high:
            raise ValueError(f"suggested_action {name} = {value:g} is out of range; allowed are {low:g} to {high:g}")
