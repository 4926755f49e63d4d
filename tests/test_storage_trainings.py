"""What was trained before: kept whole, thrown away when there is too much of it, and never trusted when damaged."""

from __future__ import annotations

import os
import zipfile

import pytest

from storage.policies.policies import load_training, save_training
from storage.store import Store

FILES = {"snapshots.json": b"[]", "0/weights.npz": bytes(1000)}


def test_a_training_comes_back_as_it_was_and_equal_ones_are_equal_files(store: Store) -> None:
    assert load_training(store, "t_1") is None
    save_training(store, "t_1", FILES)
    assert load_training(store, "t_1") == FILES
    before = store.training_path("t_1").read_bytes()
    save_training(store, "t_1", FILES)
    assert store.training_path("t_1").read_bytes() == before


def test_a_damaged_training_is_made_again(store: Store) -> None:
    save_training(store, "t_1", FILES)
    path = store.training_path("t_1")
    path.write_bytes(path.read_bytes().replace(b"[]", b"[["))
    assert load_training(store, "t_1") is None
    path.write_bytes(b"")
    assert load_training(store, "t_1") is None


def test_what_was_not_used_for_longest_goes_first(store: Store) -> None:
    for number in range(3):
        save_training(store, f"t_{number}", FILES)
        os.utime(store.training_path(f"t_{number}"), (number, number))
    assert load_training(store, "t_0") == FILES  # used just now
    save_training(store, "t_3", FILES, limit=3000)
    assert sorted(path.name for path in store.trainings_dir.iterdir()) == ["t_0.zip", "t_3.zip"]


def test_what_a_killed_command_left_half_written_is_gone_after_the_next(store: Store) -> None:
    leftover = store.trainings_dir / "t_1.zip.999.tmp"
    leftover.write_bytes(b"half")
    save_training(store, "t_1", FILES)
    assert [path.name for path in store.trainings_dir.iterdir()] == ["t_1.zip"]


def test_a_training_that_unpacks_to_more_than_is_ever_kept_is_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(store.training_path("t_1"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("snapshots.json", b"0" * 100_000)
    assert load_training(store, "t_1") is not None
    monkeypatch.setattr("storage.policies.policies.LIMIT_BYTES", 99_999)
    assert load_training(store, "t_1") is None
