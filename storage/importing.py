"""Making a dataset of rows that were recorded elsewhere. Everything is checked before anything is written.

Which rules rows have to keep is in `rows.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .checks import check_draft, check_episode
from .columns import StepArrays, cut_episodes
from .datasets import find_finished
from .errors import BadInput
from .identity import canonical_json, content_id
from .rows import CheckedRows, check_rows, read_rows
from .schema import Array, Manifest, ManifestDraft, Space
from .steps import StepsWriter
from .store import Store


def import_rows(
    store: Store,
    path: Path,
    *,
    dataset_id: str | None = None,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    observation_space: Space | None = None,
    action_space: Space | None = None,
    component_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    policy: str | None = None,
    policy_output: Literal["logits", "q_values", "mean"] | None = None,
) -> Manifest:
    """Make a dataset of a file of rows in the steps schema; a second time it is found finished.

    Args:
        store: where it goes.
        path: a Parquet or JSON lines file.
        dataset_id: its name; made from the content when None.
        env_id: Gymnasium id of the environment that the rows came from, if there is one.
        env_kwargs: arguments with which it was made.
        observation_space: the environment's; a box of the rows' own type and size, without bounds, when None.
        action_space: the environment's; when None, whole numbers are discrete actions 0 to the largest one seen, and
            lists or fractions are a box without bounds.
        component_names: names of the observation's components; o0, o1, ... when None.
        action_names: names of the actions, or of their dimensions; a0, a1, ... when None.
        policy: what acted, in words.
        policy_output: what the column of that name means; logits or, for a box, the mean when None.

    Raises:
        BadInput: naming the episode and step of the first row that breaks a rule, or the name that is taken by other
            rows. Nothing was written then.
    """
    rows = check_rows(read_rows(path))
    exactly = path.suffix == ".parquet"
    observations = observation_space or _infer_box(rows.steps.observation)
    actions = action_space or _infer_actions(rows.steps)
    steps = _in_spaces(rows.steps, observations, actions, exactly=exactly)
    has_output = steps.policy_output is not None
    meaning = policy_output or ("logits" if actions.is_discrete else "mean")
    draft = ManifestDraft(
        dataset_id=dataset_id or "unnamed",
        source="import",
        env_id=env_id,
        env_kwargs=env_kwargs or {},
        observation_space=observations,
        action_space=actions,
        component_names=tuple(component_names or _numbered("o", observations.size)),
        action_names=tuple(action_names or _numbered("a", actions.n or actions.size)),
        policy=policy,
        policy_output=meaning if has_output else None,
        source_sha256=_hash_rows(steps, rows.seeds),
    )
    if dataset_id is None:
        draft = draft.model_copy(update={"dataset_id": content_id("d_", draft)})
    return _write(store, draft, CheckedRows(steps, rows.seeds))


def _write(store: Store, draft: ManifestDraft, rows: CheckedRows) -> Manifest:
    check_draft(draft)
    for episode in cut_episodes(*rows, draft):
        check_episode(episode, draft)
    if finished := find_finished(store, draft):
        return finished
    with StepsWriter(store, draft) as writer:
        for number, episode in enumerate(cut_episodes(*rows, draft)):
            if number >= writer.episodes_done:
                writer.write(episode)
        return writer.finish()


def _infer_box(values: Array) -> Space:
    return Space(kind="box", dtype=str(values.dtype), size=values.shape[1])


def _infer_actions(steps: StepArrays) -> Space:
    values = steps.action
    if values.ndim == 1 and values.dtype.kind in "iu":
        if (lowest := int(values.min())) < 0:
            raise BadInput(f"There is an action {lowest}.", "Name the environment, so that its first action is known.")
        return Space(kind="discrete", dtype="int64", size=1, n=int(values.max()) + 1)
    if values.dtype.kind in "iu":
        raise BadInput("Actions are lists of whole numbers, which may be discrete or not.", "Name the environment.")
    return _infer_box(values.reshape(len(values), -1))


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


def _hash_rows(steps: StepArrays, seeds: Sequence[int | None]) -> str:
    digest = hashlib.sha256(canonical_json(list(seeds)).encode())
    for column in (getattr(steps, field.name) for field in fields(steps)):
        if isinstance(column, np.ndarray):
            digest.update(f"{column.dtype}{column.shape}".encode())
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _numbered(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{place}" for place in range(count))
