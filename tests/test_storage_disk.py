"""A disk that is full, closed or too small for a file: one clear line, nothing half-written, and the same goes on."""

from __future__ import annotations

import errno
import itertools
import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash_points import SCENARIOS, state_of
from small_disk import SmallDisk, mounted
from soak import SOAK, every
from store_state import append_response

from storage.catalog import insert_rows
from storage.disk.atomic import ROOM_BYTES, copy_file, explain_disk, hold_room, refused_file, release_room, write_whole
from storage.errors import BadInput, DiskFailed
from storage.importing.recordings import RowFile
from storage.ledger.runs import iterate_responses
from storage.queries.query import run_query
from storage.store import Store
from storage.upkeep.verify import verify_store

RUN = {"run_id": "run", "dataset_id": "d1", "provider": "file", "model": "m" * 2000}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with mounted(tmp_path / "disk") as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("scenario", every(list(SCENARIOS), 2))
def test_what_a_full_disk_stopped_goes_on_when_there_is_room(scenario: str, disk: SmallDisk, tmp_path: Path) -> None:
    expected = tmp_path / "expected"
    for root in (expected, disk.root / "store"):
        if scenario != "create":
            Store.create(root)
    SCENARIOS[scenario](expected)
    said: list[str] = []
    for pages in (0, 1, 2, 4, 9, 400, 2000):
        disk.fill(pages * 4096)
        try:
            SCENARIOS[scenario](disk.root / "store")
        except DiskFailed as error:
            said.append(str(error))
        assert not list(disk.root.rglob("*.tmp"))
        disk.empty()
    assert len(said) >= 2
    for line in said:
        assert re.search(
            r"/store\S* cannot be written: the disk is full \([\d.]+ MB free\)\. Make room, then run", line
        )
    found = state_of(disk.root / "store")
    found["files"].pop("catalog.duckdb.wal", None)  # committed when there was no room yet for more
    assert found == state_of(expected)
    assert verify_store(Store.open(disk.root / "store")) == []


@pytest.mark.slow
def test_a_commit_that_the_disk_does_not_take_changes_nothing_and_readers_read_on(disk: SmallDisk) -> None:
    store = Store.create(disk.root / "store")
    for leave in (0, 4_096, 300_000):
        disk.fill(leave)
        rows = [RUN | {"run_id": f"r{i}", "card_sha256": os.urandom(300).hex()} for i in range(4000)]
        with pytest.raises(DiskFailed, match=r"catalog\.duckdb cannot be written"), store.catalog.write() as con:
            insert_rows(con, "annotation_runs", rows)
        assert run_query(store, "SELECT count(*) AS n FROM annotation_runs").to_pylist() == [{"n": 0}]
        disk.empty()
    with store.catalog.write() as con:
        insert_rows(con, "annotation_runs", [RUN])
    assert run_query(store, "SELECT count(*) AS n FROM annotation_runs").to_pylist() == [{"n": 1}]


@pytest.mark.slow
def test_a_paid_reply_finds_the_room_that_was_held_for_it(disk: SmallDisk) -> None:
    store = Store.create(disk.root / "store")
    append_response(store, "run", {"text": "first"})
    hold_room(store.responses_dir("run"))
    disk.fill()
    assert append_response(store, "run", {"text": os.urandom(50_000).hex()})[1] == 2
    disk.fill()
    with pytest.raises(DiskFailed, match="the disk is full"):
        hold_room(store.responses_dir("run"))
    size = (store.responses_dir("run") / "00000.jsonl.zst").stat().st_size
    with pytest.raises(DiskFailed, match=r"00000\.jsonl\.zst cannot be written"):
        append_response(store, "run", {"text": os.urandom(50_000).hex()})
    assert (store.responses_dir("run") / "00000.jsonl.zst").stat().st_size == size
    assert [reply.line for reply in iterate_responses(store, "run")] == [1, 2]
    disk.empty()
    assert append_response(store, "run", {"text": "third"})[1] == 3


def test_held_room_takes_its_space_and_gives_it_back(disk: SmallDisk) -> None:
    before = disk.free
    hold_room(disk.root)
    hold_room(disk.root)
    assert before - disk.free == ROOM_BYTES
    assert release_room(disk.root)
    assert (disk.free, release_room(disk.root)) == (before, False)


@pytest.mark.slow
def test_a_closed_disk_can_be_read_and_says_what_it_refuses(disk: SmallDisk) -> None:
    store = Store.create(disk.root / "store")
    SCENARIOS["collect"](store.root)
    disk.close()
    opened = Store.open(store.root)
    assert run_query(opened, "SELECT count(DISTINCT episode_id) AS n FROM steps").to_pylist() == [{"n": 5}]
    assert verify_store(opened) == []
    refused: dict[str, Callable[[Path], object]] = {
        "catalog.duckdb": lambda _: insert_run(opened),
        ".partial-p1": SCENARIOS["keep_policy"],
        "new store": lambda _: Store.create(disk.root / "new store"),
        "responses/run": SCENARIOS["reply"],
    }
    for name, work in refused.items():
        with pytest.raises(DiskFailed, match=f"{name} cannot be written: the file system is read-only.*--store"):
            work(store.root)


def insert_run(store: Store) -> None:
    with store.catalog.write() as con:
        insert_rows(con, "annotation_runs", [RUN])


def test_a_file_over_the_users_limit_is_named_and_the_old_content_stays(tmp_path: Path) -> None:
    path, before = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_whole(path, b"old")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(DiskFailed, match="file cannot be written: the file is larger than this user"):
            write_whole(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])


def test_a_failing_sync_is_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_whole(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiskFailed, match="the device fails"):
        write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


RAISED = ("ESTALE", "EBUSY", "EXDEV", "ENOTSUP", "EREMOTEIO", "ENOTEMPTY", "ETIMEDOUT", "ENOENT")
RENAMES = (
    list(itertools.product(RAISED, SCENARIOS)) if SOAK else list(zip(RAISED, itertools.cycle(SCENARIOS), strict=False))
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scenario"), every(RENAMES, 2))
def test_whatever_a_disk_raises_at_a_rename_is_one_line_that_names_the_file(
    name: str, scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = getattr(errno, name)
    rename, calls = os.rename, [0]

    def fail(source: str, target: str) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError(code, os.strerror(code), str(source), None, str(target))
        rename(source, target)

    work, store = SCENARIOS[scenario], tmp_path / "store"
    if scenario != "create":
        Store.create(store)
    for function in ("rename", "replace"):
        monkeypatch.setattr(os, function, fail)
    try:
        work(store)
    except DiskFailed as error:
        assert re.search(rf"{re.escape(str(store))}\S* cannot be written: ", str(error))  # noqa: PT017
        assert os.strerror(code).lower() in str(error)  # noqa: PT017
    finally:
        monkeypatch.undo()
    work(store)
    assert verify_store(Store.open(store)) == []


def test_a_copy_blames_the_file_that_it_could_not_write_and_the_input_only_where_it_cannot_be_read(
    disk: SmallDisk, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.write_bytes(os.urandom(100_000))
    disk.fill(0)
    with pytest.raises(DiskFailed, match=f"{disk.root / 'copy'} cannot be written: the disk is full"):
        copy_file(given, disk.root / "copy")
    disk.empty()
    copy_file(given, disk.root / "copy")
    assert (disk.root / "copy").read_bytes() == given.read_bytes()
    with pytest.raises(BadInput, match=f"{tmp_path} cannot be read: Is a directory"):
        copy_file(tmp_path, disk.root / "other")


def test_a_text_file_is_not_blamed_when_there_is_no_room_to_unpack_it(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"{n % 7},{n},{os.urandom(8).hex()}" for n in range(20_000)]
    path.write_text("\n".join(["a,b,c", *lines]))
    monkeypatch.setattr(tempfile, "tempdir", str(disk.root))
    disk.fill(20_000)
    with pytest.raises(DiskFailed, match=rf"{disk.root}/trajnote-\S* cannot be written: the disk is full"):
        RowFile(path)
    disk.empty()
    with RowFile(path) as rows:
        assert rows.rows == 20_000


def test_of_two_files_that_an_error_names_the_one_to_be_written_is_meant() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "source", None, "target")
    assert refused_file(error) == Path("target")
    assert refused_file(OSError(errno.EIO, "text", b"source")) == Path("source")
    assert refused_file(OSError(errno.EIO, "text")) is None
    assert "unknown" not in str(explain_disk(OSError("IO Error: Could not write: Stale file handle"), Path("x")))


def test_other_errors_keep_their_own_words() -> None:
    assert explain_disk(FileNotFoundError(errno.ENOENT, "none"), Path("x")) is None
    assert explain_disk(ValueError("No such column"), Path("x")) is None
