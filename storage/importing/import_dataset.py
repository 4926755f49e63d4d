"""Makes a dataset of rows recorded elsewhere. Everything is checked before anything is written.

The rows are read twice, once to check and hash them and once to write them, so they need not fit into memory. Whether
actions are discrete or continuous the user or the file says, or it is inferred here and reported. The rules of rows are
in `row_validation.py`, how files are read in `recordings.py` and `hdf5.py`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from ..datasets import (
    SeededSteps,
    StepArrays,
    StepsWriter,
    check_action_space,
    check_draft,
    check_episode,
    check_spaces,
    cut_episodes,
    find_finished,
    is_finite,
)
from ..disk import shorten
from ..errors import BadInput
from ..schema import MAX_ACTIONS, Array, Episode, Frozen, Manifest, ManifestDraft, Space, canonical_json, content_id
from ..store import Store
from .cells import Columns, same_whole
from .episode_ends import Autoreset, Kind, ResetSigns, refuse_or_warn, resets_to_drop, without_reset
from .hdf5 import open_hdf5
from .recordings import About, Recording, open_rows
from .row_validation import ImportReport, check_rows

HDF5 = (".h5", ".hdf5")
_UNFORESEEN = (pa.ArrowException, ValueError, LookupError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Reading:
    """A recording with the user's decisions; it can be read repeatedly."""

    recording: Recording
    choices: Choices
    resets: Mapping[int, Kind] = field(default_factory=dict[int, Kind])  # left out, by episode

    def checked(self, report: ImportReport) -> Iterator[SeededSteps]:
        """Its rows, piece by piece, each checked; an export may hold numbers that are not finite."""
        for table in self.recording.tables(report):
            yield check_rows(table, finite=not self.recording.is_export)

    def steps(self) -> Iterator[StepArrays]:
        """The same, for a look at them."""
        return (checked.rows for checked in self.checked(ImportReport()))


def open_recording(path: Path, columns: Columns | None = None) -> AbstractContextManager[Recording]:
    """A file of rows, to be read in a `with` block.

    Args:
        path: Parquet, JSON lines or CSV in the steps schema or with `columns`; HDF5 of D4RL or d3rlpy.
        columns: meaning of a column -> its names.

    Raises:
        BadInput: if it cannot be read.
    """
    if path.suffix in HDF5 and path.is_file():
        if columns:
            raise BadInput(f"{path} names its arrays itself.", "--column is for Parquet, CSV and JSON lines.")
        return open_hdf5(path)
    return open_rows(path, columns)


def import_recording(
    store: Store,
    recording: Recording,
    about: About,
    dataset_id: str | None = None,
    *,
    choices: Choices | None = None,
    card: bytes | None = None,
    report: ImportReport | None = None,
) -> Manifest:
    """Make a dataset of a recording; a second call returns the finished one.

    Args:
        store: where it goes.
        recording: its episodes.
        about: the spaces are inferred when missing: a box of the rows' own type and size, without bounds; actions as
            `infer_actions`. Components are called o0, o1, ..., actions a0, a1, ...
        dataset_id: its name; made from the content when None.
        choices: what the user decided where the file does not say.
        card: see `StepsWriter`.
        report: counts what was decided, given up and left out.

    Raises:
        BadInput: naming the episode and step of the first row that breaks a rule, or a dataset name that other
            rows have. Nothing was written then.
    """
    report = report or ImportReport()
    reading = Reading(recording, choices or Choices())
    try:
        draft = _draft(reading, about, report)
        check_draft(draft)
        reading = _without_resets(reading, draft, report)
        draft = draft.model_copy(update={"source_sha256": _check_and_hash(reading, draft, report)})
    except _UNFORESEEN as error:  # it is blamed on the rows, so that a night goes on with the next file
        reason = shorten(" ".join(str(error).split()), 300) or "no reason given"
        raise BadInput(f"The rows cannot be used: {reason} ({type(error).__name__}).") from error
    draft = draft.model_copy(update={"dataset_id": dataset_id or content_id("d_", draft)})
    if finished := find_finished(store, draft):
        return finished
    with StepsWriter(store, draft, card=card) as writer:
        for number, episode in enumerate(_episodes(reading, draft, ImportReport())):
            if number >= writer.episodes_done:
                writer.write(episode)
        return writer.finish()


def _draft(reading: Reading, about: About, report: ImportReport) -> ManifestDraft:
    first = next(reading.steps(), None)
    if first is None:
        raise BadInput("There are no rows.")
    dtype, size = str(first.observation.dtype), first.observation.shape[1]
    observations = about.observation_space or Space(kind="box", dtype=dtype, size=size)
    actions = choose_actions(reading.steps, about.action_space, reading.choices, report)
    check_spaces(observations, actions)  # before arrays of their sizes are made
    meaning = about.policy_output or ("logits" if actions.is_discrete else "mean")
    known = about.but(
        observation_space=observations,
        action_space=actions,
        component_names=about.component_names or _numbered("o", observations.size),
        action_names=about.action_names or _numbered("a", actions.n or actions.size),
    )
    fields: dict[str, Any] = {name: getattr(known, name) for name in About.model_fields}
    fields["policy_output"] = None if first.policy_output is None else meaning
    return ManifestDraft(dataset_id="unnamed", source="import", **fields)


def _without_resets(reading: Reading, draft: ManifestDraft, report: ImportReport) -> Reading:
    """The same reading without resets, if the user wants that."""
    if reading.choices.autoreset != "drop":
        return reading
    signs = ResetSigns(limit=sys.maxsize)
    for episode in _episodes(reading, draft, ImportReport()):
        signs.see(episode)
    return replace(reading, resets=resets_to_drop(signs, report))


def _check_and_hash(reading: Reading, draft: ManifestDraft, report: ImportReport) -> str:
    digest, signs = hashlib.sha256(), ResetSigns()
    last = -1
    for episode in _episodes(reading, draft, report):
        if episode.episode_id <= last:
            raise BadInput(f"Episode {episode.episode_id} follows episode {last}; ids have to ascend.")
        last = episode.episode_id
        signs.see(episode)
        report.see(episode.episode_id, finite=is_finite(episode))
        report.steps += len(episode)
        ends = [last, episode.seed, episode.terminated, episode.truncated]
        digest.update(canonical_json(ends).encode())
        for column in (episode.observations, episode.actions, episode.rewards, episode.policy_outputs):
            if column is not None:
                digest.update(f"{column.dtype}{column.shape}".encode())
                digest.update(np.ascontiguousarray(column).tobytes())
    report.check()
    report.note_stains()
    if reading.choices.autoreset is None and not reading.recording.is_export:
        refuse_or_warn(signs.find(), report)
    return digest.hexdigest()


def _episodes(reading: Reading, draft: ManifestDraft, report: ImportReport) -> Iterator[Episode]:
    for steps, seeds in reading.checked(report):
        fitted = _in_spaces(steps, draft.observation_space, draft.action_space, exactly=reading.recording.exactly)
        for episode in cut_episodes(fitted, seeds, draft):
            if (kept := without_reset(episode, reading.resets, report)) is not None:
                check_episode(kept, draft)
                yield kept


def _in_spaces(steps: StepArrays, observations: Space, actions: Space, *, exactly: bool) -> StepArrays:
    matrix = steps.action.reshape(len(steps), -1)
    converted = _convert(steps, "action", matrix, actions, exactly=exactly)
    return replace(
        steps,
        observation=_convert(steps, "observation", steps.observation, observations, exactly=exactly),
        action=converted[:, 0] if actions.is_discrete else converted,
    )


def _convert(steps: StepArrays, what: str, values: Array, space: Space, *, exactly: bool) -> Array:
    """Values, (N, size), in the dtype of their space; refused if the conversion would change one.

    Args:
        steps: where the rows belong.
        what: name of the column.
        values: from the file.
        space: the wanted one.
        exactly: whether rounding to a narrower float counts as a change; decimal text is rounded anyway.
    """
    if values.shape[1] != space.size:
        raise BadInput(f"Each {what} has {values.shape[1]} numbers; its space has {space.size}.")
    with np.errstate(all="ignore"):
        converted = values.astype("int64" if space.is_discrete else space.dtype)
        if values.dtype.kind in "iu" and (exactly or space.dtype != "float32"):
            same = same_whole(values, converted)
        elif exactly or converted.dtype.kind in "iu":
            same = (converted.astype(values.dtype) == values) | (np.isnan(values) & (converted.dtype.kind == "f"))
        else:
            same = np.isfinite(converted) | ~np.isfinite(values)
    if (wrong := np.flatnonzero(~same.all(axis=1))).size:
        row = wrong[0]
        place = f"Episode {steps.episode_id[row]}, step {steps.step[row]}"
        raise BadInput(f"{place}: the {what} {values[row].tolist()} is not representable as {converted.dtype}.")
    return converted


def _numbered(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{place}" for place in range(count))


ActionKind = Literal["discrete", "continuous"]
Rows = Callable[[], Iterator[StepArrays]]
_SHOWN = 10  # unused actions listed in a note


class Choices(Frozen):
    """What a user decides where the file does not say."""

    actions: ActionKind | None = Field(default=None, description="None: by the type of their numbers, and reported")
    autoreset: Autoreset | None = Field(
        default=None, description="what to do with rows in which an environment reset itself; None: refuse or warn"
    )
    first_action: int | None = Field(default=None, description="the smallest discrete action; None: 0")


def choose_actions(rows: Rows, known: Space | None, choices: Choices, report: ImportReport) -> Space:
    """The action space that is already known, if the choices agree with it; otherwise an inferred one.

    Args:
        rows: reads the recording anew.
        known: the space of the environment or of the file's own manifest.
        choices: the user's.
        report: receives what was decided and why.

    Raises:
        BadInput: if a choice contradicts the space or the rows.
    """
    if known is None:
        return _infer(rows, choices, report)
    if choices.actions and known.is_discrete != (choices.actions == "discrete"):
        kind = "discrete" if known.is_discrete else "continuous"
        raise BadInput(f"--actions {choices.actions}: according to the environment or the file they are {kind}.")
    if choices.first_action is not None and (not known.is_discrete or choices.first_action != known.start):
        raise BadInput(
            f"--first-action {choices.first_action}: according to the environment or the file it is {known.start}."
        )
    return known


class _Seen:
    """What the actions of all rows have in common."""

    def __init__(self, rows: Rows) -> None:
        self.dtype, self.size, self.is_whole = np.dtype(np.int64), 1, True
        self.values: set[int] = set()  # incomplete once there are more than discrete actions may have
        self.lowest, self.highest = 0, 0
        self.fraction = ""  # place of the first one that is not whole
        for steps in rows():
            actions = steps.action[~steps.is_final].reshape(np.count_nonzero(~steps.is_final), -1)
            self.dtype, self.size = actions.dtype, actions.shape[1]
            whole = np.all(np.isfinite(actions) & (actions == np.floor(actions)), axis=1)
            self.is_whole = bool(whole.all())
            if not self.is_whole:
                row = np.flatnonzero(~steps.is_final)[np.argmin(whole)]
                place = f"Episode {steps.episode_id[row]}, step {steps.step[row]}"
                self.fraction = f"{place}: the action {actions[np.argmin(whole)].tolist()} is not whole"
            if not self.is_whole or self.size > 1:
                break
            found = np.unique(actions.astype(np.int64))
            self.lowest, self.highest = (
                (min(self.lowest, int(found[0])), max(self.highest, int(found[-1])))
                if self.values
                else (int(found[0]), int(found[-1]))
            )
            if len(self.values) <= MAX_ACTIONS:
                self.values.update(found.tolist())

    @property
    def span(self) -> str:
        return f"whole numbers from {self.lowest} to {self.highest}" if self.values else "whole numbers"


def _infer(rows: Rows, choices: Choices, report: ImportReport) -> Space:
    seen = _Seen(rows)
    kind = choices.actions or ("discrete" if seen.dtype.kind in "iu" else "continuous")
    if kind == "discrete":
        return _discrete(seen, choices, report)
    if choices.first_action is not None:
        raise BadInput(
            f"--first-action {choices.first_action}: these actions are continuous ({seen.dtype}).",
            "Add --actions discrete if they are ids.",
        )
    dtype = seen.dtype if seen.dtype.kind == "f" else np.dtype(np.float64)
    if choices.actions is None and seen.is_whole and seen.size == 1:
        report.decide(
            f"actions are continuous because they are {seen.dtype}, although all are {seen.span}; --actions discrete "
            "reads them as ids"
        )
    elif choices.actions is None:
        report.decide(f"actions are continuous, {seen.size} of {seen.dtype}, as their type says")
    return Space(kind="box", dtype=str(dtype), size=seen.size)


def _discrete(seen: _Seen, choices: Choices, report: ImportReport) -> Space:
    if seen.size > 1:
        raise BadInput(
            f"Actions are lists of {seen.size} whole numbers; a discrete action is one.",
            "Use --actions continuous to read them as numbers, or --env for the space of an environment.",
        )
    if not seen.is_whole:
        raise BadInput(f"{seen.fraction}, so actions are not discrete.", "Leave out --actions discrete.")
    start, lowest, highest = choices.first_action or 0, seen.lowest, seen.highest
    if lowest < start:
        raise BadInput(f"The smallest action is {lowest}.", f"Add --first-action {lowest}.")
    space = Space(kind="discrete", dtype="int64", size=1, n=highest - start + 1, start=start)
    check_action_space(space)  # before its actions are counted
    if choices.actions is None:
        report.decide(
            f"actions are discrete, {start} to {highest}, because they are {seen.dtype}; --actions continuous "
            "reads them as numbers"
        )
    _report_gaps(seen, start, report)
    return space


def _report_gaps(seen: _Seen, start: int, report: ImportReport) -> None:
    """Actions that never occur, but are part of the space because it has no gaps."""
    lowest, highest = seen.lowest, seen.highest
    if missing := highest - start + 1 - len(seen.values):
        first = (value for value in range(start, highest) if value not in seen.values)
        shown = ", ".join(str(value) for value, _ in zip(first, range(_SHOWN), strict=False))
        more = f" and {missing - _SHOWN} more" if missing > _SHOWN else ""
        offer = f"; --first-action {lowest} starts them at {lowest}" if lowest > start else ""
        report.decide(f"actions that never occur, but are part of the space: {shown}{more}{offer}")
