"""The baseline of a refinement: the dataset's own weights where they can be read, a distilled network otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_environment import TOY, gather_toys, make_baseline, save_folder

from flows import baselines
from flows.baselines import Baseline, find_baseline
from flows.collect import CollectConfig, collect
from flows.gather import gather
from refine.distil import distil
from storage.errors import BadInput
from storage.schema import Manifest
from storage.steps import read_steps
from storage.store import Store


def find(store: Store, manifest: Manifest, spec: str | None = None) -> Baseline:
    return find_baseline(store, manifest, read_steps(store, manifest.dataset_id), spec)


@pytest.fixture(autouse=True)
def short_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distil in few steps."""

    def briefly(*arguments: Any, **options: Any) -> Any:
        return distil(*arguments, **options, training_steps=200)

    monkeypatch.setattr("refine.distil.distil", briefly)


def test_the_weights_that_were_kept_are_found_after_their_file_has_gone(store: Store, tmp_path: Path) -> None:
    manifest = gather_toys(store, tmp_path)
    shutil.rmtree(tmp_path / "baseline")
    found = find(store, manifest)
    assert found.policy.to_files() == make_baseline().to_files()
    assert found.origin == "the weights that the dataset was collected with"


def test_the_file_that_the_manifest_names_is_used_as_long_as_it_is_the_same(store: Store, tmp_path: Path) -> None:
    policy = save_folder(make_baseline(), tmp_path / "baseline")
    config = CollectConfig(env_id=TOY, policy=f"policy:{policy}", mode="sampled", episodes=12)
    manifest = collect(store, config)
    assert find(store, manifest).policy.sha256 == make_baseline().sha256
    save_folder(make_baseline(head="q_values"), policy)
    distilled = find(store, manifest)
    assert distilled.policy.sha256 not in (make_baseline().sha256, make_baseline(head="q_values").sha256)
    assert distilled.origin.startswith("distilled from policy_output")


def test_what_has_no_weights_is_distilled_from_its_own_steps(store: Store) -> None:
    manifest = gather(store, CollectConfig(env_id=TOY, policy="random", episodes=20))
    found = find(store, manifest)
    assert found.origin.startswith("distilled from actions, ")
    probabilities = np.exp(found.policy.forward(np.zeros((1, 2), np.float32))[0])
    assert np.all(probabilities / probabilities.sum() < 0.6)  # it is chance that was cloned
    assert find(store, manifest).policy.sha256 == found.policy.sha256
    assert find(store, manifest, "random").policy.sha256 == found.policy.sha256


def test_another_policy_can_be_named_if_its_weights_can_be_read(store: Store, tmp_path: Path) -> None:
    manifest = gather_toys(store, tmp_path)
    other = make_baseline(head="q_values")
    spec = f"policy:{save_folder(other, tmp_path / 'other')}"
    found = find(store, manifest, spec)
    assert (found.policy.sha256, found.origin) == (other.sha256, f"{spec}, its own weights")
    with pytest.raises(BadInput, match=r"random has no weights that can be read exactly, .* are not its own"):
        find(store, manifest, "random")
    with pytest.raises(BadInput, match="There is no folder"):
        find(store, manifest, "policy:./nowhere")


def test_reading_weights_loads_no_learner() -> None:
    assert not {"torch", "d3rlpy", "distil"} & set(vars(baselines))
