"""One damaged file takes nothing else with it: the other datasets can be asked, and what is wrong is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_datasets import make_draft, make_episode, write

from storage.annotations import insert_annotations
from storage.errors import DamagedStore, LeftOutWarning
from storage.queries import run_query
from storage.schema import Annotation
from storage.steps import read_steps
from storage.store import Store
from storage.verify import verify_store

ASKED = """SELECT dataset_id, count(*) AS rows, (SELECT count(*) FROM annotated_steps AS a
WHERE a.dataset_id = steps.dataset_id) AS labels FROM steps GROUP BY ALL ORDER BY ALL"""
SHARD = "rollouts/bad/steps-00000.parquet"


@pytest.fixture
def two(store: Store) -> Store:
    """Two datasets with a label each."""
    for name in ("bad", "good"):
        write(store, make_draft(name), [make_episode(i) for i in range(3)])
        note = Annotation(name, "run", None, name, 0, 1, True, (1.0,), "right", None, 0.5, None, "m", None)
        with store.catalog.write() as con:
            insert_annotations(con, [note])
    return store


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def answer(store: Store) -> list[tuple[str, int, int]]:
    return [tuple(row.values()) for row in run_query(store, ASKED).to_pylist()]


@pytest.mark.parametrize(
    ("harm", "wrong"), [(Path.unlink, "is missing"), (cut, "is cut off"), (empty, "cannot be read")]
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


def test_a_whole_folder_that_is_gone_is_named_and_left_out(two: Store) -> None:
    (two.root / "rollouts/bad").rename(two.root.parent / "aside")
    with pytest.warns(LeftOutWarning, match="dataset bad"):
        harmed = Store.open(two.root)
    assert answer(harmed) == [("good", 15, 1)]
    assert verify_store(harmed)[0].file == "rollouts/bad/manifest.json"


def test_a_file_that_only_looks_whole_is_named_with_the_way_out(two: Store) -> None:
    content = bytearray((two.root / SHARD).read_bytes())
    content[-12:-8] = b"\xff\xff\xff\xff"
    (two.root / SHARD).write_bytes(content)
    with pytest.raises(DamagedStore, match=r"bad/steps-00000.parquet.*leave its dataset out"):
        answer(Store.open(two.root))
    (two.root / SHARD).rename(two.root.parent / "aside")
    with pytest.warns(LeftOutWarning):
        assert answer(Store.open(two.root)) == [("good", 15, 1)]
