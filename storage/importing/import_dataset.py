"""Makes a dataset of rows recorded elsewhere. Everything is checked before anything is written.

The rows are read twice, once to check and hash them and once to write them, so they need not fit into memory.
Their rules are in `row_validation.py`, how files are read in `recordings.py` and `hdf5.py`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..datasets import (
    StepArrays,
    StepsWriter,
    check_draft,
    check_episode,
    check_spaces,
    cut_episodes,
    find_finished,
    is_finite,
)
from ..disk import shorten
from ..errors import BadInput
from ..schema import Array, Episode, Manifest, ManifestDraft, Space, canonical_json, content_id
from ..store import Store
from .action_kinds import Choices, choose_actions, infer_box
from .cells import Columns, same_whole
from .episode_ends import Kind, ResetSigns, refuse_or_warn, resets_to_drop, without_reset
from .hdf5 import open_hdf5
from .recordings import About, Recording, open_rows
from .row_validation import CheckedRows, ImportReport, check_rows

HDF5 = (".h5", ".hdf5")
_UNFORESEEN = (pa.ArrowException, ValueError, LookupError, TypeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Reading:
    """A recording with the user's decisions; it can be read repeatedly."""

    recording: Recording
    choices: Choices
    resets: Mapping[int, Kind] = field(default_factory=dict[int, Kind])  # left out, by episode

    def checked(self, report: ImportReport) -> Iterator[CheckedRows]:
        """Its rows, piece by piece, each checked; an export may hold numbers that are not finite."""
        for table in self.recording.tables(report):
            yield check_rows(table, finite=not self.recording.is_export)

    def steps(self) -> Iterator[StepArrays]:
        """The same, for a look at them."""
        return (checked.steps for checked in self.checked(ImportReport()))


def import_rows(
    store: Store, path: Path, *, dataset_id: str | None = None, columns: Columns | None = None, **given: Any
) -> Manifest:
    """Make a dataset of a file; a second call returns the finished one.

    Args:
        store: where it goes.
        path: as `open_recording`.
        dataset_id: as `import_recording`.
        columns: as `open_recording`.
        given: fields of `About` that replace what the file says.

    Raises:
        BadInput: as `import_recording`.
    """
    with open_recording(path, columns) as recording:
        return import_recording(store, recording, recording.about.but(**given), dataset_id)


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
            `storage.importing.action_kinds.infer_actions`. Components are called o0, o1, ..., actions a0, a1, ...
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
    with _refusing():
        draft = _draft(reading, about, report)
        check_draft(draft)
        reading = _without_resets(reading, draft, report)
        draft = draft.model_copy(update={"source_sha256": _check_and_hash(reading, draft, report)})
    draft = draft.model_copy(update={"dataset_id": dataset_id or content_id("d_", draft)})
    return find_finished(store, draft) or _write(store, draft, reading, card)


@contextmanager
def _refusing() -> Generator[None]:
    """Any unexpected error is blamed on the rows, so that a night goes on with the next file."""
    try:
        yield
    except _UNFORESEEN as error:
        said = shorten(" ".join(str(error).split()), 300) or "no reason given"
        raise BadInput(f"The rows cannot be used: {said} ({type(error).__name__}).") from error


def _draft(reading: Reading, about: About, report: ImportReport) -> ManifestDraft:
    first = next(reading.steps(), None)
    if first is None:
        raise BadInput("There are no rows.")
    observations = about.observation_space or infer_box(first.observation)
    actions = choose_actions(reading.steps, about.action_space, reading.choices, report)
    check_spaces(observations, actions)  # before arrays of their sizes are made
    meaning = about.policy_output or ("logits" if actions.is_discrete else "mean")
    told = about.but(
        observation_space=observations,
        action_space=actions,
        component_names=about.component_names or _numbered("o", observations.size),
        action_names=about.action_names or _numbered("a", actions.n or actions.size),
    )
    fields: dict[str, Any] = {name: getattr(told, name) for name in About.model_fields}
    fields["policy_output"] = None if first.policy_output is None else meaning
    return ManifestDraft(dataset_id="unnamed", source="import", **fields)


def _without_resets(reading: Reading, draft: ManifestDraft, report: ImportReport) -> Reading:
    """The same reading without resets, if the user wants that."""
    if reading.choices.autoreset != "drop":
        return reading
    signs = ResetSigns(limit=sys.maxsize)
    for episode in _episodes(reading, draft, ImportReport()):
        check_episode(episode, draft)
        signs.see(episode)
    return replace(reading, resets=resets_to_drop(signs, report))


def _check_and_hash(reading: Reading, draft: ManifestDraft, report: ImportReport) -> str:
    digest, signs = hashlib.sha256(), ResetSigns()
    last = -1
    for episode in _episodes(reading, draft, report):
        check_episode(episode, draft)
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
                yield kept


def _write(store: Store, draft: ManifestDraft, reading: Reading, card: bytes | None) -> Manifest:
    with StepsWriter(store, draft, card=card) as writer:
        for number, episode in enumerate(_episodes(reading, draft, ImportReport())):
            if number >= writer.episodes_done:
                writer.write(episode)
        return writer.finish()


def _in_spaces(steps: StepArrays, observations: Space, actions: Space, *, exactly: bool) -> StepArrays:
    matrix = steps.action.reshape(len(steps), -1)
    converted = _convert(steps, "action", matrix, actions, exactly=exactly)
    return StepArrays(
        episode_id=steps.episode_id,
        step=steps.step,
        observation=_convert(steps, "observation", steps.observation, observations, exactly=exactly),
        action=converted[:, 0] if actions.is_discrete else converted,
        reward=steps.reward,
        terminated=steps.terminated,
        truncated=steps.truncated,
        is_final=steps.is_final,
        policy_output=steps.policy_output,
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
