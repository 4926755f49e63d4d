"""Stores elsewhere: against a real S3 server on loopback, a folder, and fsspec's memory, through the same code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import fsspec
import polars as pl
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from soak import every, full_or
from store_state import state_of, tables_of
from toy_datasets import make_draft, make_episode, write

from benchmarks.object_server import KEY_ID, SECRET, s3_server
from flows.cli import main
from storage.catalog import insert_rows
from storage.datasets import adopt_dataset
from storage.errors import BadInput, DamagedStore, DiskFailed, Prerequisite, RemoteFailed
from storage.remote import push as pushing
from storage.remote.pull import pull_store
from storage.remote.push import push_store
from storage.remote.remote import Remote, local_copy
from storage.remote.snapshots import export_tables, find_newest, read_snapshot
from storage.store import Store
from storage.upkeep.verify import verify_store

PROGRAM = Path(__file__).with_name("killed_snapshots.py")


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as settings:
        yield settings


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return f"s3://notes/{tmp_path.name}/a store"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return (tmp_path / "remote").as_uri()


@pytest.fixture
def filled(store: Store) -> Store:
    """One dataset, one reply, one annotation."""
    write(store, make_draft("d1"), [make_episode(0)])
    run = store.responses_dir("r")
    run.mkdir(parents=True)
    (run / "00000.jsonl.zst").write_bytes(b"reply")
    annotate(store, "n1")
    return store


def annotate(store: Store, name: str, step: int = 0) -> None:
    note = {"annotation_id": name, "run_id": "r", "dataset_id": "d1", "episode_id": 0, "step": step, "critical": True}
    with store.catalog.write() as con:
        insert_rows(con, "annotations", [note | {"model": "m"}])


def notes_of(store: Store) -> list[str]:
    with store.catalog.read() as con:
        return [name for (name,) in con.execute("SELECT annotation_id FROM annotations ORDER BY ALL").fetchall()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", every(["s3", "file", "memory"], 2))
def test_a_store_that_was_pushed_is_pulled_as_it_was(kind: str, filled: Store, tmp_path: Path, bucket: str) -> None:
    url = {"s3": bucket, "file": (tmp_path / "remote").as_uri(), "memory": f"memory://{tmp_path.name}"}[kind]
    first = push_store(filled, url)
    assert (first.number, first.is_new, first.files, first.sent) == (1, True, 3, 4)
    pulled = pull_store(tmp_path / "other", url)
    other = Store.open(tmp_path / "other")
    assert (pulled.fetched, pulled.fetched_bytes) == (4, first.sent_bytes)
    assert tables_of(other) == tables_of(filled)
    assert notes_of(other) == ["n1"]
    with other.catalog.read() as con:
        assert con.execute("SELECT count(*) FROM annotated_steps").fetchone() == (1,)  # its views are of its own files

    again = push_store(filled, url)
    assert (again.number, again.is_new, again.sent, again.listed) == (1, False, 0, 0)
    write(other, make_draft("d2", seed=9), [make_episode(1)])
    new = push_store(other, url)
    assert (new.number, new.files, new.sent, new.listed) == (2, 5, 3, 10)  # 4 objects, 1 snapshot, 4 tables, their mark
    back = pull_store(filled.root, url)
    assert (back.number, back.fetched, back.replaced) == (2, 3, None)
    assert state_of(filled.root)["tables"] == state_of(other.root)["tables"]
    assert sum(damage.file.startswith("rollouts") for damage in verify_store(filled)) == 0


@pytest.mark.slow
def test_of_two_machines_the_second_one_is_told_and_loses_nothing(filled: Store, tmp_path: Path, folder: str) -> None:
    push_store(filled, folder)
    pull_store(tmp_path / "other", folder)
    other = Store.open(tmp_path / "other")
    annotate(filled, "here", 1)
    annotate(other, "there", 2)
    push_store(other, folder)
    with pytest.raises(Prerequisite, match=r"has snapshot 2 .*the last one that it has seen is 1"):
        push_store(filled, folder)
    with pytest.raises(Prerequisite, match="work that was not pushed since snapshot 1: the table annotations"):
        pull_store(filled.root, folder)
    assert notes_of(filled) == ["here", "n1"]
    pulled = pull_store(filled.root, folder, replace=True)
    assert notes_of(filled) == ["n1", "there"]
    with duckdb.connect(f"{pulled.replaced}/catalog.duckdb", read_only=True) as con:
        assert con.execute("SELECT count(*) FROM annotations WHERE annotation_id = 'here'").fetchone() == (1,)
    pull_store(filled.root, folder, number=1)
    assert notes_of(filled) == ["n1"]
    annotate(filled, "again", 3)
    with pytest.raises(Prerequisite, match="store pull"):
        push_store(filled, folder)
    assert push_store(filled, folder, replace=True).number == 3
    assert read_snapshot(Remote(folder), 2) is not None


@pytest.mark.slow
def test_a_file_that_was_changed_here_alone_is_put_aside(filled: Store, tmp_path: Path, folder: str) -> None:
    (filled.reports_dir / "a.html").write_text("old")
    push_store(filled, folder)
    pull_store(tmp_path / "other", folder)
    other = Store.open(tmp_path / "other")
    (other.reports_dir / "a.html").write_text("theirs")
    push_store(other, folder)
    (filled.reports_dir / "a.html").write_text("ours, longer")
    with pytest.raises(Prerequisite, match=r"reports/a\.html"):
        pull_store(filled.root, folder)
    pulled = pull_store(filled.root, folder, replace=True)
    assert (filled.reports_dir / "a.html").read_text() == "theirs"
    assert Path(f"{pulled.replaced}/reports/a.html").read_text() == "ours, longer"


@pytest.mark.slow
def test_two_pushes_at_the_same_time_make_one_snapshot(
    filled: Store, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_store(filled, bucket)
    pull_store(tmp_path / "other", bucket)
    other = Store.open(tmp_path / "other")
    annotate(filled, "here", 1)
    annotate(other, "there", 2)
    commit = pushing.create_snapshot

    def overtaken(remote: Remote, snapshot: object) -> bool:
        monkeypatch.setattr(pushing, "create_snapshot", commit)
        assert push_store(other, bucket).number == 2
        return commit(remote, snapshot)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(pushing, "create_snapshot", overtaken)
    with pytest.raises(Prerequisite, match="Another machine has pushed snapshot 2"):
        push_store(filled, bucket)
    pull_store(tmp_path / "third", bucket)
    assert notes_of(Store.open(tmp_path / "third")) == ["n1", "there"]
    table = pl.read_parquet(f"{bucket}/tables/annotations.parquet")
    assert sorted(table["annotation_id"]) == ["n1", "there"]


@pytest.mark.slow
def test_a_push_or_pull_killed_anywhere_and_run_again_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    kills = full_or(8, 1)
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROGRAM.parents[1], check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"killed": 2 * kills, "problems": []}


@pytest.mark.slow
def test_what_is_damaged_or_cut_off_elsewhere_is_noticed(filled: Store, tmp_path: Path, folder: str) -> None:
    push_store(filled, folder)
    remote = tmp_path / "remote"
    (remote / "snapshots" / "00000002.json").write_text('{"format": 1, "num')
    annotate(filled, "n2", 1)
    assert push_store(filled, folder).number == 3
    (shard,) = (remote / "rollouts" / "d1").glob("*.parquet")
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedStore, match="differs from what was pushed"):
        pull_store(tmp_path / "other", folder)
    assert not (tmp_path / "other" / "catalog.duckdb").exists()
    shard.unlink()
    with pytest.raises(RemoteFailed, match="FileNotFoundError"):
        pull_store(tmp_path / "other", folder)
    assert push_store(filled, folder).is_new is False
    with pytest.raises(Prerequisite, match="has not seen"):
        push_store(Store.create(tmp_path / "third"), folder, check=True)
    healed = push_store(filled, folder, check=True)
    assert (healed.number, healed.sent) == (4, 2)  # the shard, and the catalog
    assert push_store(filled, folder, check=True).is_new is False
    pull_store(tmp_path / "other", folder)
    assert notes_of(Store.open(tmp_path / "other")) == ["n1", "n2"]


@pytest.mark.slow
def test_a_full_disk_here_is_not_blamed_on_the_other_side(filled: Store, folder: str) -> None:
    push_store(filled, folder)
    with pytest.raises(DiskFailed, match="the disk is full"):
        Remote(folder).fetch("snapshots/00000001.json", Path("/dev/full"))


@pytest.mark.slow
def test_replies_that_arrive_during_a_push_are_sent_whole(
    filled: Store, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = filled.responses_dir("r") / "00000.jsonl.zst"
    send = Remote.replace

    def arriving(remote: Remote, name: str, local: Path) -> None:
        send(remote, name, local)
        if local == replies and replies.stat().st_size == 5:
            replies.write_bytes(b"reply, and another one")

    monkeypatch.setattr(Remote, "replace", arriving)
    push_store(filled, folder)
    pull_store(tmp_path / "other", folder)
    there = Store.open(tmp_path / "other").responses_dir("r") / "00000.jsonl.zst"
    assert there.read_bytes() == b"reply, and another one"
    assert len(list((tmp_path / "remote" / "responses" / "r").iterdir())) == 1


@pytest.mark.slow
def test_another_machine_queries_tables_and_steps_where_they_are(filled: Store, bucket: str, tmp_path: Path) -> None:
    push_store(filled, bucket)
    con = duckdb.connect()
    con.register_filesystem(fsspec.filesystem("s3", skip_instance_cache=True))
    query = f"SELECT annotation_id, step FROM '{bucket}/tables/annotations.parquet'"
    with filled.catalog.write():  # the lock is held here, and nobody needs it there
        assert con.execute(query).fetchall() == [("n1", 0)]
        steps = pl.scan_parquet(f"{bucket}/rollouts/d1/*.parquet")
        assert steps.select("step").collect()["step"].to_list() == [0, 1, 2, 3, 4]
        assert pl.read_parquet(f"{bucket}/tables/rejections.parquet").height == 0
    assert [path.name for path in export_tables(filled)] == [
        "annotations.parquet",
        "rejections.parquet",
        "annotation_runs.parquet",
        "spending.parquet",
    ]
    assert pl.read_parquet(filled.root / "tables" / "annotations.parquet")["annotation_id"].to_list() == ["n1"]


@pytest.mark.slow
def test_a_dataset_or_a_file_of_rows_is_imported_by_its_url(filled: Store, bucket: str, tmp_path: Path) -> None:
    push_store(filled, bucket)
    with local_copy(f"{bucket}/rollouts/d1") as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "steps-00000.parquet"]
        assert adopt_dataset(Store.create(tmp_path / "one"), folder).dataset_id == "d1"
    shard = filled.dataset_dir("d1") / "steps-00000.parquet"
    with local_copy(shard.as_uri()) as copy:
        assert copy.read_bytes() == shard.read_bytes()
    assert not copy.exists()
    with pytest.raises(BadInput, match="does not exist"), local_copy(f"{bucket}/rollouts/d2"):
        pass


@pytest.mark.slow
def test_credentials_are_neither_said_nor_kept(
    filled: Store, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def trajnote(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["trajnote", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    other = str(tmp_path / "other")
    assert trajnote("store", "push", bucket, "--store", str(filled.root)) == 0
    assert trajnote("store", "pull", bucket, "--store", other, "--json") == 0
    assert trajnote("store", "push", f"s3://{KEY_ID}:{SECRET}@notes/x", "--store", other) == 2
    assert trajnote("store", "push", f"{SECRET}", "--store", other) == 2
    assert trajnote("store", "push", "s3://no-such-bucket/x", "--store", other) == 9
    assert trajnote("store", "pull", f"{bucket}/nothing", "--store", f"{other}2") == 3
    monkeypatch.setattr(Remote, "sizes", lambda remote: _refuse(remote))
    annotate(filled, "n2", 1)
    assert trajnote("store", "push", bucket, "--store", str(filled.root)) == 9
    printed = "".join(capfd.readouterr())
    assert "... was refused" in printed
    files = [path for root in (filled.root, Path(other)) for path in root.rglob("*") if path.is_file()]
    remote = Remote(bucket)
    contents = [path.read_bytes() for path in files] + [remote.read(name) or b"" for name in _names(bucket)]
    assert len(contents) > 12
    for secret in (SECRET, KEY_ID):
        assert secret not in printed
        assert not any(secret.encode() in content for content in contents)
    assert not Path(f"{other}2").exists()
    assert "Traceback" not in printed


def _refuse(remote: Remote) -> dict[str, int]:
    with remote._translated():
        raise PermissionError(f"{os.environ['AWS_SECRET_ACCESS_KEY']} was refused")


def _names(bucket: str) -> list[str]:
    return [path.split("a store/", 1)[1] for path in fsspec.filesystem("s3", skip_instance_cache=True).find(bucket)]


OPERATIONS: dict[str, Callable[[Remote, Path], object]] = {
    "ls": lambda remote, _: remote.names("snapshots"),
    "find": lambda remote, _: remote.sizes(),
    "cat_file": lambda remote, _: remote.read("a"),
    "pipe_file": lambda remote, _: remote.create("a", b""),
    "put_file": lambda remote, local: remote.replace("a", local),
    "rm_file": lambda remote, _: remote.remove("a"),
    "get_file": lambda remote, local: remote.fetch("a", local),
}
"""What a remote asks of its backend -> an operation that does."""


@pytest.mark.parametrize("asked", OPERATIONS)
def test_whatever_a_backend_raises_is_one_line_without_secrets(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setenv("STORAGE_TOKEN", "abcdef-123")
    monkeypatch.setattr(MemoryFileSystem, asked, refuse)
    remote = Remote("memory://bucket/folder/")
    raised: Exception = RuntimeError("abcdef-123 was refused\n<html>")
    with pytest.raises(RemoteFailed) as failed:
        OPERATIONS[asked](remote, tmp_path / "a")
    assert failed.value.problem == "memory://bucket/folder: RuntimeError: ... was refused"
    assert failed.value.hint == "Check the URL, the credentials and the network, then run this again."
    assert failed.value.__suppress_context__, "what was raised holds the secret"
    raised = BadInput("one of this project's own")
    with pytest.raises(BadInput, match="own"):
        OPERATIONS[asked](remote, tmp_path / "a")


@pytest.mark.slow
def test_foreign_and_newer_snapshots_are_refused(filled: Store, tmp_path: Path, folder: str, store: Store) -> None:
    push_store(filled, folder)
    path = tmp_path / "remote" / "snapshots" / "00000001.json"
    snapshot = json.loads(path.read_text())
    name = "rollouts/../../outside"
    path.write_text(json.dumps(snapshot | {"files": {name: next(iter(snapshot["files"].values()))}}))
    with pytest.raises(BadInput, match="not the name of a file"):
        pull_store(tmp_path / "other", folder)
    path.write_text(json.dumps(snapshot | {"catalog_version": 10**6}))
    with pytest.raises(Prerequisite, match="newer trajnote"):
        pull_store(tmp_path / "other", folder)
    with pytest.raises(Prerequisite, match="no snapshot 7"):
        pull_store(tmp_path / "other", folder, number=7)


def test_a_url_is_not_the_folder_of_a_store() -> None:
    with pytest.raises(BadInput, match="store pull URL"):
        Store.open("s3://bucket/store")
    for url in ("bucket/store", "ftp://host/x", "s3://", "s3://a?b", "s3://a/*"):
        with pytest.raises(BadInput, match="URL"):
            Remote(url)
    assert find_newest(Remote("memory://nothing-here")) == (None, 0)
