"""Watching a training: d3rlpy's own loggers write its losses, and the candidates stay the same to the bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from toy_environment import gather_toys, small_config, write_labels

from annotate.importing.labels import import_annotations
from flows.refinement.refinement import gather_material
from refine.training.train import refine_candidates
from storage.datasets.reader import read_steps
from storage.store import Store


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["A", "R"])
def test_a_watched_training_gives_the_same_bits_and_leaves_curves(mode: str, store: Store, tmp_path: Path) -> None:
    manifest = gather_toys(store, tmp_path)
    import_annotations(store, write_labels(store, manifest.dataset_id, tmp_path / "labels.jsonl"))
    config = small_config(mode=mode, betas=(0.1, 0.3), snapshots=(4, 10), critic_steps=6).refine
    material = gather_material(store, manifest, config, None).material
    steps = read_steps(store, manifest.dataset_id)
    start, labels = material.baseline, material.labels
    plain = refine_candidates(steps, labels, start, config)
    watched = refine_candidates(steps, labels, start, config, log_dir=tmp_path / "logs")
    assert [(s.step, s.beta) for s in watched] == [(4, 0.1), (10, 0.1), (4, 0.3), (10, 0.3)]
    assert [s.policy.sha256 for s in watched] == [s.policy.sha256 for s in plain]
    folders = sorted(path for path in (tmp_path / "logs").iterdir() if path.name != "runs")
    assert [folder.name.rsplit("_", 1)[0] for folder in folders] == ["labels-beta-0.1", "labels-beta-0.3"]
    curve = np.loadtxt(folders[0] / "loss.csv", delimiter=",")
    assert curve[:, 1].tolist() == [2 * n for n in range(1, 6 if mode == "A" else 9)]  # epochs of the common divisor
    assert np.isfinite(curve[:, 2]).all()
    assert not list((tmp_path / "logs").rglob("*.d3"))
    if importlib.util.find_spec("tensorboardX"):
        runs = sorted((tmp_path / "logs/runs").iterdir())
        assert [run.name for run in runs] == [folder.name for folder in folders]
        assert all(next(run.rglob("events.out.tfevents.*")).stat().st_size > 100 for run in runs)
