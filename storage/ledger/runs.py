"""Annotation runs: how far each is and what it asks, as rows, and the raw replies it got, as files.

Verbs with a connection are part of their caller's write. Replies are appended as they came, so that a crash at any
instant loses nothing that was acknowledged: a file of `responses/<run_id>/` is JSON lines, each line one complete zstd
frame with a checksum. What a line means is the annotators' business; `zstd -dc` shows it.
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

from ..catalog import Connection, insert_rows, select_column
from ..disk import release_room, sync_to_disk, write_whole, writing
from ..errors import DamagedStore, DiskFailed
from ..schema import sha256_bytes
from ..store import Store


class RunTotals(NamedTuple):
    """What a run has brought and cost: one row of the view `spending`."""

    labels: int
    rejections: int
    input_tokens: int
    cache_write_tokens: int
    cache_read_tokens: int
    output_tokens: int
    cost_usd: float
    estimated_usd: float | None  # what its answered requests were expected to cost when they were sent
    rules: int


class AskedRun(NamedTuple):
    """A run that has asked a model."""

    run_id: str
    dataset_id: str
    config: str  # JSON
    card: str  # JSON


class OpenRun(NamedTuple):
    """A run whose replies may not all be read, and what they are read with."""

    run_id: str
    dataset_id: str
    model: str
    prompt_version: str
    card_sha256: str
    config: str  # JSON
    card: str  # JSON
    action_space: str  # JSON


def enter_run(con: Connection, row: Mapping[str, object]) -> None:
    """Enter a row of `annotation_runs`; a run that is there already is opened again."""
    insert_rows(con, "annotation_runs", [row])
    con.execute(
        "UPDATE annotation_runs SET state = 'open', finished_at = NULL, error = NULL WHERE run_id = ?", [row["run_id"]]
    )


def enter_imported_run(con: Connection, run_id: str, dataset_id: str, model: str) -> bool:
    """Enter a run whose labels were made elsewhere, finished; false if it is there already."""
    row = {"run_id": run_id, "dataset_id": dataset_id, "provider": "import", "model": model, "config": {}}
    if not insert_rows(con, "annotation_runs", [row | {"state": "done", "recorded": False}]):
        return False
    con.execute("UPDATE annotation_runs SET finished_at = now() WHERE run_id = ?", [run_id])
    return True


def close_run(con: Connection, run_id: str) -> None:
    """Note that everything a run asked is answered."""
    con.execute("UPDATE annotation_runs SET state = 'done', finished_at = now() WHERE run_id = ?", [run_id])


def fail_run(con: Connection, run_id: str, error: str) -> None:
    """Note why a command ended without all answers; the next command opens the run again."""
    con.execute(
        "UPDATE annotation_runs SET state = 'failed', finished_at = now(), error = ? WHERE run_id = ?", [error, run_id]
    )


def is_done(con: Connection, run_id: str) -> bool:
    """Whether a run was finished earlier."""
    return bool(select_column(con, "SELECT 1 FROM annotation_runs WHERE run_id = ? AND state = 'done'", [run_id]))


def is_waiting(con: Connection, run_id: str) -> bool:
    """Whether a run has asked something that has no reply."""
    question = """SELECT 1 FROM run_requests JOIN requests USING (request_id)
                  WHERE run_id = ? AND requests.state <> 'done' LIMIT 1"""
    return bool(select_column(con, question, [run_id]))


def count_waiting(con: Connection, run_ids: Sequence[str]) -> int:
    """How many requests of some runs have no reply, and have not failed."""
    question = """SELECT count(*) FROM run_requests JOIN requests USING (request_id)
                  WHERE run_id IN (SELECT unnest(?::VARCHAR[])) AND state IN ('pending', 'in_batch')"""
    return select_column(con, question, [list(run_ids)])[0]


def find_answered(con: Connection, asked: Mapping[str, tuple[str, str]]) -> frozenset[str]:
    """The datasets, of some, that are still those that a run has asked about, and whose run waits for no reply.

    Args:
        con: a connection of the catalog.
        asked: dataset -> the hash of its manifest, and the run.
    """
    answered = select_column(
        con,
        """SELECT dataset_id FROM (
               SELECT unnest(?::VARCHAR[]) AS dataset_id, unnest(?::VARCHAR[]) AS manifest_sha256,
                   unnest(?::VARCHAR[]) AS run_id
           ) JOIN datasets USING (dataset_id, manifest_sha256) SEMI JOIN annotation_runs USING (run_id)
           WHERE run_id NOT IN (
               SELECT run_id FROM requests JOIN run_requests USING (request_id) WHERE requests.state <> 'done'
           )""",
        [list(asked), [sha256 for sha256, _ in asked.values()], [run_id for _, run_id in asked.values()]],
    )
    return frozenset(answered)


def asked_runs(con: Connection) -> list[AskedRun]:
    """All runs that have asked a model, the oldest first."""
    rows = con.execute(
        "SELECT run_id, dataset_id, config, card FROM annotation_runs WHERE card IS NOT NULL ORDER BY created_at"
    )
    return [AskedRun(*row) for row in rows.fetchall()]


def open_runs(con: Connection) -> list[OpenRun]:
    """Runs that have asked a model and are not done, by id."""
    rows = con.execute(
        """SELECT run_id, dataset_id, model, prompt_version, card_sha256, config, card, action_space
           FROM annotation_runs JOIN datasets USING (dataset_id)
           WHERE state <> 'done' AND card IS NOT NULL ORDER BY run_id"""
    )
    return [OpenRun(*row) for row in rows.fetchall()]


def live_runs(con: Connection) -> list[str]:
    """Runs that are not done, or have a batch that is not finished with."""
    question = """SELECT run_id FROM annotation_runs WHERE state <> 'done'
                  UNION SELECT run_id FROM batches WHERE state IN ('intent', 'submitted')"""
    return select_column(con, question)


def requests_of(con: Connection, run_id: str) -> set[str]:
    """The requests that a run asks."""
    return set(select_column(con, "SELECT request_id FROM run_requests WHERE run_id = ?", [run_id]))


def total_run(con: Connection, run_id: str) -> RunTotals | None:
    """What a run has brought and cost; None if it is not in the catalog."""
    row = con.execute(
        """SELECT annotations, rejections, input_tokens, cache_write_tokens, cache_read_tokens, output_tokens, cost_usd,
               estimated_usd, (SELECT count(*) FROM rules WHERE run_id = $run)
           FROM spending WHERE run_id = $run""",
        {"run": run_id},
    ).fetchone()
    return RunTotals(*row) if row else None


def committed_usd(con: Connection, run_id: str) -> float:
    """Dollars that a run has cost, and those it may still cost by what is under way or was lost, at most."""
    row = con.execute("SELECT cost_usd + under_way_usd + lost_usd FROM spending WHERE run_id = ?", [run_id]).fetchone()
    return float(row[0]) if row else 0.0


def withdraw_suggestions(con: Connection, run_id: str, answered: Sequence[str], wanted: Sequence[str]) -> None:
    """Forget a second stage's requests that the first stage's answers do not lead to, and what came of them.

    Args:
        con: a connection of `Catalog.write`.
        run_id: the run.
        answered: the first stage's requests that have an answer.
        wanted: the second stage's requests that follow from those answers.
    """
    stale = select_column(
        con,
        """SELECT request_id FROM run_requests JOIN requests USING (request_id)
           WHERE run_id = $run AND kind = 'suggest' AND request_id NOT IN (SELECT unnest($now::VARCHAR[]))
               AND (episode_id, sample) IN (SELECT (episode_id, sample) FROM run_requests
                   WHERE run_id = $run AND request_id IN (SELECT unnest($first::VARCHAR[])))""",
        {"run": run_id, "now": list(wanted), "first": list(answered)},
    )
    for table in ("annotations", "rejections", "run_requests"):
        con.execute(
            f"DELETE FROM {table} WHERE run_id = ? AND request_id IN (SELECT unnest(?::VARCHAR[]))", [run_id, stale]
        )


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
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    frames = [compressor.compress(_json_line(record)) for record in records]
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
            found = bytes(content[place + 1 :]).find(_MAGIC)
            place = len(content) if found < 0 else place + 1 + found
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
            sync_to_disk(folder)
            sync_to_disk(folder.parent)
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
