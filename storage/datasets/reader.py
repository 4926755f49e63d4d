"""Finds a dataset by its name and reads its steps, or those of a pool; those of a large one are mapped into memory.

A pool has the rows of several datasets one after the other, with the episodes renumbered. The format of a file is in
`columns.py`. Mapped columns are a copy that may be deleted, named by the content of the shards: written once, then read
in place by every process. The operating system reads the pages that are touched, and drops them when it needs the
space. A store keeps the columns of one pool, the newest.
"""

from __future__ import annotations

import math
import shutil
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ..disk import UnreadableError, decode_json, exclusive_lock, map_arrays, publish_arrays
from ..errors import BadInput, Prerequisite, did_you_mean
from ..schema import Array, Episode, Manifest, ManifestDraft, Shard, canonical_json, content_id
from ..store import Store
from .columns import SeededSteps, StepArrays, cut_episodes, decode_episodes, decode_steps, require_finite
from .files import read_manifest, read_shard


@dataclass(frozen=True)
class DatasetSummary:
    """One row of the list of datasets."""

    dataset_id: str
    source: str
    env_id: str | None
    policy: str | None
    policy_mode: str | None
    episodes: int
    steps: int
    return_: float  # mean over the episodes
    created_at: str  # ISO 8601, UTC


def list_datasets(store: Store) -> list[DatasetSummary]:
    """All datasets of the catalog, oldest first."""
    rows = store.select(
        """SELECT dataset_id, source, env_id, policy, policy_mode, episodes, steps,
                  (SELECT avg(return_) FROM episodes WHERE episodes.dataset_id = datasets.dataset_id),
                  strftime(created_at, '%Y-%m-%dT%H:%M:%SZ')
           FROM datasets ORDER BY created_at, dataset_id"""
    )
    return [DatasetSummary(*row) for row in rows]


class CataloguedEpisode(NamedTuple):
    """What the catalog says about an episode."""

    episode_id: int
    seed: int | None
    length: int
    return_: float


def catalogued_episodes(store: Store, dataset_id: str) -> list[CataloguedEpisode]:
    """What the catalog says about the episodes of a dataset, ascending."""
    question = "SELECT episode_id, seed, length, return_ FROM episodes WHERE dataset_id = ? ORDER BY episode_id"
    return [CataloguedEpisode(*row) for row in store.select(question, [dataset_id])]


def resolve_dataset(store: Store, name: str | None = None) -> str:
    """The id of the dataset that a user means: its id or the unique beginning of it; the latest one when None.

    Raises:
        Prerequisite: if the store has no dataset.
        BadInput: if the name fits no dataset, or several.
    """
    known = [dataset.dataset_id for dataset in list_datasets(store)]
    if not known:
        raise Prerequisite(f"There is no dataset in {store.root}.", "Make one with `trajnote collect`.")
    return known[-1] if name is None else pick(name, known, "dataset")


def pick(name: str, known: list[str], kind: str) -> str:
    """The known name that is `name` or, alone, begins with it.

    Raises:
        BadInput: if no name fits, or several do.
    """
    if name in known:
        return name
    fitting = [item for item in known if item.startswith(name)] if name else []
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise BadInput(f"{name!r} is a prefix of {len(fitting)} {kind} names: {', '.join(fitting[:5])}.")
    near = did_you_mean(name, known)
    raise BadInput(f"There is no {kind} {name!r}.{near}", f"Known: {', '.join(known[-5:])}." if known else "")


def read_episode(store: Store, dataset_id: str, episode_id: int) -> Episode:
    """Read one episode.

    Raises:
        BadInput: if there is no such dataset or episode.
        DamagedStore: if its shard is damaged.
    """
    return next(iterate_episodes(store, dataset_id, [episode_id]))


def iterate_episodes(store: Store, dataset_id: str, episode_ids: Sequence[int] | None = None) -> Iterator[Episode]:
    """Yield the episodes wanted, in their order, or (None) all, ascending; one shard is in memory at a time.

    Raises:
        BadInput: if there is no such dataset or episode.
        DamagedStore: if a shard is damaged.
    """
    manifest = read_manifest(store, dataset_id)
    if episode_ids is None:
        for shard in manifest.shards:
            yield from decode_episodes(read_shard(store, manifest, shard), manifest)
        return
    for shard, wanted in _plan(manifest, episode_ids):
        table = read_shard(store, manifest, shard, episodes=(min(wanted), max(wanted)))
        asked = table.filter(pa.array(np.isin(np.asarray(table["episode_id"]), wanted)))
        found = {episode.episode_id: episode for episode in decode_episodes(asked, manifest)}
        if missing := set(wanted) - found.keys():
            raise _unknown(min(missing), [shard])
        yield from (found[episode_id] for episode_id in wanted)


def list_episodes(store: Store, dataset_id: str) -> list[Episode]:
    """All episodes, ascending; those of a large dataset are views of mapped columns and take almost no memory.

    Raises:
        BadInput: if there is no such dataset.
        DamagedStore: if a shard is damaged.
    """
    manifest = read_manifest(store, dataset_id)
    mapped = map_columns(store, [manifest]) if is_large([manifest]) else None
    return list(iterate_episodes(store, dataset_id) if mapped is None else cut_episodes(*mapped, manifest))


def read_steps(store: Store, dataset_id: str) -> StepArrays:
    """Rows of a dataset as flat columns, episodes ascending; those of a large dataset are mapped.

    Raises:
        BadInput: if there is no such dataset.
        DamagedStore: if a shard is damaged.
    """
    return _read_all(store, [read_manifest(store, dataset_id)])


_ALIKE = ("env_id", "env_kwargs", "observation_space", "action_space", "component_names", "action_names")


def read_pool(store: Store, dataset_ids: Sequence[str]) -> StepArrays:
    """Rows of several datasets as flat columns; the episodes of each follow those of the one before.

    `policy_output` is kept where all of them have it. Those of a large pool are mapped.

    Raises:
        BadInput: if there is no such dataset, one holds numbers that are not finite, or they differ in environment,
            spaces or names.
        DamagedStore: if a shard is damaged.
    """
    manifests = [read_manifest(store, dataset_id) for dataset_id in dataset_ids]
    _check_alike(manifests)
    pool = _read_all(store, manifests)
    looked_at = _folder(store, manifests) / _FINITE if is_large(manifests) else None
    if looked_at is None or not looked_at.exists():
        _require_finite(pool, manifests)
    if looked_at is not None:
        with suppress(OSError):  # not mapped, or a store that can only be read
            looked_at.touch()
    return pool


def _require_finite(pool: StepArrays, manifests: Sequence[Manifest]) -> None:
    end = 0
    for manifest, shift in zip(manifests, episode_shifts(manifests), strict=True):
        start, end = end, end + _rows([manifest])
        part = pool.at(slice(start, end))
        require_finite(replace(part, episode_id=part.episode_id - shift), manifest.dataset_id)


def episode_shifts(manifests: Sequence[Manifest]) -> list[int]:
    """What is added to the episode numbers of each dataset of a pool."""
    return list(accumulate((manifest.shards[-1].last_episode + 1 for manifest in manifests[:-1]), initial=0))


def _check_alike(manifests: Sequence[Manifest]) -> None:
    first, *others = manifests
    for other in others:
        for name in _ALIKE:
            if canonical_json(getattr(other, name)) != canonical_json(getattr(first, name)):
                raise BadInput(
                    f"The datasets {first.dataset_id} and {other.dataset_id} differ in {name}: they cannot be pooled.",
                    "Give each its own deployment.",
                )


def _read_all(store: Store, manifests: Sequence[Manifest]) -> StepArrays:
    if is_large(manifests) and (mapped := map_columns(store, manifests)) is not None:
        return mapped.rows
    everything = (read_shard(store, manifest, shard) for manifest in manifests for shard in manifest.shards)
    rows, end = decode_steps(everything, _rows(manifests), _draft(manifests)), 0
    for manifest, shift in zip(manifests, episode_shifts(manifests), strict=True):
        start, end = end, end + _rows([manifest])
        rows.episode_id[start:end] += shift
    return rows


def _rows(manifests: Sequence[Manifest]) -> int:
    return sum(manifest.steps + manifest.episodes for manifest in manifests)


def _draft(manifests: Sequence[Manifest]) -> ManifestDraft:
    """What decodes the rows of all of them."""
    has_outputs = all(manifest.policy_output for manifest in manifests)
    return manifests[0] if has_outputs else manifests[0].model_copy(update={"policy_output": None})


def _plan(manifest: Manifest, episode_ids: Sequence[int]) -> Iterator[tuple[Shard, list[int]]]:
    """Which episodes to take from which shard; consecutive episodes of one shard are read together."""
    shards = manifest.shards
    ids = [int(episode_id) for episode_id in episode_ids]
    places = [bisect_left(shards, episode_id, key=lambda shard: shard.last_episode) for episode_id in ids]
    if len(shards) in places:
        raise _unknown(ids[places.index(len(shards))], shards)
    for place, pairs in groupby(zip(places, ids, strict=True), key=itemgetter(0)):
        yield shards[place], [episode_id for _, episode_id in pairs]


def _unknown(episode_id: int, shards: Sequence[Shard]) -> BadInput:
    first, last = shards[0].first_episode, shards[-1].last_episode
    return BadInput(f"There is no episode {episode_id}.", f"Near it: episodes {first} to {last}.")


MAPPED_ROWS = 2_000_000
"""Fewer rows are decoded in memory, which takes a second or two."""
_NAMES = tuple(field.name for field in fields(StepArrays))
_SEEDS = "seed"
_UNKNOWN_SEED = -1  # Gymnasium's seeds are not negative
_ROOM = 1.1  # of the columns' bytes
_MEMBERS = "datasets.json"  # which datasets the columns of a pool are of
_FINITE = "finite"  # says of columns that all their numbers were looked at once


def is_large(manifests: Sequence[Manifest]) -> bool:
    """Whether a dataset or a pool is read by mapping its columns."""
    return _rows(manifests) >= MAPPED_ROWS


def map_columns(store: Store, manifests: Sequence[Manifest]) -> SeededSteps | None:
    """All rows of datasets, in this order, as read-only columns on disk, which are written first if missing.

    Returns:
        The columns and the seeds; None if the disk has no space for them.

    Raises:
        DamagedStore: if a shard is damaged.
    """
    folder = _folder(store, manifests)
    for _ in range(2):
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(folder.parent, f"the columns of {manifests[0].dataset_id}", wait=True):
                if not folder.is_dir() and not _write(store, manifests, folder):
                    return None
        if (found := _open_columns(folder, manifests)) is not None:
            rows = StepArrays(**{name: found.get(name) for name in _NAMES})  # pyright: ignore[reportArgumentType]
            return SeededSteps(rows, [None if seed == _UNKNOWN_SEED else seed for seed in found[_SEEDS].tolist()])
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)  # damaged, and only a copy
    return None


def list_pools(store: Store) -> list[list[str]]:
    """The datasets of each pool that has columns; one whose list cannot be read is left out."""
    found: list[list[str]] = []
    for path in sorted(store.pools_dir.glob(f"*/{_MEMBERS}")):
        with suppress(OSError, UnreadableError):
            names = decode_json(path.read_bytes())
            found += [[str(name) for name in names]] if isinstance(names, list) and names else []
    return found


def damaged_columns(store: Store, manifests: Sequence[Manifest]) -> list[Path]:
    """The files of columns of a dataset or a pool that differ from the shards; empty if it has no columns.

    Raises:
        DamagedStore: if a shard is damaged.
    """
    folder = _folder(store, manifests)
    if not folder.is_dir():
        return []
    if (found := _open_columns(folder, manifests)) is None:
        return [folder]
    wrong: set[str] = set()
    places = dict.fromkeys(found, 0)
    for part in _parts(store, manifests):
        for name, column in part.items():
            start, places[name] = places[name], places[name] + len(column)
            if found[name][start : places[name]].tobytes() != column.tobytes():
                wrong.add(name)
    return [folder / f"{name}.npy" for name in sorted(wrong)]


def _open_columns(folder: Path, manifests: Sequence[Manifest]) -> dict[str, Array] | None:
    """The columns of a folder; None if one is missing or has a wrong type or size."""
    lengths = _lengths(manifests)
    expected = {name: (empty.dtype, (lengths[name], *empty.shape[1:])) for name, empty in _empty(manifests).items()}
    try:
        found = map_arrays(folder, expected)
    except (OSError, ValueError, EOFError):
        return None
    return found if {name: (column.dtype, column.shape) for name, column in found.items()} == expected else None


def _empty(manifests: Sequence[Manifest]) -> dict[str, Array]:
    """Columns without rows."""
    return {**_columns(decode_steps([], 0, _draft(manifests))), _SEEDS: np.zeros(0, np.int64)}


def _lengths(manifests: Sequence[Manifest]) -> dict[str, int]:
    """Rows of each column."""
    episodes = sum(manifest.episodes for manifest in manifests)
    return dict.fromkeys(_NAMES, _rows(manifests)) | {_SEEDS: episodes}


def _folder(store: Store, manifests: Sequence[Manifest]) -> Path:
    """Where the columns are, named by the content of the shards."""
    content = [[shard.sha256 for shard in manifest.shards] for manifest in manifests]
    if len(manifests) == 1:
        return store.columns_dir(manifests[0].dataset_id) / content_id("", content[0])
    return store.pools_dir / content_id("", content)


def _write(store: Store, manifests: Sequence[Manifest], folder: Path) -> bool:
    """Write the columns shard by shard, in place of those of another pool; False if there is no space for them."""
    for other in folder.parent.iterdir() if len(manifests) > 1 else ():
        shutil.rmtree(other, ignore_errors=True)
    empty, lengths = _empty(manifests), _lengths(manifests)
    size = sum(lengths[name] * column.itemsize * math.prod(column.shape[1:]) for name, column in empty.items())
    if shutil.disk_usage(folder.parent).free < _ROOM * size:
        return False
    members = {_MEMBERS: canonical_json([manifest.dataset_id for manifest in manifests]).encode()}
    publish_arrays(folder, empty, lengths, _parts(store, manifests), members if manifests[1:] else {})
    return True


def _parts(store: Store, manifests: Sequence[Manifest]) -> Iterator[dict[str, Array]]:
    """The columns of each shard."""
    draft = _draft(manifests)
    for manifest, shift in zip(manifests, episode_shifts(manifests), strict=True):
        for shard in manifest.shards:
            table = read_shard(store, manifest, shard)
            rows = decode_steps([table], table.num_rows, draft)
            rows.episode_id[:] += shift
            seeds = table["seed"].take(pa.array(rows.starts)).fill_null(_UNKNOWN_SEED)
            yield {**_columns(rows), _SEEDS: seeds.to_numpy()}


def _columns(rows: StepArrays) -> dict[str, Array]:
    return {name: column for name in _NAMES if (column := getattr(rows, name)) is not None}
