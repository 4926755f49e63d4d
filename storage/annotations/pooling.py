"""Several datasets as one: their rows one after the other, episodes renumbered, labels moved along. Nothing is written.

A dataset never changes, so what grows is a list of datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from ..content_hash import canonical_json
from ..datasets import StepArrays, read_manifest, read_steps, require_finite
from ..errors import BadInput
from ..schema import Annotation
from ..store import Store
from .annotations import load_annotations

_ALIKE = ("env_id", "env_kwargs", "observation_space", "action_space", "component_names", "action_names")


def read_pool(store: Store, dataset_ids: Sequence[str]) -> StepArrays:
    """Rows of several datasets as flat columns; the episodes of each follow those of the one before.

    `policy_output` is kept where all of them have it in the same size.

    Raises:
        BadInput: if there is no such dataset, one holds numbers that are not finite, or they differ in environment,
            spaces or names.
    """
    parts = [read_steps(store, dataset_id) for dataset_id in dataset_ids]
    for part, dataset_id in zip(parts, dataset_ids, strict=True):
        require_finite(part, dataset_id)
    if len(parts) == 1:
        return parts[0]
    _check_alike(store, dataset_ids)
    outputs = [part.policy_output for part in parts if part.policy_output is not None]
    alike = len(outputs) == len(parts) and len({output.shape[1] for output in outputs}) == 1
    plain = ("step", "observation", "action", "reward", "terminated", "truncated", "is_final")
    return StepArrays(
        episode_id=np.concatenate([part.episode_id + shift for part, shift in zip(parts, _shifts(parts), strict=True)]),
        policy_output=np.concatenate(outputs) if alike else None,
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in plain},
    )


def pool_annotations(
    store: Store, dataset_ids: Sequence[str], run_ids: Sequence[str] | None = None
) -> list[Annotation]:
    """The annotations of several datasets with the episode numbers of `read_pool`.

    Raises:
        BadInput: if there is no such run.
    """
    notes = [load_annotations(store, dataset_id, run_ids) for dataset_id in dataset_ids]
    if len(notes) == 1:
        return notes[0]
    shifts = _shifts([read_steps(store, dataset_id) for dataset_id in dataset_ids])
    return [
        replace(note, episode_id=note.episode_id + shift)
        for part, shift in zip(notes, shifts, strict=True)
        for note in part
    ]


def _shifts(parts: Sequence[StepArrays]) -> list[int]:
    """What is added to the episode numbers of each part."""
    return list(accumulate((int(part.episode_id[-1]) + 1 for part in parts[:-1]), initial=0))


def _check_alike(store: Store, dataset_ids: Sequence[str]) -> None:
    first, *others = [read_manifest(store, dataset_id) for dataset_id in dataset_ids]
    for other in others:
        for name in _ALIKE:
            if canonical_json(getattr(other, name)) != canonical_json(getattr(first, name)):
                raise BadInput(
                    f"The datasets {first.dataset_id} and {other.dataset_id} differ in {name}, so they are not one.",
                    "Give each its own deployment.",
                )
