"""Tiny datasets that the tests of storage write and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from storage.datasets import StepsWriter
from storage.importing import Columns, import_recording, open_recording
from storage.schema import Episode, Manifest, ManifestDraft, Space
from storage.store import Store

BOX3 = Space(kind="box", dtype="float32", size=3, low=(-1.0, float("-inf"), 0.0), high=(1.0, float("inf"), 9.0))
PUSH = Space(kind="discrete", dtype="int64", size=1, n=2)


def make_draft(dataset_id: str = "d1", **changes: Any) -> ManifestDraft:
    fields: dict[str, Any] = {
        "dataset_id": dataset_id,
        "source": "collect",
        "env_id": "Toy-v0",
        "observation_space": BOX3,
        "action_space": PUSH,
        "component_names": ("x", "y", "z"),
        "action_names": ("left", "right"),
        "policy": "random",
        "seed": 7,
    }
    return ManifestDraft(**{**fields, **changes})


def make_episode(episode_id: int, length: int = 4, **changes: Any) -> Episode:
    rng = np.random.default_rng(abs(episode_id))
    fields: dict[str, Any] = {
        "episode_id": episode_id,
        "seed": 7 + episode_id,
        "observations": rng.normal(size=(length + 1, 3)).astype(np.float32),
        "actions": rng.integers(0, 2, length),
        "rewards": rng.normal(size=length),
        "terminated": episode_id % 2 == 0,
        "truncated": episode_id % 2 == 1,
    }
    return Episode(**{**fields, **changes})


def write(store: Store, draft: ManifestDraft, episodes: list[Episode], **options: Any) -> Manifest:
    with StepsWriter(store, draft, **options) as writer:
        for episode in episodes[writer.episodes_done :]:
            writer.write(episode)
        return writer.finish()


def import_rows(
    store: Store, path: Path, *, dataset_id: str | None = None, columns: Columns | None = None, **given: Any
) -> Manifest:
    """Make a dataset of a file; what is given replaces what the file says."""
    with open_recording(path, columns) as recording:
        return import_recording(store, recording, recording.about.but(**given), dataset_id)


def same(left: Episode, right: Episode) -> bool:
    """Equal to the last bit, NaN and -0.0 included."""
    scalars = ("episode_id", "seed", "terminated", "truncated")
    arrays = [(getattr(left, name), getattr(right, name)) for name in ("observations", "actions", "rewards")]
    if left.policy_outputs is not None and right.policy_outputs is not None:
        arrays.append((left.policy_outputs, right.policy_outputs))
    return (
        all(getattr(left, name) == getattr(right, name) for name in scalars)
        and (left.policy_outputs is None) == (right.policy_outputs is None)
        and all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in arrays)
    )
