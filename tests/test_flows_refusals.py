"""Policies that remember or see images are refused in one line, wherever they come from."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gym_spaces

from flows.policies import loading as policies
from flows.simulation.environments import Spaces, look_up_spaces, make_environment
from flows.simulation.trust import Named
from refine.policies.sb3_models import use_one_thread  # silences the old gym before the libraries below import it
from storage.errors import BadInput

sb3 = pytest.importorskip("stable_baselines3")
import d3rlpy  # noqa: E402

use_one_thread()

RECURRENT = "is recurrent .*: its action depends on more than the observation, so it cannot act here"
IMAGES = r"sees images or sequences: its observations have shape \(.*\); one row of numbers is allowed"


def load_policy(spec: str, spaces: Spaces) -> policies.Policy:
    return policies.load_policy(Named(spec), spaces)


def cartpole() -> Spaces:
    return look_up_spaces("CartPole-v1")


class RecurrentPolicy(sb3.common.policies.ActorCriticPolicy):
    """What tells a recurrent policy of Stable-Baselines3's contributions from others."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lstm_actor = torch.nn.LSTM(4, 4)


def test_a_recurrent_model_of_stable_baselines3_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    """Loaded as a PPO it would act, without its memory."""
    model = sb3.PPO(RecurrentPolicy, make_environment("CartPole-v1"), n_steps=8, batch_size=8, device="cpu")
    model.save(tmp_path / "model.zip")
    spaces = cartpole()
    for name in ("PPO", "RecurrentPPO"):
        with pytest.raises(BadInput, match=RECURRENT):
            load_policy(f"sb3:{name}:{tmp_path / 'model'}", spaces)
    described = {"policy_class": {"__module__": "sb3_contrib.common.recurrent.policies"}}
    with zipfile.ZipFile(tmp_path / "model.zip") as whole, zipfile.ZipFile(tmp_path / "absent.zip", "w") as archive:
        archive.writestr("data", json.dumps(described))  # the package it needs is not installed
        archive.writestr("policy.pth", whole.read("policy.pth"))
    with pytest.raises(BadInput, match=RECURRENT):
        load_policy(f"sb3:PPO:{tmp_path / 'absent'}", spaces)


class Pixels(gymnasium.Env[np.ndarray, np.int64]):
    observation_space = gym_spaces.Box(0, 255, (1, 36, 36), np.uint8)
    action_space = gym_spaces.Discrete(2)


def test_policies_that_see_images_are_refused_in_one_line(tmp_path: Path) -> None:
    spaces = cartpole()
    sb3.DQN("CnnPolicy", Pixels(), buffer_size=1, device="cpu").save(tmp_path / "model.zip")
    pixels = d3rlpy.models.PixelEncoderFactory(filters=[[4, 8, 4]], feature_size=8)
    algorithm = d3rlpy.algos.DQNConfig(encoder_factory=pixels).create()
    algorithm.create_impl((1, 36, 36), 2)
    algorithm.save(str(tmp_path / "model.d3"))
    for spec in (f"sb3:DQN:{tmp_path / 'model'}", f"d3rlpy:{tmp_path / 'model.d3'}"):
        with pytest.raises(BadInput, match=IMAGES) as refused:
            load_policy(spec, spaces)
        assert "\n" not in str(refused.value)


def test_a_decision_transformer_is_refused_for_its_memory(tmp_path: Path) -> None:
    algorithm = d3rlpy.algos.DiscreteDecisionTransformerConfig(num_heads=1, num_layers=1, context_size=2).create()
    algorithm.create_impl((4,), 2)
    algorithm.save(str(tmp_path / "model.d3"))
    with pytest.raises(BadInput, match=RECURRENT):
        load_policy(f"d3rlpy:{tmp_path / 'model.d3'}", cartpole())


@pytest.mark.parametrize(("shapes", "problem"), [([[None, 4], [1, None, 8]], RECURRENT), ([[None, 3, 36, 36]], IMAGES)])
def test_an_onnx_model_with_a_memory_or_with_eyes_is_refused(shapes: list[Any], problem: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info(f"input{n}", kind, shape) for n, shape in enumerate(shapes)]
    nodes = [onnx.helper.make_node("Identity", [given.name], [f"output{n}"]) for n, given in enumerate(inputs)]
    outputs = [onnx.helper.make_tensor_value_info(f"output{n}", kind, shape) for n, shape in enumerate(shapes)]
    graph = onnx.helper.make_graph(nodes, "policy", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BadInput, match=problem):
        load_policy(f"onnx:{tmp_path / 'model.onnx'}", cartpole())


REMEMBERING = """
import torch

class Remembering:
    def __init__(self):
        self.network = torch.nn.ModuleDict({"memory": torch.nn.GRU(4, 2)})

    def __call__(self, observations):
        return [0]
"""


def test_an_object_of_python_that_holds_a_recurrent_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "remembering_policy.py").write_text(REMEMBERING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(BadInput, match=r"is recurrent \(a GRU layer\)"):
        load_policy("py:remembering_policy:Remembering", cartpole()).act(np.zeros((1, 4), np.float32))
