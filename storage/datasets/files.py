"""The files of a dataset, Parquet shards and a manifest: written once, registered, checked cheaply at each reading.

Episodes are written beside their caller's work; a killed run goes on after its last finished shard. Shards grow in
`rollouts/.partial-<dataset_id>/`; the finished folder gets its name in one rename and is registered.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ..catalog import Connection, insert_rows, refresh_views
from ..disk import (
    TEMPORARY,
    exclusive_lock,
    gone_on_failure,
    publish_folder,
    sync_to_disk,
    write_whole,
    writing,
)
from ..errors import BadInput, DamagedStore
from ..schema import Episode, Manifest, ManifestDraft, Shard, canonical_json, sha256_bytes, sha256_file
from ..store import CARD, DRAFT, MANIFEST, Store
from .columns import COLUMNS, check_draft, check_episode, encode_episodes, steps_schema

ROW_GROUP = 16_384
_FORMAT: Mapping[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["episode_id", "step", "terminated", "truncated", "seed"],
    "write_statistics": ["episode_id", "step"],
    "write_page_checksum": True,
}
_SUMMED = ("episode_id", "reward", "terminated", "truncated", "seed")
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
            sync_to_disk(self._temporary)
            self._temporary.rename(self._folder / self._name)
            sync_to_disk(self._folder)
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
        raise DamagedStore(f"{path} is no longer a Parquet file.", _VERIFY) from error


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


class StepsWriter:
    """Writes one dataset. Use it in a `with` block and call `finish` at its end.

    Leaving the block without `finish` keeps the finished shards for the next run with an equal draft; with another
    draft everything starts over.

    Args:
        store: where the dataset belongs.
        draft: what is known of it in advance.
        shard_bytes: a shard is closed after this many bytes, before compression; an episode is never split.
        card: file of the card that the dataset keeps; it does not affect the dataset's identity.

    Raises:
        BadInput: if the draft cannot be stored, or the dataset exists already (see `find_finished`).
        CatalogLocked: if another process is writing the same dataset.
        DiskFailed: if the disk refuses it; finished shards stay, and the same command goes on from them.
    """

    def __init__(
        self, store: Store, draft: ManifestDraft, *, shard_bytes: int = 100_000_000, card: bytes | None = None
    ) -> None:
        check_draft(draft)
        self._store = store
        self._draft = draft
        self._shard_bytes = shard_bytes
        self._card = card
        self._folder = store.partial_dir(draft.dataset_id)
        self._episodes: list[Episode] = []  # that nobody writes yet
        self._rows = 0  # of these
        self._bytes = 0  # of the shard that grows
        self._lock = ExitStack()
        self._shards: list[FinishedShard] = []
        self._growing: GrowingShard | None = None
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="trajnote-writer")
        self._being_written: Future[None] | None = None
        self.episodes_done = 0
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(exclusive_lock(self._folder, f"the dataset {draft.dataset_id}"))
        try:
            self._start()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> StepsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock, self._beside:
            with suppress(Exception):  # what its caller raises is said already
                self._wait()
            if self._growing is not None:
                self._growing.abandon()

    def write(self, episode: Episode) -> None:
        """Add one episode; ids ascend. It is written in a thread, while the caller makes the next ones.

        Raises:
            BadInput: if the episode does not fit the dataset's spaces, or its id is not greater than the last one.
            DiskFailed: if the disk refused earlier ones.
        """
        check_episode(episode, self._draft)
        if episode.episode_id <= self._last:
            raise BadInput(f"Episode {episode.episode_id} follows episode {self._last}; ids have to ascend from 0.")
        self._last = episode.episode_id
        self._episodes.append(episode)
        self._rows += len(episode) + 1
        self._bytes += _size(episode)
        if self._rows >= ROW_GROUP or self._bytes >= self._shard_bytes:
            self._hand_over(ends_shard=self._bytes >= self._shard_bytes)

    def keep(self) -> int:
        """Write the episodes so far, so that the next run goes on after them; returns their number."""
        self._complete()
        return sum(finished.episodes for finished in self._shards)

    def finish(self) -> Manifest:
        """Write the rest, publish the dataset under its name, register it and refresh the views.

        Raises:
            BadInput: without any episode.
        """
        self._complete()
        if not self._shards:
            raise BadInput(f"The dataset {self._draft.dataset_id} would have no episodes.")
        manifest = self._manifest()
        if self._card is not None:
            write_whole(self._folder / CARD, self._card)
        write_whole(self._folder / MANIFEST, canonical_json(manifest).encode())
        publish_folder(self._folder, self._store.dataset_dir(manifest.dataset_id))
        self._lock.close()
        register_new(self._store, manifest)
        return manifest

    def _start(self) -> None:
        if self._store.dataset_dir(self._draft.dataset_id).exists():
            with suppress(OSError):
                self._folder.rmdir()
            raise BadInput(f"The dataset {self._draft.dataset_id} exists already.", "Give the new one another name.")
        text = canonical_json(self._draft).encode()
        draft = self._folder / DRAFT
        if draft.is_file() and draft.read_bytes() == text:
            self._shards = _finished_shards(self._folder)
        self.episodes_done = sum(finished.episodes for finished in self._shards)
        self._last = self._shards[-1].shard.last_episode if self._shards else -1
        kept = {DRAFT, *(finished.shard.name for finished in self._shards)}
        for path in list(self._folder.iterdir()):
            if path.name not in kept:
                path.unlink()
        if not self._shards:
            write_whole(draft, text)

    def _complete(self) -> None:
        """Have everything on the disk."""
        if self._bytes:
            self._hand_over(ends_shard=True)
        self._wait()

    def _hand_over(self, *, ends_shard: bool) -> None:
        """Begin to write the episodes so far; at most one such piece is under way."""
        self._wait()
        self._being_written = self._beside.submit(self._put, self._episodes, ends_shard)
        self._episodes, self._rows = [], 0
        if ends_shard:
            self._bytes = 0

    def _wait(self) -> None:
        if self._being_written is not None:
            self._being_written.result()
            self._being_written = None

    def _put(self, episodes: Sequence[Episode], ends_shard: bool) -> None:
        self._growing = self._growing or GrowingShard(self._folder, shard_name(len(self._shards)), self._draft)
        if episodes:
            self._growing.add(encode_episodes(episodes, self._draft))
        if ends_shard:
            self._shards.append(self._growing.finish())
            self._growing = None

    def _manifest(self) -> Manifest:
        shards = tuple(finished.shard for finished in self._shards)
        episodes = sum(finished.episodes for finished in self._shards)
        return Manifest(
            **dict(self._draft),
            episodes=episodes,
            steps=sum(shard.rows for shard in shards) - episodes,
            shards=shards,
            card_file_sha256=None if self._card is None else sha256_bytes(self._card),
            created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        )


def _finished_shards(folder: Path) -> list[FinishedShard]:
    """The shards that an earlier run finished, up to the first that is missing or damaged."""
    found: list[FinishedShard] = []
    while (folder / shard_name(len(found))).is_file():
        try:
            found.append(describe_shard(folder, shard_name(len(found))))
        except DamagedStore:
            break
    return found


def _size(episode: Episode) -> int:
    outputs = episode.policy_outputs
    arrays = episode.observations.nbytes + episode.actions.nbytes + episode.rewards.nbytes
    return arrays + (0 if outputs is None else outputs.nbytes)


def register_dataset(store: Store, manifest: Manifest) -> None:
    """Put a published dataset and its episodes into the catalog and refresh the views; a second call changes nothing.

    Raises:
        DamagedStore: if a shard is damaged, or the catalog knows another manifest under this name.
    """
    with store.catalog.read() as con:
        is_registered = _is_registered(con, store, manifest.dataset_id)
    if is_registered:
        _remove_draft(store, manifest)
    else:
        register_new(store, manifest)


def register_new(store: Store, manifest: Manifest) -> None:
    """As `register_dataset`, in one transaction for a dataset that was published just now."""
    episodes = [row for shard in manifest.shards for row in _summarise(store, manifest, shard)]
    row = _dataset_row(manifest, sha256_file(store.manifest_path(manifest.dataset_id)))
    with store.catalog.write() as con:
        if not _is_registered(con, store, manifest.dataset_id):
            insert_rows(con, "datasets", [row])
            insert_rows(con, "episodes", episodes)
            refresh_views(con, store.rollouts_dir)
    _remove_draft(store, manifest)


def _remove_draft(store: Store, manifest: Manifest) -> None:
    (store.dataset_dir(manifest.dataset_id) / DRAFT).unlink(missing_ok=True)


def find_finished(store: Store, draft: ManifestDraft) -> Manifest | None:
    """The dataset that an earlier run of the same command finished, registered if that run was killed before it could.

    Package versions, the environment's code and the bytes of a file with the same policy may differ, which only
    callers that play can judge; everything else of the draft has to be equal.

    Raises:
        BadInput: if a dataset of that name was made from something else.
    """
    if not store.dataset_dir(draft.dataset_id).exists():
        return None
    manifest = read_manifest(store, draft.dataset_id)
    ours, theirs = (_essence(item) for item in (draft, manifest))
    if differing := sorted(name for name in ours if ours[name] != theirs[name]):
        raise BadInput(
            f"The dataset {draft.dataset_id} exists and was made differently ({', '.join(differing)} differ).",
            "Give the new one another name.",
        )
    register_dataset(store, manifest)
    return manifest


def _is_registered(con: Connection, store: Store, dataset_id: str) -> bool:
    """Whether the catalog knows a dataset, which must be as it was registered."""
    found = con.execute("SELECT manifest_sha256 FROM datasets WHERE dataset_id = ?", [dataset_id]).fetchone()
    if found is not None and found[0] != sha256_file(store.manifest_path(dataset_id)):
        raise DamagedStore(
            f"{store.manifest_path(dataset_id)} differs from the manifest that was registered.",
            "Restore the file; a dataset is never changed once it is written.",
        )
    return found is not None


def _essence(draft: ManifestDraft) -> dict[str, str]:
    fields = set(ManifestDraft.model_fields) - {"versions", "environment_code", "policy_file_sha256"}
    return {name: canonical_json(getattr(draft, name)) for name in fields}


def _dataset_row(manifest: Manifest, manifest_sha256: str) -> dict[str, object]:
    copied = (
        "dataset_id source env_id policy policy_sha256 policy_mode policy_output "
        "component_names action_names episodes steps created_at"
    )
    row: dict[str, object] = {name: getattr(manifest, name) for name in copied.split()}
    spaces = {name: canonical_json(getattr(manifest, name)) for name in ("observation_space", "action_space")}
    return row | spaces | {"env_kwargs": canonical_json(manifest.env_kwargs), "manifest_sha256": manifest_sha256}


def _summarise(store: Store, manifest: Manifest, shard: Shard) -> Iterator[dict[str, object]]:
    table = read_shard(store, manifest, shard, columns=_SUMMED)
    ids, ended, cut = (np.asarray(table[name]) for name in ("episode_id", "terminated", "truncated"))
    rewards = table["reward"].to_numpy()
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
    seeds = table["seed"].take(starts).to_pylist()
    for start, stop, seed in zip(starts, [*starts[1:], len(ids)], seeds, strict=True):
        yield {
            "dataset_id": manifest.dataset_id,
            "episode_id": int(ids[start]),
            "seed": seed,
            "length": int(stop - start - 1),
            "return_": float(np.sum(rewards[start : stop - 1])),
            "terminated": bool(ended[stop - 2]),
            "truncated": bool(cut[stop - 2]),
            "shard": shard.name,
        }
