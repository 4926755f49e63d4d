"""Retention: looking deletes nothing, and nothing goes that something kept leads back to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from toy_datasets import make_draft, make_episode, write

from storage.catalog import insert_rows
from storage.errors import BadInput
from storage.policies.deployments import AlreadyRunning, Decision, deployment_lock, record_decision, record_intakes
from storage.policies.policies import save_policy
from storage.store import Store
from storage.upkeep.garbage import delete_garbage, find_garbage
from storage.upkeep.verify import verify_store

LONG_AGO = time.time() - 7200


def keep_policy(store: Store, name: str, kind: str = "refined", **record: object) -> None:
    save_policy(store, name, {"a.bin": name.encode()}, {"kind": kind, **record})


def found(store: Store, keep: int = 0, *pinned: str) -> set[str]:
    return {item.name for item in find_garbage(store, keep, pinned)}


@pytest.fixture
def filled(store: Store) -> Store:
    """Datasets a to e, a chain of policies, one policy in force, reports, and leftovers."""
    for number, name in enumerate("abcde"):
        write(store, make_draft(name, seed=number), [make_episode(0)])
    keep_policy(store, "baseline-1", "baseline", dataset_id="a")
    keep_policy(store, "refined-1", baseline_id="baseline-1", dataset_id="b", config={"also": ["c"]})
    keep_policy(store, "refined-2", baseline_id="refined-1", dataset_id="d")
    keep_policy(store, "refined-3", dataset_id="e")
    record_decision(store, "nightly", 0, Decision("c_1", "refined-1", None, True, 5, "promoted"))
    for age, name in ((9, "old"), (5, "new")):
        (store.reports_dir / f"{name}.html").write_text("<html></html>")
        os.utime(store.reports_dir / f"{name}.html", (LONG_AGO - age, LONG_AGO - age))
    return store


@pytest.mark.slow
def test_what_is_in_force_keeps_its_baseline_and_all_its_datasets(filled: Store) -> None:
    assert found(filled) == {"refined-2", "refined-3", "d", "e", "old", "new"}
    assert found(filled, 1) == {"refined-2", "d", "old"}
    assert found(filled, 2) == set()
    assert found(filled, 0, "refined-2", "old") == {"refined-3", "e", "new"}
    with pytest.raises(BadInput, match="no policy, dataset or report 'refined-9'"):
        found(filled, 0, "refined-9")


@pytest.mark.slow
def test_a_dataset_that_is_annotated_asked_about_or_a_deployments_stays(filled: Store) -> None:
    note = {"annotation_id": "n1", "run_id": "r", "episode_id": 0, "step": 0, "critical": True, "model": "m"}
    asked = {"run_id": "r", "request_id": "q"}
    with filled.catalog.write() as con:
        insert_rows(con, "annotations", [note | {"dataset_id": "d"}])
        insert_rows(con, "run_requests", [asked | {"dataset_id": "e"}])
    assert found(filled) & {"d", "e"} == set()
    write(filled, make_draft("f", seed=9), [make_episode(0)])
    assert "f" in found(filled)
    record_intakes(filled, "nightly", {"dataset:f": "f"})
    assert "f" not in found(filled)


@pytest.mark.slow
def test_a_report_that_is_kept_keeps_what_it_speaks_of(filled: Store) -> None:
    reasons = {"reason": "", "better": True, "better_reason": "", "credit": True, "credit_reason": ""}
    row = {"env_id": "E", "baseline_id": "refined-3", "policy_id": "refined-2", "recipe": "A", "accepted": True}
    with filled.catalog.write() as con:
        insert_rows(con, "comparisons", [row | reasons | {"comparison_id": "new", "dataset_id": "e"}])
    assert found(filled, 0, "new") == {"old"}


@pytest.mark.slow
def test_looking_deletes_nothing_and_deleting_leaves_a_whole_store(filled: Store) -> None:
    everything = sorted(filled.root.rglob("*"))
    garbage = find_garbage(filled, 1)
    assert sorted(filled.root.rglob("*")) == everything
    freed = delete_garbage(filled, garbage)
    assert freed == sum(item.bytes for item in garbage) > 0
    assert verify_store(filled) == []
    assert found(filled, 1) == set()
    with filled.catalog.read() as con:
        assert con.execute("SELECT DISTINCT dataset_id FROM steps ORDER BY 1").fetchall() == [
            ("a",), ("b",), ("c",), ("e",)
        ]  # fmt: skip
        assert con.execute("SELECT policy_id FROM policies ORDER BY 1").fetchall() == [
            ("baseline-1",), ("refined-1",), ("refined-3",)
        ]  # fmt: skip


@pytest.mark.slow
def test_a_deleting_that_was_killed_is_finished_by_the_next_and_new_strangers_are_left_alone(filled: Store) -> None:
    garbage = {item.name: item for item in find_garbage(filled, 1)}
    with filled.catalog.write() as con:  # killed between the catalog and the files
        con.execute("DELETE FROM policies WHERE policy_id = 'refined-2'")
    assert "refined-2" not in found(filled, 1)
    for path in (garbage["refined-2"].path, *garbage["refined-2"].path.iterdir()):
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert "refined-2" in found(filled, 1)
    delete_garbage(filled, find_garbage(filled, 1))
    assert not garbage["refined-2"].path.exists()


@pytest.mark.slow
def test_nothing_is_deleted_while_a_deployment_runs_or_outside_the_store(filled: Store, tmp_path: Path) -> None:
    garbage = find_garbage(filled, 0)
    with deployment_lock(filled, "nightly"), pytest.raises(AlreadyRunning):
        delete_garbage(filled, garbage)
    assert found(filled) == {item.name for item in garbage}
    other = Store.create(tmp_path / "other")
    with pytest.raises(BadInput, match="is not in"):
        delete_garbage(other, garbage)
