"""Export a dataset in another project's format; the formats are in `storage/exporting` and `minari.py`.

There is no LeRobot writer: that format has no place for the observation after the last step, and asks for frames per
second, tasks and statistics that a dataset here does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from storage.datasets import iterate_episodes, read_manifest, resolve_dataset
from storage.errors import BadInput
from storage.exporting import EXPORTS, labels_by_step
from storage.schema import Manifest
from storage.store import Store

from .minari import write_minari

ExportFormat = Literal["parquet", "csv", "minari", "d3rlpy"]


class Exported(NamedTuple):
    """What was written."""

    manifest: Manifest
    labels: int
    notes: Sequence[str] = ()  # what to know about reading it


def export_dataset(
    store: Store,
    path: Path,
    format_: ExportFormat,
    *,
    dataset: str | None = None,
    with_labels: bool = False,
    runs: Sequence[str] | None = None,
) -> Exported:
    """Write a dataset, with its annotations if wanted.

    Args:
        store: the store.
        path: a file that is replaced, or, for Minari, a folder that must not be there.
        format_: of which program.
        dataset: its id or the unique beginning of it; the latest one when None.
        with_labels: whether the annotations go with it.
        runs: the annotation runs wanted; all when None.

    Raises:
        BadInput: if there is no such dataset or run, or nothing can be written there.
        DamagedStore: if a shard is damaged; no file is written then.
    """
    dataset_id = resolve_dataset(store, dataset)
    manifest = read_manifest(store, dataset_id)
    labels = labels_by_step(store, dataset_id, runs) if with_labels or runs else None
    notes: list[str] = []
    if not path.parent.is_dir():
        raise BadInput(f"There is no folder {path.parent}.", "Make it first.")
    if format_ != "minari":
        if path.is_dir():
            raise BadInput(f"{path} is a folder.", "Name a file.")
        notes = EXPORTS[format_](store, dataset_id, labels, path) or notes
    elif path.exists():
        raise BadInput(f"{path} exists.", "A Minari dataset is a folder of its own; name another one.")
    else:
        write_minari(manifest, iterate_episodes(store, dataset_id), labels, path)
    return Exported(manifest, sum(map(len, labels.values())) if labels else 0, notes)
