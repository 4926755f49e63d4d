"""Parquet shards and the manifest beside them: written once, checked cheaply each time they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ..content_hash import sha256_file
from ..disk import TEMPORARY, gone_on_failure, sync_file, sync_folder, writing
from ..errors import BadInput, DamagedStore
from ..schema import Manifest, Shard
from ..store import Store
from .columns import COLUMNS, steps_schema

ROW_GROUP = 16_384
_FORMAT: Mapping[str, Any] = {
    "row_group_size": ROW_GROUP,
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["episode_id", "step", "terminated", "truncated", "seed"],
    "write_statistics": ["episode_id", "step"],
    "write_page_checksum": True,
}
_UNREADABLE = (pa.ArrowException, OSError, ValueError)
_VERIFY = "`trajnote store verify` names everything that is damaged; restore the file or make the dataset again."


class FinishedShard(NamedTuple):
    """A shard on disk, with what the manifest's totals need."""

    shard: Shard
    episodes: int


def shard_name(number: int) -> str:
    """The file name of a dataset's n-th shard, counted from 0."""
    return f"steps-{number:05d}.parquet"


def write_shard(folder: Path, name: str, table: pa.Table) -> FinishedShard:
    """Write whole episodes under a temporary name, force them to the disk, and rename.

    Numbers are stored without dictionaries, so every bit pattern survives; pages have checksums.

    Raises:
        DiskFailed: if the disk refuses it.
    """
    temporary = folder / (name + TEMPORARY)
    with writing(folder / name), gone_on_failure(temporary):
        pq.write_table(table, temporary, **_FORMAT)
        sync_file(temporary)
        temporary.rename(folder / name)
        sync_folder(folder)
    return describe_shard(folder, name)


def describe_shard(folder: Path, name: str) -> FinishedShard:
    """The manifest's entry for a finished file, and how many episodes it holds.

    Raises:
        DamagedStore: if the file cannot be read.
    """
    path = folder / name
    ids = np.asarray(_read(path, _open(path), ["episode_id"], None)["episode_id"])
    shard = Shard(
        name=name,
        sha256=sha256_file(path),
        bytes=path.stat().st_size,
        rows=len(ids),
        first_episode=int(ids[0]),
        last_episode=int(ids[-1]),
    )
    return FinishedShard(shard, len(np.unique(ids)))


def read_shard(
    store: Store,
    manifest: Manifest,
    shard: Shard,
    *,
    columns: Sequence[str] = COLUMNS,
    episodes: tuple[int, int] | None = None,
) -> pa.Table:
    """The rows of a shard, after a cheap check of its size and its footer.

    Args:
        store: the store.
        manifest: the dataset's.
        shard: one of its shards.
        columns: the columns wanted.
        episodes: first and last episode wanted; only row groups with some of them are read.

    Raises:
        DamagedStore: if the file is missing or differs from what was written.
    """
    file = check_shard(store, manifest, shard)
    path = store.dataset_dir(manifest.dataset_id) / shard.name
    if episodes is None:
        return _read(path, file, columns, None)
    table = _read(path, file, columns, _groups(file, *episodes))
    ids = np.asarray(table["episode_id"])
    low, high = np.searchsorted(ids, episodes[0], "left"), np.searchsorted(ids, episodes[1], "right")
    return table.slice(low, high - low)


def check_shard(store: Store, manifest: Manifest, shard: Shard) -> pq.ParquetFile:
    """Compare a shard's size, columns and number of rows with the manifest; the content is not read.

    Raises:
        DamagedStore: if they differ.
    """
    path = store.dataset_dir(manifest.dataset_id) / shard.name
    if not path.is_file():
        raise DamagedStore(f"{path} is missing.", _VERIFY)
    if (size := path.stat().st_size) != shard.bytes:
        raise DamagedStore(f"{path} has {size} bytes; {shard.bytes} were written.", _VERIFY)
    file = _open(path)
    if (rows := file.metadata.num_rows) != shard.rows:
        raise DamagedStore(f"{path} has {rows} rows; {shard.rows} were written.", _VERIFY)
    for column in steps_schema(manifest):
        if column.name not in file.schema_arrow.names or file.schema_arrow.field(column.name).type != column.type:
            raise DamagedStore(f"{path} has no column {column.name} of type {column.type}.", _VERIFY)
    return file


def read_manifest(store: Store, dataset_id: str) -> Manifest:
    """Read the manifest of a dataset.

    Raises:
        BadInput: if there is no such dataset.
        DamagedStore: if its manifest is missing or cannot be read.
    """
    path = store.manifest_path(dataset_id)
    if not path.parent.is_dir():
        raise BadInput(
            f"There is no dataset {dataset_id!r} in {store.root}.", "List its datasets with `trajnote store list`."
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DamagedStore(f"{path} is missing or not a manifest.", _VERIFY) from error


def require_readable(path: Path) -> None:
    """Refuse a Parquet file with encrypted columns, on which Arrow would crash the whole process.

    Raises:
        BadInput: if columns are encrypted, or DuckDB, which raises where Arrow crashes, cannot tell.
    """
    question = "SELECT count(encryption_algorithm) FROM parquet_file_metadata(?)"
    with TemporaryDirectory(prefix="trajnote-") as folder, duckdb.connect() as con:
        link = Path(folder) / "rows.parquet"  # a name without characters that DuckDB would take for a pattern
        link.symlink_to(path.resolve())
        try:
            found = con.execute(question, [str(link)]).fetchone()
        except duckdb.Error as error:
            raise BadInput(f"{path} cannot be read as Parquet: it is damaged or encrypted.") from error
    if found and found[0]:
        raise BadInput(f"{path} has encrypted columns.", "Write it without encryption.")


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except _UNREADABLE as error:
        raise DamagedStore(f"{path} is not a Parquet file any more.", _VERIFY) from error


def _read(path: Path, file: pq.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None) -> pa.Table:
    try:
        return file.read(list(columns)) if groups is None else file.read_row_groups(list(groups), list(columns))
    except _UNREADABLE as error:
        raise DamagedStore(f"{path} is damaged inside: {error}.", _VERIFY) from error


def _groups(file: pq.ParquetFile, first: int, last: int) -> list[int]:
    """The row groups that may hold one of the episodes."""
    found: list[int] = []
    for group in range(file.metadata.num_row_groups):
        bounds = file.metadata.row_group(group).column(0).statistics
        if bounds.min <= last and first <= bounds.max:
            found.append(group)
    return found
