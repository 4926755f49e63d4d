"""An exported policy acts as the original, for every head and kind of observation; a graph that differs is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refine.policies.mlp import MlpPolicy
from refine.policies.onnx_export import INPUT, check_graph, draw_probes, export_onnx
from storage.errors import BadInput
from storage.schema import Space

onnxruntime = pytest.importorskip("onnxruntime")

BOX = Space(kind="box", dtype="float32", size=3, low=(-1.0, -2.0, float("-inf")), high=(1.0, 2.0, float("inf")))
CELLS = Space(kind="discrete", dtype="int64", size=1, n=5, start=1)
MOVES = Space(kind="discrete", dtype="int64", size=1, n=4, start=2)
TORQUES = Space(kind="box", dtype="float32", size=2, low=(-1.0, 0.0), high=(1.0, 3.0))


def make_policy(observation: Space, action: Space, head: Any, **more: Any) -> MlpPolicy:
    rng = np.random.default_rng(4)
    first, last = observation.n or observation.size, action.n or action.size
    shapes = [(first, 16), (16, 16), (16, last)]
    fields: dict[str, Any] = {
        "observation_space": observation,
        "action_space": action,
        "weights": tuple(rng.normal(size=shape) / np.sqrt(shape[0]) for shape in shapes),
        "biases": tuple(rng.normal(size=shape[1]) for shape in shapes),
        "head": head,
        "activation": "tanh",
    }
    return MlpPolicy(**fields | more)


@pytest.mark.parametrize(
    "policy",
    [
        make_policy(BOX, MOVES, "logits"),
        make_policy(BOX, MOVES, "q_values", activation="relu"),
        make_policy(CELLS, MOVES, "logits"),
        make_policy(BOX, TORQUES, "tanh", shift=np.ones(3), scale=np.full(3, 2.0)),
        make_policy(BOX, TORQUES, "clip", log_std=np.zeros(2)),
    ],
    ids=["logits", "q_values", "discrete observation", "tanh", "clip"],
)
def test_the_graph_acts_as_the_policy_on_ten_thousand_observations(policy: MlpPolicy):
    content, agreement = export_onnx(policy)
    assert agreement.observations == 10_000
    assert agreement.largest_difference < 1e-5
    assert agreement.actions_equal > 0.999
    assert len(content) > 500


def test_another_runtime_call_gives_the_policys_actions_in_the_environments_numbers():
    policy = make_policy(CELLS, MOVES, "logits")
    content, _ = export_onnx(policy, probes=100)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    cells = np.arange(1, 6)[:, None]
    _, actions = session.run(None, {INPUT: cells.astype(np.float32)})
    assert actions.tolist() == policy.act(cells).actions.tolist()
    assert set(actions.tolist()) <= {2, 3, 4, 5}


def test_a_graph_that_differs_is_refused_with_the_difference():
    policy = make_policy(BOX, TORQUES, "clip")
    other = make_policy(BOX, TORQUES, "tanh")
    content, _ = export_onnx(other, probes=10)
    with pytest.raises(BadInput, match=r"differs from the policy by .*; at most 1e-05 is allowed"):
        check_graph(policy, content, draw_probes(BOX, None, 100))
