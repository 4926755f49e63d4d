"""The baseline of a refinement: the dataset's own weights where they can be read, a distilled network otherwise."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_environment import REACH, TOY, gather_toys, make_baseline, right_actions, save_folder

from flows.datasets.collection import CollectConfig, collect, gather
from flows.policies import loading as baselines
from flows.policies.loading import Baseline, find_baseline
from flows.simulation.environments import look_up_spaces, make_environment
from refine.labels.labels import Labels
from refine.policies.mlp import MlpPolicy
from refine.training.distillation import distil
from refine.training.train import RefineConfig, refine
from storage.datasets.reader import read_steps
from storage.errors import BadInput
from storage.schema import Manifest
from storage.store import Store


def find(store: Store, manifest: Manifest, spec: str | None = None) -> Baseline:
    return find_baseline(store, manifest, read_steps(store, manifest.dataset_id), spec)


@pytest.fixture(autouse=True)
def short_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distil in few steps."""

    def briefly(*arguments: Any, **options: Any) -> Any:
        return distil(*arguments, **options, training_steps=200)

    monkeypatch.setattr("refine.training.distillation.distil", briefly)


@pytest.mark.slow
def test_the_weights_that_were_kept_are_found_after_their_file_has_gone(store: Store, tmp_path: Path) -> None:
    manifest = gather_toys(store, tmp_path)
    shutil.rmtree(tmp_path / "baseline")
    found = find(store, manifest)
    assert found.policy.to_files() == make_baseline().to_files()
    assert found.origin == "the weights that the dataset was collected with"


@pytest.mark.slow
def test_the_file_that_the_manifest_names_is_used_as_long_as_it_is_the_same(store: Store, tmp_path: Path) -> None:
    policy = save_folder(make_baseline(), tmp_path / "baseline")
    config = CollectConfig(env_id=TOY, policy=f"policy:{policy}", mode="sampled", episodes=12)
    manifest = collect(store, config)
    assert find(store, manifest).policy.sha256 == make_baseline().sha256
    save_folder(make_baseline(head="q_values"), policy)
    distilled = find(store, manifest)
    assert distilled.policy.sha256 not in (make_baseline().sha256, make_baseline(head="q_values").sha256)
    assert distilled.origin.startswith("distilled from policy_output")


@pytest.mark.slow
def test_what_has_no_weights_is_distilled_from_its_own_steps(store: Store) -> None:
    manifest = gather(store, CollectConfig(env_id=TOY, policy="random", episodes=20))
    found = find(store, manifest)
    assert found.origin.startswith("distilled from actions, ")
    probabilities = np.exp(found.policy.forward(np.zeros((1, 2), np.float32))[0])
    assert np.all(probabilities / probabilities.sum() < 0.6)  # it is chance that was cloned
    assert find(store, manifest).policy.sha256 == found.policy.sha256
    assert find(store, manifest, "random").policy.sha256 == found.policy.sha256


@pytest.mark.slow
def test_another_policy_can_be_named_if_its_weights_can_be_read(store: Store, tmp_path: Path) -> None:
    manifest = gather_toys(store, tmp_path)
    other = make_baseline(head="q_values")
    spec = f"policy:{save_folder(other, tmp_path / 'other')}"
    found = find(store, manifest, spec)
    assert (found.policy.sha256, found.origin) == (other.sha256, f"{spec}, its own weights")
    with pytest.raises(BadInput, match=r"random has no weights that can be read exactly, .* was not collected with it"):
        find(store, manifest, "random")
    with pytest.raises(BadInput, match="There is no folder"):
        find(store, manifest, "policy:./nowhere")


def sb3_model(name: str, env_id: str, folder: Path) -> str:
    sb3 = pytest.importorskip("stable_baselines3")
    options: dict[str, Any] = {"n_steps": 8, "batch_size": 8} if name == "PPO" else {"buffer_size": 8}
    options["policy_kwargs"] = {"net_arch": [8]}
    model = getattr(sb3, name)("MlpPolicy", make_environment(env_id), seed=0, device="cpu", **options)
    model.save(folder / "model.zip")
    return f"sb3:{name}:{folder / 'model.zip'}"


def d3rlpy_model(env_id: str, folder: Path) -> str:
    import d3rlpy

    spaces = look_up_spaces(env_id)
    encoder = d3rlpy.models.VectorEncoderFactory([8])
    if spaces.action.is_discrete:
        algorithm: Any = d3rlpy.algos.DiscreteCQLConfig(encoder_factory=encoder).create()
    else:
        scaler = d3rlpy.preprocessing.MinMaxActionScaler(minimum=np.array([-2.0]), maximum=np.array([2.0]))
        algorithm = d3rlpy.algos.IQLConfig(actor_encoder_factory=encoder, action_scaler=scaler).create()
    algorithm.create_impl((2,), spaces.action.n or spaces.action.size)
    algorithm.save(str(folder / "model.d3"))
    return f"d3rlpy:{folder / 'model.d3'}"


def onnx_model(folder: Path) -> str:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    matrix = onnx.numpy_helper.from_array(np.array([[1, 0, -1, 0], [0, 1, 0, -1]], np.float32), "matrix")
    node = onnx.helper.make_node("MatMul", ["input", "matrix"], ["logits"])
    given, said = (onnx.helper.make_tensor_value_info(n, kind, [None, k]) for n, k in (("input", 2), ("logits", 4)))
    graph = onnx.helper.make_graph([node], "policy", [given], [said], [matrix])
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx")
    return f"onnx:{folder / 'model.onnx'}"


def python_function(folder: Path) -> str:
    (folder / "pushes_by_sign.py").write_text("def act(rows):\n    return (rows[:, 0] < 0).astype(int) * 2\n")
    return "py:pushes_by_sign:act"


ANYWHERE = {
    "sb3 PPO": (TOY, lambda folder: sb3_model("PPO", TOY, folder), "logits"),
    "sb3 DQN": (TOY, lambda folder: sb3_model("DQN", TOY, folder), "q_values"),
    "sb3 SAC": (REACH, lambda folder: sb3_model("SAC", REACH, folder), "tanh"),
    "sb3 PPO, continuous": (REACH, lambda folder: sb3_model("PPO", REACH, folder), "clip"),
    "d3rlpy, discrete": (TOY, lambda folder: d3rlpy_model(TOY, folder), "q_values"),
    "d3rlpy, continuous": (REACH, lambda folder: d3rlpy_model(REACH, folder), "tanh"),
    "onnx": (TOY, onnx_model, "logits"),
    "python": (TOY, python_function, "logits"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ANYWHERE)
def test_a_policy_from_anywhere_is_collected_found_again_and_refined(
    name: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    env_id, make, head = ANYWHERE[name]
    spec = make(tmp_path)
    manifest = gather(store, CollectConfig(env_id=env_id, policy=spec, episodes=12, mode="greedy"))

    found = find(store, manifest)

    assert found.policy.head == head
    steps = read_steps(store, manifest.dataset_id)
    acted = np.flatnonzero(~steps.is_final)
    as_logged = found.policy.act(steps.observation[acted]).actions
    if name in ("onnx", "python"):
        assert found.origin.startswith("distilled from ")
        assert np.mean(as_logged == steps.action[acted]) > 0.9
    else:
        np.testing.assert_allclose(as_logged, steps.action[acted], atol=1e-5)
    right = right_actions(steps.observation[acted], env_id)
    labels = Labels(acted, right, np.ones(len(acted)), np.zeros(len(acted)))
    learner = RefineConfig(betas=(0.03,), snapshots=(60,), learning_rate=0.02)
    refined = refine(steps, labels, found.policy, learner)[0].policy

    def error(policy: MlpPolicy) -> float:
        return float(np.abs(policy.act(steps.observation[acted]).actions - right).mean())

    assert error(refined) < 0.7 * error(found.policy)


def test_reading_weights_loads_no_learner() -> None:
    assert not {"torch", "d3rlpy", "distil"} & set(vars(baselines))
