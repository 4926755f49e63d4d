from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from soak import every
from store_state import append_response, lend
from toy_datasets import make_draft, make_episode, write

from storage.annotations.annotations import insert_annotations
from storage.catalog import insert_rows
from storage.errors import DamagedStore
from storage.policies.policies import save_policy
from storage.schema import Annotation
from storage.store import Store
from storage.upkeep.verify import verify_store


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one of everything."""
    store = Store.create(tmp_path_factory.mktemp("template") / "store")
    write(store, make_draft(), [make_episode(i, 30) for i in range(3)], shard_bytes=1000)
    save_policy(store, "p1", {"weights.npz": b"numbers"}, {"kind": "baseline"})
    for number in (1, 2, 3):
        file, line = append_response(store, "run", {"request_id": f"r_{number}", "text": "hello"})
        with store.catalog.write() as con:
            reply = {"response_id": f"s_{number}", "request_id": f"r_{number}", "file": file, "line": line}
            insert_rows(con, "responses", [reply])
    note = Annotation("a", "run", "r_1", "d1", 0, 3, True, (1.0,), None, None, 0.5, None, "m", None)
    with store.catalog.write() as con:
        insert_annotations(con, [note])
    return store


@pytest.fixture
def full(template: Store) -> Store:
    """A copy of it, to be harmed."""
    return Store.open(lend(template.root))


def flip(path: Path, place: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.slow
def test_a_healthy_store_has_no_damage_and_every_file_is_read(full: Store) -> None:
    read: list[str] = []
    assert verify_store(full, read.append) == []
    assert read == [
        "rollouts/d1/manifest.json",
        "rollouts/d1/steps-00000.parquet",
        "rollouts/d1/steps-00001.parquet",
        "policies/p1",
        "responses/run/00000.jsonl.zst",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "file", "problem"),
    every(
        [
            (flip, "rollouts/d1/steps-00001.parquet", "sha256|no longer a Parquet|no column"),
            (lambda path: flip(path, 300), "rollouts/d1/steps-00001.parquet", "the content has sha256"),
            (cut, "rollouts/d1/steps-00001.parquet", "bytes; .* were written"),
            (remove, "rollouts/d1/steps-00000.parquet", "is missing"),
            (lambda path: flip(path, 40), "rollouts/d1/manifest.json", "differs from the one that was registered"),
            (remove, "rollouts/d1/manifest.json", "is missing"),
            (cut, "policies/p1/weights.npz", "differ from those that were saved"),
            (remove, "policies/p1/weights.npz", "differ from those that were saved"),
            (lambda path: flip(path, 15), "responses/run/00000.jsonl.zst", "line 1 is damaged"),
            (cut, "responses/run/00000.jsonl.zst", "ends after line 2; line 3 was written"),
            (remove, "responses/run/00000.jsonl.zst", "file of raw replies is missing"),
        ],
        2,
    ),
)
def test_each_damage_is_named(full: Store, harm: Callable[[Path], None], file: str, problem: str) -> None:
    harm(full.root / file)
    found = verify_store(full)
    assert found
    assert all(file.startswith(damage.file) for damage in found)
    assert re.search(problem, found[0].problem)
    assert str(full.root) not in str(found[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM episodes WHERE episode_id = 1", r"\(3, 90, 2, 60\).*\(3, 90, 3, 90\) in its manifest"),
        ("UPDATE datasets SET steps = 7", r"\(3, 7, 3, 90\)"),
        ("DELETE FROM responses WHERE request_id = 'r_1'", "1 annotations of run run have no raw reply"),
        ("DELETE FROM datasets", "catalog does not know this dataset"),
        ("DELETE FROM policies", "catalog does not know this policy"),
        ("UPDATE annotations SET step = 30", "1 annotations of dataset d1 are of steps that do not exist"),
    ],
)
def test_a_catalog_that_does_not_fit_the_files_is_named(full: Store, statement: str, problem: str) -> None:
    with full.catalog.write() as con:
        con.execute(statement)
    assert [damage for damage in verify_store(full) if re.search(problem, damage.problem)]


@pytest.mark.slow
def test_a_damaged_catalog_is_named(full: Store) -> None:
    rows = [{"run_id": f"r{i}", "dataset_id": "d1", "provider": "file", "model": "m" * 200} for i in range(3000)]
    with full.catalog.write() as con:
        insert_rows(con, "annotation_runs", rows)
    content = full.catalog.path.read_bytes()
    harmless = 0
    for place in range(10_000, len(content), len(content) // 12):
        flip(full.catalog.path, place)
        try:
            found = verify_store(full)
            harmless += not found
            assert [damage for damage in found if damage.file != "catalog.duckdb"] == []
        except DamagedStore:
            pass
        full.catalog.path.write_bytes(content)
    assert harmless < 9


def test_what_a_killed_run_left_behind_is_no_damage(full: Store) -> None:
    full.partial_dir("d2").mkdir()
    (full.partial_dir("d2") / "steps-00000.parquet.tmp").write_bytes(b"PAR1")
    (full.policies_dir / ".partial-p2").mkdir()
    path = full.root / "responses/run/00000.jsonl.zst"
    path.write_bytes(path.read_bytes() + b"\x28\xb5\x2f")
    assert verify_store(full) == []
