"""Datasets that come in from a file with their card, and datasets that leave in another project's format.

Collected ones are in `collection.py`; checking rows is `storage/importing/import_dataset.py`; the formats are in
`storage/exporting` and `minari.py`. There is no LeRobot writer: that format has no place for the observation after the
last step, and asks for frames per second, tasks and statistics that a dataset here does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from storage.datasets import adopt_dataset, iterate_episodes, read_manifest, resolve_dataset
from storage.errors import BadInput
from storage.exporting import EXPORTS, labels_by_step
from storage.importing import Choices, Columns, ImportReport, import_recording, open_recording
from storage.schema import Manifest
from storage.store import MANIFEST, Store

from ..simulation import Named, look_up_flattened, look_up_spaces, remember
from .collection import Fitting, fit_card, read_named, warn_if_not_kept
from .minari import open_minari, write_minari

ExportFormat = Literal["parquet", "csv", "minari", "d3rlpy"]


def take_in(
    store: Store,
    path: Path,
    *,
    dataset_id: str | None = None,
    env_id: Named | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    card: str | None = None,
    columns: Columns | None = None,
    choices: Choices | None = None,
    report: ImportReport | None = None,
) -> Manifest:
    """Import a recording, or adopt the folder of a dataset unchanged.

    Args:
        store: where it goes.
        path: a file that `open_recording` takes, or the folder of a dataset of Minari or of a store.
        dataset_id: its name; made from the content when None.
        env_id: Gymnasium id of the environment; None: what the file says, if anything; it need not be
            installed then.
        env_kwargs: arguments with which it was made.
        card: path of a card; the packaged one of the environment, if there is one, when None.
        columns: as `storage.importing.import_dataset.open_recording`.
        choices: the user's decisions where the file does not say.
        report: counts what was decided, given up and left out.

    Raises:
        BadInput: naming what is wrong with the rows, the environment or the card; nothing was written then.
        DamagedStore: if a shard of the folder differs from its manifest.
    """
    named = read_named(card)
    if (path / MANIFEST).is_file():
        manifest = adopt_dataset(store, path)
        warn_if_not_kept(manifest, named)
        return _remember(store, manifest, env_id, env_kwargs)
    opened = open_minari(path) if path.is_dir() else open_recording(path, columns)
    with opened as recording:
        recorded = recording.about
        id_, kwargs = (env_id, env_kwargs or {}) if env_id else (recorded.env_id, recorded.env_kwargs)
        spaces = look_up_spaces(env_id, env_kwargs) if env_id else None
        is_wanted = named or env_id or not recorded.component_names or recorded.flattened_from
        fitting = fit_card(named, id_, kwargs, spaces) if is_wanted else Fitting()
        flattened = look_up_flattened(env_id, env_kwargs) if env_id else None
        about = recorded.but(
            env_id=env_id,
            env_kwargs=env_kwargs,
            observation_space=spaces.observation if spaces else None,
            action_space=spaces.action if spaces else None,
            flattened_from=flattened.space if flattened else None,
            component_names=fitting.component_names
            or (flattened.names if flattened and not recorded.component_names else None),
            action_names=fitting.action_names,
        )
        manifest = import_recording(
            store, recording, about, dataset_id, choices=choices, card=fitting.card, report=report
        )
    warn_if_not_kept(manifest, named)
    return _remember(store, manifest, env_id, env_kwargs)


def _remember(store: Store, manifest: Manifest, env_id: Named | None, env_kwargs: Mapping[str, Any] | None) -> Manifest:
    """Record that the user named the environment, unless the data brought arguments that the user did not name."""
    if env_id is None or dict(manifest.env_kwargs) != dict(env_kwargs or {}):
        return manifest
    return remember(store, manifest, env_id=env_id)


class Exported(NamedTuple):
    """A written export."""

    manifest: Manifest
    labels: int
    notes: Sequence[str] = ()  # how to read it, if not obvious


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
        path: a file, which is replaced, or, for Minari, a folder that must not exist.
        format_: the program's format.
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
        raise BadInput(f"{path} already exists.", "Name a new folder for the Minari dataset.")
    else:
        write_minari(manifest, iterate_episodes(store, dataset_id), labels, path)
    return Exported(manifest, sum(map(len, labels.values())) if labels else 0, notes)
