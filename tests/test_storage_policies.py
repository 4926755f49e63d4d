from __future__ import annotations

import pytest

from storage.errors import BadInput, DamagedStore, Prerequisite
from storage.policies import policies
from storage.policies.policies import files_sha256, policy_files, policy_record, resolve_policy, save_policy
from storage.store import Store

FILES = {"policy.json": b'{"head": "logits"}', "weights.npz": bytes(range(256))}
RECORD = {"kind": "refined", "env_id": "Toy-v0", "dataset_id": "d1", "baseline_id": "p0", "run_ids": ["run"]}


def save(store: Store, policy_id: str = "p1", **changes: object) -> str:
    return save_policy(store, policy_id, FILES, {**RECORD, "config": {"beta": 0.1}, **changes})


def test_a_policy_comes_back_with_its_parents(store: Store) -> None:
    sha256 = save(store)
    assert policy_files(store, "p1") == FILES
    record = policy_record(store, "p1")
    assert {name: record[name] for name in RECORD} == RECORD
    assert (record["sha256"], record["config"]) == (sha256, '{"beta":0.1}')
    assert (store.policy_dir("p1") / "record.json").read_text().startswith('{"baseline_id":"p0"')


def test_saving_the_same_again_changes_nothing_and_another_is_refused(store: Store) -> None:
    assert save(store) == save(store)
    with pytest.raises(BadInput, match="Another policy is named 'p1'"):
        save_policy(store, "p1", {"weights.npz": b""}, RECORD)
    assert policy_files(store, "p1") == FILES
    assert [path.name for path in store.policies_dir.iterdir()] == ["p1"]


def test_a_run_killed_before_the_catalog_knew_is_finished_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(policies, "insert_rows", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(store)
    with pytest.raises(BadInput, match="no policy 'p1'"):
        policy_files(store, "p1")
    save(store)
    assert policy_files(store, "p1") == FILES


def test_a_half_written_folder_is_written_again(store: Store) -> None:
    partial = store.policies_dir / ".partial-p1"
    partial.mkdir()
    (partial / "weights.npz").write_bytes(b"half")
    (partial / "old.bin").write_bytes(b"")
    save(store)
    assert policy_files(store, "p1") == FILES


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_damaged_policy_is_refused(store: Store, damage: str) -> None:
    save(store)
    path = store.policy_dir("p1") / ("extra.bin" if damage == "added" else "weights.npz")
    path.unlink() if damage == "missing" else path.write_bytes(b"other")
    with pytest.raises(DamagedStore, match="p1 differ from those that were saved"):
        policy_files(store, "p1")


@pytest.mark.slow
def test_policies_are_found_by_the_beginning_of_their_name(store: Store) -> None:
    with pytest.raises(Prerequisite, match="no policy"):
        resolve_policy(store)
    for name in ("p_aa", "p_ab", "q"):
        save(store, name)
    assert (resolve_policy(store), resolve_policy(store, "p_aa"), resolve_policy(store, "p_ab")) == (
        "q",
        "p_aa",
        "p_ab",
    )
    with pytest.raises(BadInput, match="prefix of 2 policy names: p_aa, p_ab"):
        resolve_policy(store, "p_")
    with pytest.raises(BadInput, match="no policy 'z'"):
        resolve_policy(store, "z")


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden", "record.json"])
def test_file_names_that_lead_elsewhere_are_refused(store: Store, name: str) -> None:
    with pytest.raises(BadInput, match="plain names"):
        save_policy(store, "p1", {name: b""}, RECORD)


def test_the_hash_of_files_depends_on_names_and_contents_only() -> None:
    assert files_sha256(FILES) == files_sha256(dict(reversed(FILES.items())))
    assert files_sha256(FILES) != files_sha256({"policy.json": FILES["weights.npz"], "weights.npz": b""})
