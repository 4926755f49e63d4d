"""Reads the steps of a dataset, as episodes or flat columns. The format of a file is in `columns.py`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import polars as pl
import pyarrow as pa

from ..errors import BadInput
from ..schema import Episode, Manifest, Shard
from ..store import Store
from .columns import StepArrays, cut_episodes, decode_episodes, decode_steps
from .memory_map import is_large, map_dataset
from .shards import check_shard, read_manifest, read_shard
from .writer import StepsWriter

__all__ = [
    "StepArrays",
    "StepsWriter",
    "iterate_episodes",
    "list_episodes",
    "read_episode",
    "read_manifest",
    "read_steps",
    "scan_steps",
]


def read_episode(store: Store, dataset_id: str, episode_id: int) -> Episode:
    """Read one episode.

    Raises:
        BadInput: if there is no such dataset or episode.
        DamagedStore: if its shard is damaged.
    """
    return next(iterate_episodes(store, dataset_id, [episode_id]))


def iterate_episodes(store: Store, dataset_id: str, episode_ids: Sequence[int] | None = None) -> Iterator[Episode]:
    """Yield episodes, with one shard in memory at a time.

    Args:
        store: the store.
        dataset_id: of the store.
        episode_ids: the episodes wanted, in this order; all, ascending, when None.

    Raises:
        BadInput: if there is no such dataset or episode.
        DamagedStore: if a shard is damaged.
    """
    manifest = read_manifest(store, dataset_id)
    for shard, wanted in _plan(manifest, episode_ids):
        episodes = decode_episodes(_read_wanted(store, manifest, shard, wanted), manifest)
        if wanted is None:
            yield from episodes
        else:
            found = {episode.episode_id: episode for episode in episodes}
            yield from (found[episode_id] for episode_id in wanted)


def list_episodes(store: Store, dataset_id: str) -> list[Episode]:
    """All episodes, ascending; those of a large dataset are views of mapped columns and take almost no memory.

    Raises:
        BadInput: if there is no such dataset.
        DamagedStore: if a shard is damaged.
    """
    manifest = read_manifest(store, dataset_id)
    mapped = map_dataset(store, manifest) if is_large(manifest) else None
    return list(iterate_episodes(store, dataset_id) if mapped is None else cut_episodes(*mapped, manifest))


def read_steps(store: Store, dataset_id: str, *, episode_ids: Sequence[int] | None = None) -> StepArrays:
    """Rows of a dataset as flat columns, episodes ascending, each once; all rows of a large dataset are mapped.

    Raises:
        BadInput: if there is no such dataset or episode.
        DamagedStore: if a shard is damaged.
    """
    manifest = read_manifest(store, dataset_id)
    if episode_ids is None:
        if is_large(manifest) and (mapped := map_dataset(store, manifest)) is not None:
            return mapped.rows
        everything = (read_shard(store, manifest, shard) for shard in manifest.shards)
        return decode_steps(everything, manifest.steps + manifest.episodes, manifest)
    plan = _plan(manifest, sorted(set(episode_ids)))
    tables = [_read_wanted(store, manifest, shard, wanted) for shard, wanted in plan]
    return decode_steps(tables, sum(table.num_rows for table in tables), manifest)


def scan_steps(store: Store, dataset_id: str) -> pl.LazyFrame:
    """A dataset's Parquet files as a lazy polars frame, in the columns of the steps schema.

    Raises:
        BadInput: if there is no such dataset.
        DamagedStore: if a shard is missing or its size has changed.
    """
    manifest = read_manifest(store, dataset_id)
    folder = store.dataset_dir(dataset_id)
    for shard in manifest.shards:
        check_shard(store, manifest, shard)
    return pl.scan_parquet([folder / shard.name for shard in manifest.shards], glob=False)


def _plan(manifest: Manifest, episode_ids: Sequence[int] | None) -> Iterator[tuple[Shard, list[int] | None]]:
    """Which episodes to take from which shard; consecutive episodes of one shard are read together."""
    if episode_ids is None:
        yield from ((shard, None) for shard in manifest.shards)
        return
    shards = manifest.shards
    ids = [int(episode_id) for episode_id in episode_ids]
    places = [bisect_left(shards, episode_id, key=lambda shard: shard.last_episode) for episode_id in ids]
    if len(shards) in places:
        raise _unknown(ids[places.index(len(shards))], shards)
    for place, pairs in groupby(zip(places, ids, strict=True), key=itemgetter(0)):
        yield shards[place], [episode_id for _, episode_id in pairs]


def _read_wanted(store: Store, manifest: Manifest, shard: Shard, wanted: list[int] | None) -> pa.Table:
    if wanted is None:
        return read_shard(store, manifest, shard)
    table = read_shard(store, manifest, shard, episodes=(min(wanted), max(wanted)))
    ids = np.asarray(table["episode_id"])
    if missing := np.setdiff1d(wanted, ids).tolist():
        raise _unknown(missing[0], [shard])
    return table.filter(pa.array(np.isin(ids, wanted)))


def _unknown(episode_id: int, shards: Sequence[Shard]) -> BadInput:
    first, last = shards[0].first_episode, shards[-1].last_episode
    return BadInput(f"There is no episode {episode_id}.", f"Near it: episodes {first} to {last}.")
