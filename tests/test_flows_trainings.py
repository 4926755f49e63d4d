from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flows.refinement import arms
from flows.refinement.arms import ArmDraw, Material, find_candidates, keep_candidates
from refine.config import RefineConfig, Snapshot
from refine.labels.labels import Labels
from refine.policies.mlp import MlpPolicy
from storage.schema import Space, content_id
from storage.store import Store
from storage.upkeep.garbage import delete_garbage, find_garbage

PLANE = Space(kind="box", dtype="float32", size=2, low=(-1.0, -1.0), high=(1.0, 1.0))
MOVES = Space(kind="discrete", dtype="int64", size=1, n=2)


def test_kept_candidates_come_back_with_the_reading_of_the_labels_that_they_are_from(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    policy = MlpPolicy(PLANE, MOVES, (np.ones((2, 4)), np.ones((4, 2))), (np.zeros(4), np.zeros(2)), "tanh", "logits")
    labels = Labels(np.array([0]), np.array([1]), np.ones(1), np.zeros(1))
    material = Material(store.root, "toys", labels, policy, RefineConfig(robust=True))
    candidates = [Snapshot(policy, 30, 0.1), Snapshot(policy, 100, 0.3, "actions 0 and 1 exchanged")]
    keep_candidates(store, material, ArmDraw("labels", 0), candidates)
    found = find_candidates(store, material, ArmDraw("labels", 0))

    assert found is not None
    assert [snapshot.name for snapshot in found] == [
        "beta 0.1, step 30",
        "beta 0.3, step 100, actions 0 and 1 exchanged",
    ]


def test_very_many_labels_travel_to_other_processes_as_files_that_they_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rng = Store.create(tmp_path / "store"), np.random.default_rng(0)
    policy = MlpPolicy(PLANE, MOVES, (np.ones((2, 4)), np.ones((4, 2))), (np.zeros(4), np.zeros(2)), "tanh", "logits")
    labels = Labels(np.arange(5_000), rng.integers(0, 2, 5_000), rng.random(5_000), np.zeros(5_000))
    material = Material(store.root, "toys", labels, policy, RefineConfig())
    monkeypatch.setattr(arms, "ENOUGH_ROWS", 1_000)
    sent = pickle.dumps(material)
    there = pickle.loads(sent)

    assert len(sent) < 10_000
    assert there.labels.identity == labels.identity
    assert there.content_id == material.content_id
    assert not there.labels.rows.flags.owndata
    again = pickle.dumps(replace(material, log_dir=tmp_path))
    assert len(list(store.labels_dir.iterdir())) == 1
    assert pickle.loads(again).labels.identity == labels.identity
    few = pickle.loads(
        pickle.dumps(replace(material, labels=Labels(*(x[:9] for x in vars(labels).values() if x is not None))))
    )
    assert few.labels.rows.flags.owndata


def test_the_files_of_labels_stay_while_a_refinement_uses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "store")
    policy = MlpPolicy(PLANE, MOVES, (np.ones((2, 4)), np.ones((4, 2))), (np.zeros(4), np.zeros(2)), "tanh", "logits")
    monkeypatch.setattr(arms, "ENOUGH_ROWS", 1_000)

    def send(seed: int) -> tuple[Material, bytes]:
        labels = Labels(np.arange(2_000), np.zeros(2_000, np.int64), np.full(2_000, seed / 9), np.zeros(2_000))
        material = Material(store.root, "toys", labels, policy, RefineConfig())
        return material, pickle.dumps(material)

    def age() -> None:
        for path in store.labels_dir.rglob("*"):
            os.utime(path, (1_000, 1_000))

    used, sent = send(1)
    age()
    assert find_garbage(store, 9) == []
    ended, _ = send(2)
    assert len(list(store.labels_dir.iterdir())) == 2  # nobody clears up what is in use, however old
    folder = store.labels_dir / content_id("", ended.labels.identity)
    del ended
    age()
    (garbage,) = find_garbage(store, 9)
    assert (garbage.kind, garbage.path) == ("columns", folder)
    again, _ = send(2)
    assert delete_garbage(store, [garbage]) == 0  # it is in use again
    del again
    assert delete_garbage(store, [garbage]) == garbage.bytes > 0
    assert pickle.loads(sent).labels.identity == used.labels.identity
