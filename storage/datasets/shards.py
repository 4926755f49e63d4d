"""Parquet shards and the manifest beside them: written once, checked cheaply each time they are read."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ..disk import TEMPORARY, gone_on_failure, sync_file, sync_folder, writing
from ..errors import BadInput, DamagedStore
from ..schema import Manifest, ManifestDraft, Shard, sha256_file
from ..store import Store
from .columns import COLUMNS, steps_schema

ROW_GROUP = 16_384
_FORMAT: Mapping[str, Any] = {
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


class GrowingShard:
    """A shard to which rows are added, under a temporary name until it is forced to the disk and renamed.

    Its bytes do not depend on the pieces in which the rows come. Numbers are stored without dictionaries, so every bit
    pattern survives; pages have checksums.

    Raises:
        DiskFailed: if the disk refuses it, here and in every method.
    """

    def __init__(self, folder: Path, name: str, draft: ManifestDraft) -> None:
        self._folder, self._name = folder, name
        self._temporary = folder / (name + TEMPORARY)
        schema = steps_schema(draft)
        self._rest = schema.empty_table()  # too few rows for a row group
        with self._refusable():
            self._writer = pq.ParquetWriter(self._temporary, schema, **_FORMAT)

    def add(self, table: pa.Table) -> None:
        """Write whole row groups, and keep the rest for the next one."""
        rows = pa.concat_tables([self._rest, table])
        whole = len(rows) // ROW_GROUP * ROW_GROUP
        self._write(rows.slice(0, whole))
        self._rest = rows.slice(whole)

    def finish(self) -> FinishedShard:
        """Write the rest and give the file its name."""
        self._write(self._rest)
        with self._refusable():
            self._writer.close()
            sync_file(self._temporary)
            self._temporary.rename(self._folder / self._name)
            sync_folder(self._folder)
        return describe_shard(self._folder, self._name)

    def abandon(self) -> None:
        """Delete what is there of it."""
        with suppress(OSError):
            self._writer.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _write(self, rows: pa.Table) -> None:
        if len(rows):
            with self._refusable():
                self._writer.write_table(rows.combine_chunks(), ROW_GROUP)

    @contextmanager
    def _refusable(self) -> Generator[None]:
        with writing(self._folder / self._name), gone_on_failure(self._temporary):
            yield


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
