from __future__ import annotations

from pathlib import Path

import numpy as np

from flows.refinement.arms import ArmDraw, Material, find_candidates, keep_candidates
from refine.config import RefineConfig, Snapshot
from refine.labels.labels import Labels
from refine.policies.mlp import MlpPolicy
from storage.schema import Space
from storage.store import Store

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
