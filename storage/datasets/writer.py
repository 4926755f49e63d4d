"""Writes a dataset, episode by episode, beside its caller's work; a killed run goes on after its last finished shard.

Shards grow in `rollouts/.partial-<dataset_id>/`; the finished folder gets its name in one rename and is registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from ..content_hash import canonical_json, sha256_bytes
from ..disk import exclusive_lock, publish_folder, write_whole, writing
from ..errors import BadInput, DamagedStore
from ..schema import Episode, Manifest, ManifestDraft
from ..store import CARD, DRAFT, MANIFEST, Store
from .checks import check_draft, check_episode
from .columns import encode_episodes
from .registry import register_new
from .shards import ROW_GROUP, FinishedShard, GrowingShard, describe_shard, shard_name


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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        _remove_others(self._folder, {DRAFT, *(finished.shard.name for finished in self._shards)})
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


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in list(folder.iterdir()):
        if path.name not in kept:
            path.unlink()


def _size(episode: Episode) -> int:
    outputs = episode.policy_outputs
    arrays = episode.observations.nbytes + episode.actions.nbytes + episode.rewards.nbytes
    return arrays + (0 if outputs is None else outputs.nbytes)
