"""Whether the Parquet files of the registered datasets are what was written, as far as a command can ask each time.

All of a file is compared when its time has changed since that was last done; otherwise it is not opened, so that what
is old costs a look into its folder only. What changed without another time is found when a question meets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from ..content_hash import sha256_bytes, sha256_file
from ..schema import Manifest
from .connection import Connection

_INSERT = "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, make_timestamp_ns(?))"


class ShardRow(NamedTuple):
    """A row of the table `shards`."""

    dataset_id: str
    shard: str
    sha256: str
    footer_sha256: str  # of older versions; nothing reads it
    modified_ns: int | None


class Inspection(NamedTuple):
    """What a look at all files found."""

    shards: Mapping[str, Sequence[str]]  # dataset -> its files, in their order, if none is damaged
    damaged: Mapping[str, str]  # dataset -> what is wrong with its first damaged file
    news: Sequence[ShardRow]  # rows that the table lacks or has otherwise
    datasets: Sequence[tuple[str, str]]  # id and hash of the manifest of each, the oldest first


def inspect_shards(con: Connection, rollouts: Path) -> Inspection:
    """Look at every file of every registered dataset.

    Args:
        con: a connection of the catalog.
        rollouts: the absolute folder with one folder per dataset.
    """
    known = _known_rows(con)
    shards: dict[str, list[str]] = {}
    damaged: dict[str, str] = {}
    news: list[ShardRow] = []
    datasets = con.execute(
        "SELECT dataset_id, manifest_sha256 FROM datasets ORDER BY created_at, dataset_id"
    ).fetchall()
    for dataset_id, manifest_sha256 in datasets:
        try:
            rows = known.get(dataset_id) or _first_rows(rollouts / dataset_id, manifest_sha256)
            found = [(row, _compare(rollouts / row.dataset_id / row.shard, row)) for row in rows]
        except _Damaged as damage:
            damaged[dataset_id] = str(damage)
            continue
        shards[dataset_id] = [row.shard for row, _ in found]
        news += [row for old, row in found if dataset_id not in known or old != row]
    return Inspection(shards, damaged, news, datasets)


def note_shards(con: Connection, rows: Sequence[ShardRow]) -> None:
    """Enter rows into the table."""
    if rows:
        con.executemany(_INSERT, rows)


def suspect_shards(con: Connection, rollouts: Path) -> list[Path]:
    """Compare all of every file, whatever its time; those that are damaged are compared again at each opening.

    Args:
        con: a connection of `Catalog.write`.
        rollouts: the absolute folder with one folder per dataset.

    Returns:
        The damaged files.
    """
    paths = {rollouts / row.dataset_id / row.shard: row for rows in _known_rows(con).values() for row in rows}
    found = [path for path, row in paths.items() if not path.is_file() or sha256_file(path) != row.sha256]
    _content_sha256.cache_clear()
    note_shards(con, [paths[path]._replace(modified_ns=None) for path in found])
    return found


class _Damaged(Exception):
    """A dataset that cannot be shown."""


def _known_rows(con: Connection) -> dict[str, list[ShardRow]]:
    rows = con.execute(
        "SELECT dataset_id, shard, sha256, footer_sha256, epoch_ns(modified_at) FROM shards ORDER BY ALL"
    ).fetchall()
    known: dict[str, list[ShardRow]] = {}
    for row in rows:
        known.setdefault(row[0], []).append(ShardRow(*row))
    return known


def _first_rows(folder: Path, manifest_sha256: str) -> list[ShardRow]:
    """The rows of a dataset that was registered just now, or by an older trajnote, from its manifest."""
    try:
        content = (folder / "manifest.json").read_bytes()
        manifest = Manifest.model_validate_json(content) if sha256_bytes(content) == manifest_sha256 else None
    except (OSError, ValidationError):
        manifest = None
    if manifest is None:
        raise _Damaged("manifest.json is missing or is not the one that was registered")
    return [ShardRow(manifest.dataset_id, shard.name, shard.sha256, "", None) for shard in manifest.shards]


def _compare(path: Path, row: ShardRow) -> ShardRow:
    """The row with the time of the file, if the file is what the row says."""
    try:
        modified_ns = path.stat().st_mtime_ns
        is_same = row.modified_ns == modified_ns or _content_sha256(path, modified_ns) == row.sha256
    except FileNotFoundError:
        raise _Damaged(f"{path.name} is missing") from None
    except OSError:
        raise _Damaged(f"{path.name} cannot be read") from None
    if not is_same:
        raise _Damaged(f"{path.name} is not what was written")
    return row._replace(modified_ns=modified_ns)


@lru_cache(maxsize=4096)
def _content_sha256(path: Path, modified_ns: int) -> str:
    """Once per process, where the result cannot be kept in the catalog."""
    del modified_ns  # it names the content
    return sha256_file(path)
