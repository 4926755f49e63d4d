"""Making a dataset of rows that were recorded elsewhere. Everything is checked before anything is written.

The rows are read twice, once to check and hash them and once to write them, so that they need not fit into memory.
Which rules they have to keep is in `rows.py`, how files are read in `recordings.py` and `hdf5_files.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from .checks import check_draft, check_episode, check_spaces
from .column_mapping import Columns
from .columns import StepArrays, cut_episodes
from .datasets import find_finished
from .errors import BadInput
from .final_rows import Losses
from .hdf5_files import open_hdf5
from .identity import canonical_json, content_id
from .recordings import About, Recording, open_rows
from .rows import check_rows
from .schema import Array, Episode, Manifest, ManifestDraft, Space
from .steps import StepsWriter
from .store import Store

HDF5 = (".h5", ".hdf5")


def import_rows(
    store: Store, path: Path, *, dataset_id: str | None = None, columns: Columns | None = None, **given: Any
) -> Manifest:
    """Make a dataset of a file; a second time it is found finished.

    Args:
        store: where it goes.
        path: as `open_recording`.
        dataset_id: as `import_recording`.
        columns: as `open_recording`.
        given: fields of `About` that the file does not say, or says otherwise.

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
    store: Store, recording: Recording, about: About, dataset_id: str | None = None, losses: Losses | None = None
) -> Manifest:
    """Make a dataset of a recording; a second time it is found finished.

    Args:
        store: where it goes.
        recording: its episodes.
        about: the spaces are inferred when missing: a box of the rows' own type and size, without bounds; whole numbers
            are discrete actions 0 to the largest one seen. Components are called o0, o1, ..., actions a0, a1, ...
        dataset_id: its name; made from the content when None.
        losses: counted up, where the recording does not hold everything.

    Raises:
        BadInput: naming the episode and step of the first row that breaks a rule, or the name that is taken by other
            rows. Nothing was written then.
    """
    draft = _draft(recording, about)
    check_draft(draft)
    draft = draft.model_copy(update={"source_sha256": _check_and_hash(recording, draft, losses or Losses())})
    draft = draft.model_copy(update={"dataset_id": dataset_id or content_id("d_", draft)})
    return find_finished(store, draft) or _write(store, draft, recording)


def _draft(recording: Recording, about: About) -> ManifestDraft:
    first = _first(recording)
    observations = about.observation_space or _infer_box(first.observation)
    actions = about.action_space or _infer_actions(first, recording)
    check_spaces(observations, actions)  # before anything is made of their sizes
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


def _first(recording: Recording) -> StepArrays:
    for table in recording.tables(Losses()):
        return check_rows(table).steps
    raise BadInput("There are no rows.")


def _check_and_hash(recording: Recording, draft: ManifestDraft, losses: Losses) -> str:
    digest = hashlib.sha256()
    last = -1
    for episode in _episodes(recording, draft, losses):
        check_episode(episode, draft)
        if episode.episode_id <= last:
            raise BadInput(f"Episode {episode.episode_id} follows episode {last}; ids have to ascend.")
        last = episode.episode_id
        ends = [last, episode.seed, episode.terminated, episode.truncated]
        digest.update(canonical_json(ends).encode())
        for column in (episode.observations, episode.actions, episode.rewards, episode.policy_outputs):
            if column is not None:
                digest.update(f"{column.dtype}{column.shape}".encode())
                digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _episodes(recording: Recording, draft: ManifestDraft, losses: Losses) -> Iterator[Episode]:
    for table in recording.tables(losses):
        steps, seeds = check_rows(table)
        fitted = _in_spaces(steps, draft.observation_space, draft.action_space, exactly=recording.exactly)
        yield from cut_episodes(fitted, seeds, draft)


def _write(store: Store, draft: ManifestDraft, recording: Recording) -> Manifest:
    with StepsWriter(store, draft) as writer:
        for number, episode in enumerate(_episodes(recording, draft, Losses())):
            if number >= writer.episodes_done:
                writer.write(episode)
        return writer.finish()


def _infer_box(values: Array) -> Space:
    return Space(kind="box", dtype=str(values.dtype), size=values.shape[1])


def _infer_actions(first: StepArrays, recording: Recording) -> Space:
    if first.action.dtype.kind not in "iu":
        return _infer_box(first.action.reshape(len(first), -1))
    if first.action.ndim > 1:
        raise BadInput("Actions are lists of whole numbers, which may be discrete or not.", "Name the environment.")
    largest = 0
    for actions in (check_rows(table).steps.action for table in recording.tables(Losses())):
        if (lowest := int(actions.min())) < 0:
            raise BadInput(f"There is an action {lowest}.", "Name the environment, so that its first action is known.")
        largest = max(largest, int(actions.max()))
    return Space(kind="discrete", dtype="int64", size=1, n=largest + 1)


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
    """Values, (N, size), in the type of their space; refused if that would change one.

    Args:
        steps: where the rows belong.
        what: the column's name.
        values: what is in the file.
        space: what it has to be.
        exactly: whether rounding to a narrower float counts as a change; decimal numbers in a text are rounded anyway.
    """
    if values.shape[1] != space.size:
        raise BadInput(f"Each {what} has {values.shape[1]} numbers; its space has {space.size}.")
    with np.errstate(all="ignore"):
        converted = values.astype("int64" if space.is_discrete else space.dtype)
        if exactly or converted.dtype.kind in "iu":
            same = converted.astype(values.dtype) == values
        else:
            same = np.isfinite(converted)
    if (wrong := np.flatnonzero(~same.all(axis=1))).size:
        row = wrong[0]
        place = f"Episode {steps.episode_id[row]}, step {steps.step[row]}"
        raise BadInput(f"{place}: the {what} {values[row].tolist()} is not representable as {converted.dtype}.")
    return converted


def _numbered(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{place}" for place in range(count))
