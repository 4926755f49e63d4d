"""Raw model replies, as they came, appended so that a crash at any instant loses nothing that was acknowledged.

A file of `responses/<run_id>/` is JSON lines, each line one complete zstd frame with a checksum. What a line means is
the annotators' business; `zstd -dc` shows it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from ..disk import release_room, sync_folder, write_whole, writing
from ..errors import DamagedStore, DiskFailed
from ..schema import sha256_bytes
from ..store import Store

ROLL_BYTES = 16 << 20
"""A file that has reached this size is not appended to any more."""

_MAGIC = b"\x28\xb5\x2f\xfd"
_PIECE = 1 << 16
known_lines: dict[Path, tuple[int, int]] = {}  # file -> (size, lines) after this process's last append
_appending = threading.Lock()


class StoredResponse(NamedTuple):
    """One raw reply and where it lies."""

    file: str  # relative to the store
    line: int  # counted from 1
    record: dict[str, Any]


class Frames(NamedTuple):
    """What a file of replies holds, whether or not all of it is whole."""

    lines: list[bytes | None]  # None: damaged, with whole lines after it
    end: int  # bytes up to the end of the last whole line
    size: int  # bytes of the file; what lies beyond `end` was never acknowledged

    @property
    def damaged(self) -> list[int]:
        """Numbers of the damaged lines, counted from 1."""
        return [number for number, line in enumerate(self.lines, 1) if line is None]


def append_response(store: Store, run_id: str, record: Mapping[str, Any]) -> tuple[str, int]:
    """Put one raw reply on the disk; when this returns, it is there. See `append_responses`."""
    return append_responses(store, run_id, [record])[0]


def append_responses(store: Store, run_id: str, records: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Put raw replies on the disk; when this returns, they are all there.

    An unfinished line that a killed process left at the end is moved to a file beside it first.

    Args:
        store: the store.
        run_id: the annotation run that received them.
        records: anything that JSON can say; at least one.

    Returns:
        For each the file, relative to the store, and the line in it, counted from 1.

    Raises:
        DiskFailed: if the disk does not take them, not even where room was held for them; none of them is there then.
    """
    folder = store.responses_dir(run_id)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    frames = [_frame(record) for record in records]
    with _appending:
        try:
            path, first = _append(folder, frames)
        except DiskFailed:
            if not release_room(folder):
                raise
            path, first = _append(folder, frames)
    name = path.relative_to(store.root).as_posix()
    return [(name, first + place) for place in range(len(records))]


def iterate_responses(store: Store, run_id: str) -> Iterator[StoredResponse]:
    """The raw replies of a run, in the order in which they came; nothing when there are none.

    Raises:
        DamagedStore: after all whole lines were given, if some line before the last one is damaged.
    """
    damaged: list[str] = []
    for path in response_files(store, run_id):
        name, frames = path.relative_to(store.root).as_posix(), read_frames(path)
        for number, line in enumerate(frames.lines, 1):
            if line is not None:
                yield StoredResponse(name, number, json.loads(line))
        damaged += [f"{name}:{number}" for number in frames.damaged]
    if damaged:
        raise DamagedStore(f"Raw replies are damaged: {', '.join(damaged)}.", "Restore the file from a backup.")


def response_files(store: Store, run_id: str) -> list[Path]:
    """The files of a run's raw replies, the oldest first."""
    return sorted(store.responses_dir(run_id).glob("*.jsonl.zst"))


def read_frames(path: Path) -> Frames:
    """Everything that is whole in a file of raw replies."""
    content = memoryview(path.read_bytes())
    lines: list[bytes | None] = []
    place, end = 0, 0
    while place < len(content):
        stop, line = _read_frame(content, place)
        if line is None:
            place = _next_frame(content, place + 1)
            continue
        if place > end:  # something unreadable lies between two whole lines
            lines.append(None)
        lines.append(line)
        place = end = stop
    return Frames(lines, end, len(content))


def _json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON; only one with half a character (a lone surrogate) has to be escaped throughout."""
    try:
        return f"{json.dumps(record, ensure_ascii=False, separators=(',', ':'))}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(record, separators=(',', ':'))}\n".encode()


def _frame(record: Mapping[str, Any]) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(_json_line(record))


def _append(folder: Path, frames: Sequence[bytes]) -> tuple[Path, int]:
    """The file, and the number of the first line written."""
    path = _last_file(folder)
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            is_new = os.fstat(descriptor).st_size == 0
            lines = _whole_lines(path, descriptor)
            _write_all(descriptor, b"".join(frames))
            known_lines[path] = (os.fstat(descriptor).st_size, lines + len(frames))
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(folder)
            sync_folder(folder.parent)
    return path, lines + 1


def _write_all(descriptor: int, content: bytes) -> None:
    """Append and have it on the disk, or leave the file as it was (a full disk takes only a part)."""
    before = os.fstat(descriptor).st_size
    left = memoryview(content)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _last_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.jsonl.zst"))
    if files and files[-1].stat().st_size < ROLL_BYTES:
        return files[-1]
    return folder / f"{len(files):05d}.jsonl.zst"


def _whole_lines(path: Path, descriptor: int) -> int:
    """How many lines the file has, after an unfinished one at its end was moved aside."""
    size = os.fstat(descriptor).st_size
    known_size, lines = known_lines.get(path, (0, 0))
    if known_size == size:
        return lines
    frames = read_frames(path)
    if frames.end < frames.size:
        torn = path.read_bytes()[frames.end :]
        write_whole(path.with_name(f"{path.name}.torn-{sha256_bytes(torn)[:8]}"), torn)
        os.ftruncate(descriptor, frames.end)
        os.fsync(descriptor)
    return len(frames.lines)


def _read_frame(content: memoryview, start: int) -> tuple[int, bytes | None]:
    """The end and the text of the frame at a place; no text if there is no whole frame."""
    decoder = zstandard.ZstdDecompressor().decompressobj()
    parts: list[bytes] = []
    place = start
    try:
        while place < len(content) and not decoder.eof:
            piece = content[place : place + _PIECE]
            parts.append(decoder.decompress(piece))
            place += len(piece)
    except zstandard.ZstdError:
        return start, None
    if not decoder.eof:
        return start, None
    return place - len(decoder.unused_data), b"".join(parts)


def _next_frame(content: memoryview, start: int) -> int:
    found = bytes(content[start:]).find(_MAGIC)
    return len(content) if found < 0 else start + found
