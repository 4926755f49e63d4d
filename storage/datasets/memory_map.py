"""Large datasets as memory-mapped columns: written once from the shards, then read in place by every process.

They are a copy that may be deleted, named by the content of the shards. A mapped column takes no memory of its own:
the operating system reads the pages that are touched, and drops them when it needs the space.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..content_hash import content_id
from ..disk import TEMPORARY, exclusive_lock, publish_folder, writing
from ..schema import Array, Manifest
from ..store import Store
from .columns import StepArrays, decode_steps
from .shards import read_shard

MAPPED_ROWS = 2_000_000
"""Datasets with fewer rows are decoded in memory, which takes a second or two."""
_NAMES = tuple(field.name for field in fields(StepArrays))
_SEEDS = "seed"
_UNKNOWN_SEED = -1  # Gymnasium's seeds are not negative
_ROOM = 1.1  # of the columns' bytes


def is_large(manifest: Manifest) -> bool:
    """Whether a dataset is read by mapping its columns."""
    return manifest.steps + manifest.episodes >= MAPPED_ROWS


class Mapped(NamedTuple):
    """A memory-mapped dataset."""

    rows: StepArrays  # of read-only columns
    seeds: list[int | None]  # of each episode


def map_dataset(store: Store, manifest: Manifest) -> Mapped | None:
    """All rows of a dataset as read-only columns on disk, which are written first if missing.

    Args:
        store: the store.
        manifest: of one of its datasets.

    Returns:
        The columns and the seeds; None if the disk has no space for them.

    Raises:
        DamagedStore: if a shard is damaged.
    """
    for _ in range(2):
        folder = _find_folder(store, manifest)
        if folder is None:
            return None
        if (found := _open_columns(folder, manifest)) is not None:
            rows = StepArrays(**{name: found.get(name) for name in _NAMES})  # pyright: ignore[reportArgumentType]
            return Mapped(rows, [None if seed == _UNKNOWN_SEED else seed for seed in found[_SEEDS].tolist()])
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)  # damaged, and only a copy
    return None


def damaged_columns(store: Store, manifest: Manifest) -> list[Path]:
    """The files of columns that differ from the shards; empty if the dataset has no columns.

    Raises:
        DamagedStore: if a shard is damaged.
    """
    folder = store.columns_dir(manifest.dataset_id) / _key(manifest)
    if not folder.is_dir():
        return []
    if (found := _open_columns(folder, manifest)) is None:
        return [folder]
    wrong: set[str] = set()
    places = dict.fromkeys(found, 0)
    for part, seeds in _parts(store, manifest):
        for name, column in {**_columns(part), _SEEDS: seeds}.items():
            start, places[name] = places[name], places[name] + len(column)
            if found[name][start : places[name]].tobytes() != column.tobytes():
                wrong.add(name)
    return [folder / f"{name}.npy" for name in sorted(wrong)]


def _open_columns(folder: Path, manifest: Manifest) -> dict[str, Array] | None:
    """The columns of a folder; None if one is missing or has a wrong type or size."""
    rows = manifest.steps + manifest.episodes
    expected = {name: (column.dtype, (rows, *column.shape[1:])) for name, column in _empty(manifest).items()}
    expected[_SEEDS] = (np.dtype(np.int64), (manifest.episodes,))
    try:
        files = {name: folder / f"{name}.npy" for name in expected}
        found = {name: np.asarray(np.load(file, mmap_mode="r", allow_pickle=False)) for name, file in files.items()}
    except (OSError, ValueError, EOFError):
        return None
    return found if {name: (column.dtype, column.shape) for name, column in found.items()} == expected else None


def _empty(manifest: Manifest) -> Mapping[str, Array]:
    return _columns(decode_steps([], 0, manifest))


def _key(manifest: Manifest) -> str:
    return content_id("", [shard.sha256 for shard in manifest.shards])


def _find_folder(store: Store, manifest: Manifest) -> Path | None:
    folder = store.columns_dir(manifest.dataset_id) / _key(manifest)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder.parent, f"the columns of {manifest.dataset_id}", wait=True):
            if not folder.is_dir() and not _write(store, manifest, folder):
                return None
    return folder


def _write(store: Store, manifest: Manifest, folder: Path) -> bool:
    """Write the columns shard by shard; False if there is no space for them."""
    empty = _empty(manifest)
    row_bytes = sum(column.itemsize * math.prod(column.shape[1:]) for column in empty.values())
    rows = manifest.steps + manifest.episodes
    if shutil.disk_usage(folder.parent).free < _ROOM * rows * row_bytes:
        return False
    unfinished = folder.with_name(folder.name + TEMPORARY)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    with writing(unfinished), ExitStack() as stack:
        files = {name: stack.enter_context((unfinished / f"{name}.npy").open("wb")) for name in [*empty, _SEEDS]}
        for name, column in empty.items():
            _write_header(files[name], column, rows)
        _write_header(files[_SEEDS], np.zeros(0, np.int64), manifest.episodes)
        for part, seeds in _parts(store, manifest):
            for name, column in _columns(part).items():
                column.tofile(files[name])
            seeds.tofile(files[_SEEDS])
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    publish_folder(unfinished, folder)
    return True


def _parts(store: Store, manifest: Manifest) -> Iterator[tuple[StepArrays, NDArray[np.int64]]]:
    """Each shard's rows, and the seeds of its episodes."""
    for shard in manifest.shards:
        table = read_shard(store, manifest, shard)
        rows = decode_steps([table], table.num_rows, manifest)
        seeds = table["seed"].take(pa.array(rows.starts)).fill_null(_UNKNOWN_SEED)
        yield rows, seeds.to_numpy()


def _columns(rows: StepArrays) -> Mapping[str, Array]:
    return {name: column for name in _NAMES if (column := getattr(rows, name)) is not None}


def _write_header(file: BinaryIO, column: Array, rows: int) -> None:
    header: dict[str, Any] = {"descr": npy.dtype_to_descr(column.dtype), "fortran_order": False}
    npy.write_array_header_1_0(file, header | {"shape": (rows, *column.shape[1:])})
