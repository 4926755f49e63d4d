"""Datasets as files for other programs: Parquet, CSV, and the dump of a d3rlpy ReplayBuffer, labels included.

One shard is in memory at a time. Each file carries the manifest, so that `import` gives the same dataset back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from .annotations import load_annotations
from .datasets import iterate_episodes, read_manifest, read_shard
from .disk import TEMPORARY, sync_to_disk, write_whole, writing
from .importing import MANIFEST_KEY, sidecar
from .schema import Annotation, Array, Episode, Manifest, Space, canonical_json
from .store import Store

Labels = Mapping[tuple[int, int], Sequence[Annotation]]  # (episode, step) -> its annotations
_D3RLPY_VERSION = "2.1"  # of the file format
_LABEL = pa.struct(
    {
        "annotation_id": pa.string(),
        "run_id": pa.string(),
        "critical": pa.bool_(),
        "suggested_action": pa.list_(pa.float64()),
        "suggested_label": pa.string(),
        "implicit_reward": pa.float64(),
        "confidence": pa.float64(),
        "rationale": pa.string(),
        "model": pa.string(),
        "prompt_version": pa.string(),
    }
)


def labels_by_step(store: Store, dataset_id: str, run_ids: Sequence[str] | None = None) -> Labels:
    """The annotations of a dataset at their steps; of all runs when None.

    Raises:
        BadInput: if there is no such run.
    """
    found: dict[tuple[int, int], list[Annotation]] = {}
    for note in load_annotations(store, dataset_id, run_ids):
        found.setdefault((note.episode_id, note.step), []).append(note)
    return found


def export_parquet(store: Store, dataset_id: str, labels: Labels | None, path: Path) -> None:
    """Write the rows as stored; `annotations`, a list per row, holds the labels if any are wanted."""
    manifest = read_manifest(store, dataset_id)
    with _replacing(path) as temporary:
        writer = None
        for table in _tables(store, manifest, labels):
            if writer is None:
                notes = {MANIFEST_KEY: canonical_json(manifest)}
                writer = pq.ParquetWriter(temporary, table.schema.with_metadata(notes), compression="zstd")
            writer.write_table(table)
        if writer:
            writer.close()


def export_csv(store: Store, dataset_id: str, labels: Labels | None, path: Path) -> None:
    """Write one column per number, `observation.x`, ...; labels as JSON; the manifest in a file beside.

    Every number is written so that it reads back exactly.
    """
    manifest = read_manifest(store, dataset_id)
    with _replacing(path) as temporary:
        with temporary.open("wb") as file:
            for number, table in enumerate(_tables(store, manifest, labels)):
                _spell_out(table, manifest).write_csv(file, include_header=number == 0)
        write_whole(sidecar(path), canonical_json(manifest).encode())


def export_d3rlpy(store: Store, dataset_id: str, labels: Labels | None, path: Path) -> list[str]:
    """Write what `ReplayBuffer.load` of d3rlpy reads, discrete actions as indices from 0.

    That format has neither final observations nor seeds; they stand beside it, where d3rlpy does not look.

    Returns:
        How to load it, if d3rlpy would guess the wrong action space.
    """
    manifest = read_manifest(store, dataset_id)
    guess = _D3rlpyGuess()
    with _replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs[MANIFEST_KEY] = canonical_json(manifest)
        file["version"] = _D3RLPY_VERSION
        file["columns"] = ["observations", "actions", "rewards", "terminated"]
        file["num_episodes"] = manifest.episodes
        for number, episode in enumerate(iterate_episodes(store, dataset_id)):
            dumped = _dump(episode, manifest, labels)
            guess.see(dumped["actions"])
            for name, values in dumped.items():
                file[f"{name}_{number}"] = values
        correction = guess.correction(manifest.action_space, path)
        if correction:
            file.attrs["how_to_load"] = correction[-1]
    return correction


class _D3rlpyGuess:
    """The kind of actions that d3rlpy's loader guesses: discrete if the first episode has whole numbers only."""

    def __init__(self) -> None:
        self._kind, self._largest = "", 0

    def see(self, actions: Array) -> None:
        with np.errstate(invalid="ignore"):
            self._kind = self._kind or ("discrete" if np.all(actions.astype(np.int32) == actions) else "continuous")
        self._largest = max(self._largest, int(np.nanmax(actions, initial=0, where=np.isfinite(actions))))

    def correction(self, space: Space, path: Path) -> list[str]:
        """What is wrong with that guess and how to load the file instead; None if it is right."""
        kind, size = ("discrete", space.n or 1) if space.is_discrete else ("continuous", space.size)
        if self._kind == kind and (kind == "continuous" or self._largest + 1 == size):
            return []
        guessed = f"{self._largest + 1} discrete actions" if self._kind == "discrete" else "continuous actions"
        return [
            f"ReplayBuffer.load takes these for {guessed}; they are {kind}, of size {size}. Load them with:",
            "from d3rlpy.constants import ActionSpace; from d3rlpy.dataset.io import load; "
            "from d3rlpy.dataset import Episode, InfiniteBuffer, ReplayBuffer; "
            f"buffer = ReplayBuffer(InfiniteBuffer(), episodes=load(Episode, "
            f"open({path.name!r}, 'rb')), action_space=ActionSpace.{kind.upper()}, action_size={size})",
        ]


def _dump(episode: Episode, manifest: Manifest, labels: Labels | None) -> dict[str, Any]:
    observations = episode.observations.reshape(len(episode) + 1, -1)
    actions = episode.actions - manifest.action_space.start if manifest.action_space.is_discrete else episode.actions
    values: dict[str, Any] = {
        "observations": observations[:-1],
        "actions": actions.reshape(len(episode), -1),
        "rewards": episode.rewards[:, None],
        "terminated": episode.terminated,
        "truncated": episode.truncated,
        "final_observation": observations[-1:],
        "episode_id": episode.episode_id,
    }
    if episode.seed is not None:
        values["seed"] = episode.seed
    if episode.policy_outputs is not None:
        values["policy_output"] = episode.policy_outputs
    if labels is not None:
        notes = [labels.get((episode.episode_id, step), ()) for step in range(len(episode))]
        values["annotations"] = [canonical_json([_label(note) for note in at_step]) for at_step in notes]
    return values


def _tables(store: Store, manifest: Manifest, labels: Labels | None) -> Iterator[pa.Table]:
    for shard in manifest.shards:
        table = read_shard(store, manifest, shard)
        if labels is not None:
            keys = zip(table["episode_id"].to_pylist(), table["step"].to_pylist(), strict=True)
            notes = [[_label(note) for note in labels.get(key, ())] for key in keys]
            table = table.append_column("annotations", pa.array(notes, pa.list_(_LABEL)))
        yield table


def _label(note: Annotation) -> dict[str, Any]:
    return {field.name: getattr(note, field.name) for field in _LABEL}


def _spell_out(table: pa.Table, manifest: Manifest) -> pl.DataFrame:
    """Lists as columns of their numbers; narrow floats as doubles, whose text is exact."""
    frame = pl.DataFrame(pl.from_arrow(table))
    columns: list[pl.Expr | pl.Series] = []
    for name, kind in frame.schema.items():
        if name == "annotations":
            columns.append(pl.Series(name, [canonical_json(notes) for notes in table[name].to_pylist()], pl.String))
        elif isinstance(kind, pl.Array):
            given = {"observation": manifest.component_names, "action": manifest.action_names}
            for place, part in enumerate(given.get(name, range(kind.size))):
                cell = pl.col(name).arr.get(place).alias(f"{name}.{part}")
                columns.append(cell.cast(pl.Float64) if kind.inner.is_float() else cell)
        elif not kind.is_nested():
            columns.append(pl.col(name))
    return frame.select(columns)


@contextmanager
def _replacing(path: Path) -> Generator[Path]:
    """A temporary name beside a file, which it replaces if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        with writing(path):
            sync_to_disk(temporary)
            temporary.replace(path)
            sync_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


EXPORTS: Mapping[str, Callable[[Store, str, Labels | None, Path], list[str] | None]] = {
    "parquet": export_parquet,
    "csv": export_csv,
    "d3rlpy": export_d3rlpy,
}
