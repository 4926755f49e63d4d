"""One damaged file takes nothing else with it: the other datasets can be asked, and what is wrong is named."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from soak import every
from store_state import lend
from toy_datasets import make_draft, make_episode, write

from storage.annotations.annotations import insert_annotations
from storage.catalog.connection import Catalog
from storage.datasets.reader import read_steps
from storage.disk import seal
from storage.errors import DamagedStore, DiskFailed, LeftOutWarning
from storage.policies.policies import save_policy
from storage.queries.query import run_query
from storage.schema import Annotation
from storage.store import Store
from storage.upkeep.verify import verify_store

ASKED = """SELECT dataset_id, count(*) AS rows, (SELECT count(*) FROM annotated_steps AS a
WHERE a.dataset_id = steps.dataset_id) AS labels FROM steps GROUP BY ALL ORDER BY ALL"""
SHARD = "rollouts/bad/steps-00000.parquet"


@pytest.fixture(scope="module")
def template(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store.open(shutil.copytree(empty_store, tmp_path_factory.mktemp("two") / "store"))
    for name in ("bad", "good"):
        write(store, make_draft(name), [make_episode(i) for i in range(3)])
        note = Annotation(name, "run", None, name, 0, 1, True, (1.0,), "right", None, 0.5, None, "m", None)
        with store.catalog.write() as con:
            insert_annotations(con, [note])
    return store.root


@pytest.fixture
def two(template: Path) -> Store:
    """Two datasets with a label each."""
    return Store.open(lend(template))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def answer(store: Store) -> list[tuple[str, int, int]]:
    return [tuple(row.values()) for row in run_query(store, ASKED).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "wrong"), every([(Path.unlink, "is missing"), (cut, "is cut off"), (empty, "is cut off")], 3)
)
def test_a_dataset_without_its_files_is_left_out_with_a_warning_and_comes_back_with_them(
    two: Store, harm: Callable[[Path], object], wrong: str
) -> None:
    whole = [("bad", 15, 1), ("good", 15, 1)]
    assert answer(two) == whole
    content = (two.root / SHARD).read_bytes()
    harm(two.root / SHARD)
    with pytest.warns(LeftOutWarning, match=f"dataset bad is left out .*: steps-00000.parquet {wrong}.*verify"):
        harmed = Store.open(two.root)
    assert answer(harmed) == whole[1:]
    assert run_query(harmed, "SELECT count(*) AS n FROM annotations").to_pylist() == [{"n": 2}]
    assert [damage.file for damage in verify_store(harmed)] == [SHARD, "rollouts/bad"]
    with pytest.raises(DamagedStore, match=r"steps-00000\.parquet"):
        read_steps(harmed, "bad")
    write(harmed, make_draft("third"), [make_episode(1)])
    assert len(answer(harmed)) == 2
    (two.root / SHARD).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mended = Store.open(two.root)
    assert answer(mended) == [*whole, ("third", 5, 0)]


@pytest.mark.slow
def test_a_whole_folder_that_is_gone_is_named_and_left_out(two: Store) -> None:
    (two.root / "rollouts/bad").rename(two.root.parent / "aside")
    with pytest.warns(LeftOutWarning, match="dataset bad"):
        harmed = Store.open(two.root)
    assert answer(harmed) == [("good", 15, 1)]
    assert verify_store(harmed)[0].file == "rollouts/bad/manifest.json"


def at_the_end(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-12:-8] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def flip(path: Path, place: int = 40) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [at_the_end, flip])
def test_a_file_that_only_looks_whole_takes_nothing_with_it(two: Store, harm: Callable[[Path], object]) -> None:
    harm(two.root / SHARD)
    with pytest.warns(
        LeftOutWarning, match=r"dataset bad .*: steps-00000.parquet is (not what was written|.* damaged)"
    ):
        assert answer(Store.open(two.root)) == [("good", 15, 1)]


@pytest.mark.slow
def test_damage_that_leaves_the_time_of_a_file_is_found_when_a_question_meets_it(two: Store) -> None:
    path = two.root / SHARD
    before = path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    os.utime(path, ns=(before, before))
    opened = Store.open(two.root)
    with pytest.warns(LeftOutWarning, match="dataset bad"):
        assert answer(opened) == [("good", 15, 1)]
    with pytest.warns(LeftOutWarning, match="dataset bad"):
        Store.open(two.root)


@pytest.mark.slow
def test_a_copied_store_with_a_damaged_end_answers_about_the_others(two: Store, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two.root, tmp_path / "copy"))
    at_the_end(copy / SHARD)
    assert [damage.file for damage in verify_store(Store.locate(copy))] == [SHARD, "rollouts/bad"]
    with pytest.warns(LeftOutWarning, match="dataset bad"):
        assert answer(Store.open(copy)) == [("good", 15, 1)]


@pytest.mark.slow
def test_a_copy_that_cannot_be_written_is_answered_from_views_of_its_own(
    two: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(two.root, tmp_path / "copy"))
    (two.root / SHARD).unlink()
    connect = Catalog.connect

    def refuse(catalog: Catalog, read_only: bool) -> object:
        if not read_only:
            raise DiskFailed("The file system is read-only.")
        return connect(catalog, read_only)

    monkeypatch.setattr(Catalog, "connect", refuse)
    assert answer(Store.open(copy)) == [("bad", 15, 1), ("good", 15, 1)]
    assert verify_store(Store.locate(copy)) == []


@pytest.mark.slow
@pytest.mark.parametrize("content", every([b"", b"hello\n", bytes(8192), None], 2))
def test_a_store_without_a_readable_catalog_is_still_verified(two: Store, content: bytes | None) -> None:
    if content is None:
        two.catalog.path.unlink()
    else:
        two.catalog.path.write_bytes(content)
    cut(two.root / SHARD)
    assert [damage.file for damage in verify_store(Store.locate(two.root))] == ["catalog.duckdb", SHARD]
    with pytest.raises(DamagedStore, match=r"catalog.duckdb"):
        Store.open(two.root)


@pytest.mark.slow
def test_a_catalog_of_a_newer_version_is_named(two: Store) -> None:
    with two.catalog.write() as con:
        con.execute("INSERT INTO schema_migrations (version, name) VALUES (999, 'later')")
    (damage,) = verify_store(Store.locate(two.root))
    assert damage.file == "catalog.duckdb"
    assert "version 999" in damage.problem


@pytest.mark.slow
def test_a_log_that_is_damaged_is_named(two: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with duckdb.connect(str(two.catalog.path)) as con:  # a log lives until its connection ends
        con.execute("SET wal_autocheckpoint = '1TB'")
        for number in range(30):
            con.execute(f"CREATE TABLE t{number} AS SELECT 1 AS a")
        shutil.copytree(two.root, copy)
    flip(copy / "catalog.duckdb.wal", 2000)
    (damage,) = verify_store(Store.locate(copy))
    assert damage.file == "catalog.duckdb"
    assert "WAL" in damage.problem
    assert str(tmp_path) not in damage.problem


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "harm"),
    every(
        [
            ("policies/p1/record.json", flip),
            ("policies/p1/record.json", empty),
            ("reports/r.html", flip),
            ("reports/r.html", cut),
        ],
        2,
    ),
)
def test_records_and_reports_that_are_damaged_are_named(two: Store, name: str, harm: Callable[[Path], object]) -> None:
    save_policy(two, "p1", {"weights.npz": b"numbers"}, {"kind": "baseline", "config": {"also": ["good"], "beta": 0.1}})
    (two.reports_dir / "r.html").write_bytes(seal(b"<html>" + b"words " * 20 + b"</html>"))
    (two.reports_dir / "older.html").write_bytes(b"<html>without a seal</html>\n")
    assert verify_store(two) == []
    harm(two.root / name)
    assert [damage.file for damage in verify_store(two)] == [name]


@pytest.mark.slow
def test_a_catalog_of_an_older_version_learns_what_the_files_were(two: Store) -> None:
    with two.catalog.write() as con:
        con.execute("DELETE FROM shards")
    flip(two.root / SHARD)
    with pytest.warns(LeftOutWarning, match="dataset bad .*is not what was written"):
        assert answer(Store.open(two.root)) == [("good", 15, 1)]
