"""A portable policy as an ONNX graph, checked against the original before anyone gets it.

The graph acts greedily: the noise of a sampled policy is the caller's affair. Reading ONNX policies is in flows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.errors import BadInput, Prerequisite
from storage.schema import Array, Space

from .mlp import MlpPolicy, action_bounds, input_size

INPUT = "observation"
TOLERANCE = 1e-5
"""Largest difference of an output, relative to the larger of 1 and the original's."""
_OPSET = 17
_IR_VERSION = 9  # what runtimes of the last years read
_WIDEST = 10.0  # an unbounded component is probed from -10 to 10


@dataclass(frozen=True)
class Agreement:
    """How near an exported graph is to its policy."""

    observations: int
    largest_difference: float  # of an output, relative to the larger of 1 and the original's
    actions_equal: float  # share of observations with the same greedy action, discrete only; else 1


def export_onnx(
    policy: MlpPolicy, observations: Array | None = None, *, probes: int = 10_000
) -> tuple[bytes, Agreement]:
    """Write a policy as ONNX and compare the graph with it.

    The input `observation` is (N, n) float32, n = 1 for a discrete one. The first output is `logits`, `q_values`, or
    `action`, the continuous one inside its bounds; discrete policies have the greedy `action`, (N,) int64, beside it.

    Args:
        policy: the policy.
        observations: (M, n) to compare on, beside others drawn from the observation space.
        probes: observations in all.

    Returns:
        The file's bytes, and how near it is.

    Raises:
        Prerequisite: without onnx and onnxruntime.
        BadInput: when the graph's outputs differ from the policy's by more than `TOLERANCE`.
    """
    content = _encode(policy)
    return content, check_graph(policy, content, draw_probes(policy.observation_space, observations, probes))


def check_graph(policy: MlpPolicy, content: bytes, observations: Array) -> Agreement:
    """How near an exported graph is to its policy.

    Raises:
        BadInput: if the outputs differ by more than `TOLERANCE`.
    """
    agreement = _compare(policy, content, observations)
    if agreement.largest_difference > TOLERANCE:
        raise BadInput(
            f"The exported graph differs from the policy by {agreement.largest_difference:.2g};"
            f" at most {TOLERANCE:g} is allowed.",
            "Its weights may be too large for float32.",
        )
    return agreement


def _encode(policy: MlpPolicy) -> bytes:
    helper, numpy_helper, proto = _onnx()
    graph = _Graph(helper, numpy_helper)
    last = _layers(graph, policy, _inputs(graph, policy))
    outputs = _head(graph, policy, last)
    names = {"observation_size": str(policy.observation_space.size)}
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "policy",
            [helper.make_tensor_value_info(INPUT, proto.FLOAT, ["N", policy.observation_space.size])],
            [helper.make_tensor_value_info(name, getattr(proto, kind), shape) for name, kind, shape in outputs],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="trajnote",
    )
    helper.set_model_props(model, names | {"policy_sha256": policy.sha256, "head": policy.head})
    return bytes(model.SerializeToString())


class _Graph:
    """Nodes and constants, each node named by its output."""

    def __init__(self, helper: Any, numpy_helper: Any) -> None:
        self._helper, self._numpy = helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        """Add a constant; returns its name."""
        self.constants.append(self._numpy.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        self.nodes.append(self._helper.make_node(kind, inputs, [output], **attributes))
        return output


def _inputs(graph: _Graph, policy: MlpPolicy) -> str:
    """The rows that enter the first layer: one-hot when discrete, shifted and scaled where the policy says so."""
    rows, space = INPUT, policy.observation_space
    if space.is_discrete:
        flat = graph.node("Reshape", [rows, graph.constant("flat", np.array([-1], np.int64))], "flat_observation")
        whole = graph.node("Cast", [flat], "whole", to=7)  # int64
        index = graph.node("Sub", [whole, graph.constant("start", np.int64(space.start))], "index")
        depth = graph.constant("depth", np.int64(input_size(space)))
        rows = graph.node("OneHot", [index, depth, graph.constant("hot", np.array([0, 1], np.float32))], "one_hot")
    if policy.shift is not None:
        rows = graph.node("Sub", [rows, graph.constant("shift", policy.shift)], "shifted")
    if policy.scale is not None:
        rows = graph.node("Div", [rows, graph.constant("scale", policy.scale)], "scaled")
    return _limited(graph, rows, policy.input_limit, "input")


def _layers(graph: _Graph, policy: MlpPolicy, rows: str) -> str:
    count = len(policy.weights)
    for number, (weight, bias) in enumerate(zip(policy.weights, policy.biases, strict=True)):
        names = [graph.constant(f"weight_{number}", weight), graph.constant(f"bias_{number}", bias)]
        rows = graph.node("Gemm", [rows, *names], f"layer_{number}" if number < count - 1 else "last")
        if number < count - 1:
            rows = graph.node("Tanh" if policy.activation == "tanh" else "Relu", [rows], f"active_{number}")
    return _limited(graph, rows, policy.output_limit, "output")


def _limited(graph: _Graph, rows: str, limit: float | None, name: str) -> str:
    """Rows cut to plus and minus a limit."""
    if limit is None:
        return rows
    bounds = [graph.constant(f"{name}_{sign}", np.float32(sign * limit)) for sign in (-1, 1)]
    return graph.node("Clip", [rows, *bounds], f"{name}_cut")


def _head(graph: _Graph, policy: MlpPolicy, last: str) -> list[tuple[str, str, list[Any]]]:
    """The outputs: name, type and shape of each."""
    space = policy.action_space
    if space.is_discrete:
        named = graph.node("Identity", [last], policy.head)
        best = graph.node("ArgMax", [named], "best", axis=1, keepdims=0)
        graph.node("Add", [best, graph.constant("first_action", np.int64(space.start))], "action")
        return [(named, "FLOAT", ["N", space.n]), ("action", "INT64", ["N"])]
    low, high = action_bounds(space)
    if policy.head == "tanh":
        squashed = graph.node("Tanh", [last], "squashed")
        wide = graph.node("Mul", [squashed, graph.constant("half", (high - low) / 2)], "wide")
        last = graph.node("Add", [wide, graph.constant("middle", (low + high) / 2)], "mean")
    above = graph.node("Max", [last, graph.constant("low", low)], "above_low")
    graph.node("Min", [above, graph.constant("high", high)], "action")
    return [("action", "FLOAT", ["N", space.size])]


def draw_probes(space: Space, observations: Array | None, count: int) -> Array:
    """Observations to compare on: the given ones first, the rest drawn from the space."""
    rng = np.random.default_rng(0)
    given = (
        np.empty((0, space.size)) if observations is None else np.asarray(observations)[:count].reshape(-1, space.size)
    )
    missing = count - len(given)
    if space.is_discrete:
        drawn = rng.integers(space.start, space.start + (space.n or 1), (missing, 1))
    else:
        low, high = (np.clip(np.asarray(bound), -_WIDEST, _WIDEST) for bound in (space.low, space.high))
        drawn = rng.uniform(low, high, (missing, space.size))
    return np.concatenate([given, drawn]).astype(np.float32)


def _compare(policy: MlpPolicy, content: bytes, observations: Array) -> Agreement:
    session = _session(content)
    found: list[Array] = session.run(None, {INPUT: observations})
    acts = policy.act(observations.astype(np.int64) if policy.observation_space.is_discrete else observations)
    wanted = acts.outputs if policy.action_space.is_discrete else acts.actions
    difference = np.abs(found[0] - wanted) / np.maximum(1.0, np.abs(wanted))
    equal = float(np.mean(found[1] == acts.actions)) if policy.action_space.is_discrete else 1.0
    return Agreement(len(observations), float(difference.max(initial=0.0)), equal)


def _onnx() -> tuple[Any, Any, Any]:
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise Prerequisite("Writing ONNX needs the package onnx.", "pip install 'trajnote[onnx]'") from error
    return helper, numpy_helper, TensorProto


def _session(content: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise Prerequisite("Checking ONNX needs onnxruntime.", "pip install 'trajnote[onnx]'") from error
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
