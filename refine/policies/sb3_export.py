"""Writes a refined policy's weights into a copy of the zip of Stable-Baselines3 that it began with.

Everything else in the zip is copied as bytes: what trains further finds its settings, critics and optimisers as they
were. Nothing of the file is run, and the copy is read back and compared before anyone gets it.
"""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from storage.errors import BadInput
from storage.schema import Array

from .mlp import MlpPolicy
from .onnx_export import Agreement, draw_probes
from .sb3_files import copy_members, read_model, read_tensors
from .sb3_models import Facts, Layout, Network, Tensors, find_layout, layer_names, read_network

TOLERANCE = 1e-5
"""Largest difference of a continuous action, relative to the larger of 1 and the policy's."""
LEAST_EQUAL = 0.999
"""Share of discrete actions that have to be equal; two that are worth the same to the last digit may change places."""
_TARGETS = {"q_net.": "q_net_target.", "quantile_net.": "quantile_net_target.", "actor.mu.": "actor_target.mu."}


def write_like(policy: MlpPolicy, like: Path, observations: Array | None = None) -> tuple[bytes, Agreement]:
    """A copy of a zip with the weights of a policy.

    A network of Q values stays one: logits that were refined from Q values are put back on the scale of the original.
    Quantiles keep their distances from their mean.

    Args:
        policy: with the layers of the original.
        like: the original zip.
        observations: (M, n) that the policy has seen, beside others drawn from its space.

    Returns:
        The zip, and how near what it says is to the policy.

    Raises:
        BadInput: when the policy has other layers, another head or other actions than the original, or the copy does
            not act as the policy does.
    """
    model = read_model(like)
    layout = find_layout(model.tensors, model.facts)
    original = read_network(model.tensors, model.facts, layout, policy.action_space)
    _check_fits(policy, original, like)
    probes = draw_probes(policy.observation_space, observations, 10_000)
    seen = probes.astype(np.int64) if policy.observation_space.is_discrete else probes
    layers = [(weight.T, bias) for weight, bias in zip(policy.weights, policy.biases, strict=True)]
    if original.head == "q_values" and policy.head == "logits":
        values, logits = _as_policy(policy, original).forward(seen), policy.forward(seen)
        scale, offset = _fit_values(values, logits)
        layers[-1] = (layers[-1][0] * scale, layers[-1][1] * scale + offset)
    tensors = dict(_changed(model.tensors, layout, layers, original, like))
    if policy.log_std is not None and original.log_std is not None:
        tensors["log_std"] = policy.log_std
    content = _rewrite(like, tensors)
    return content, _compare(policy, content, model.facts, layout, seen, like)


def _check_fits(policy: MlpPolicy, original: Network, like: Path) -> None:
    have = [weight.T.shape for weight in policy.weights]
    want = [weight.shape for weight, _ in original.layers]
    if have != want or (len(want) > 1 and policy.activation != original.activation.lower()):
        theirs = f"{original.activation.lower()} layers {want}"
        raise BadInput(
            f"The policy has {policy.activation} layers {have}, {like} has {theirs}.",
            "Name the zip that it was refined from with --like.",
        )
    heads = ("q_values", "logits") if original.head == "q_values" else (original.head,)
    if policy.head not in heads or policy.output_limit != original.output_limit:
        raise BadInput(f"The policy's head is {policy.head}, that of {like} is {original.head}; they have to be equal.")


def _as_policy(policy: MlpPolicy, original: Network) -> MlpPolicy:
    """The original as a policy that sees what the refined one sees."""
    weights, biases = zip(*((weight.T, bias) for weight, bias in original.layers), strict=True)
    return replace(policy, weights=weights, biases=biases, head=original.head)


def _fit_values(values: Array, logits: Array) -> tuple[np.float32, np.float32]:
    """Scale and offset that bring logits (N, k) nearest to Q values (N, k): the scale of the leads, in least squares.

    Logits that are Q values divided by a number give that number, whatever the observations.
    """
    leads, wanted = (each - each.mean(axis=1, keepdims=True) for each in (logits, values))
    scale = float((leads * wanted).sum() / max(float((leads * leads).sum()), 1e-12))
    scale = scale if scale > 0 else float(np.abs(wanted).mean() / max(float(np.abs(leads).mean()), 1e-6))
    return np.float32(scale), np.float32(values.mean() - scale * logits.mean())


def _changed(
    tensors: Tensors, layout: Layout, layers: list[tuple[Array, Array]], original: Network, like: Path
) -> Iterator[tuple[str, Array]]:
    """The tensors of the network that acts and of its target, by their names."""
    names = layer_names(tensors, layout)
    for (weight_name, bias_name), (weight, bias), old in zip(names, layers, original.layers, strict=True):
        if bias_name not in tensors and bias.any():
            raise BadInput(f"{like} has a layer without a bias, which the policy has.", "Export it as ONNX or torch.")
        for name, new, before in ((weight_name, weight, old[0]), (bias_name, bias, old[1])):
            if name not in tensors:
                continue
            shifted = _spread(tensors[name], new, before)
            yield name, shifted
            for part, target in _TARGETS.items():
                if name.startswith(part) and (other := target + name.removeprefix(part)) in tensors:
                    yield other, shifted


def _spread(stored: Array, new: Array, before: Array) -> Array:
    """The new numbers; of quantiles, whose mean is what was read, each is moved as the mean is."""
    if stored.shape == new.shape:
        return new
    return (stored.reshape(-1, *new.shape) + (new - before)).reshape(stored.shape)


def _rewrite(like: Path, changes: Tensors) -> bytes:
    """The zip with other numbers in its `policy.pth`, whose names, order and types stay."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in copy_members(like):
            target.writestr(name, _with_changes(content, changes) if name == "policy.pth" else content)
    return buffer.getvalue()


def _with_changes(content: bytes, changes: Tensors) -> bytes:
    tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    for name, array in changes.items():
        tensors[name] = torch.from_numpy(np.array(array)).to(tensors[name].dtype)
    buffer = io.BytesIO()
    torch.save(OrderedDict(tensors), buffer)
    return buffer.getvalue()


def _compare(policy: MlpPolicy, content: bytes, facts: Facts, layout: Layout, seen: Array, like: Path) -> Agreement:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        written = read_tensors(archive.read("policy.pth"), like)
    network = read_network(written, facts, layout, policy.action_space)
    again = _as_policy(policy, network)
    ours, theirs = policy.act(seen).actions, again.act(seen).actions
    if policy.action_space.is_discrete:
        found = Agreement(len(seen), 0.0, float(np.mean(ours == theirs)))
    else:
        difference = np.abs(ours - theirs) / np.maximum(1.0, np.abs(ours))
        found = Agreement(len(seen), float(difference.max(initial=0.0)), 1.0)
    if found.largest_difference > TOLERANCE or found.actions_equal < LEAST_EQUAL:
        raise BadInput(
            f"The copy of {like} does not act like the policy: {found.actions_equal:.2%} of the actions are equal, "
            f"they differ by {found.largest_difference:.2g} at most."
        )
    return found


def write_torch(policy: MlpPolicy) -> tuple[bytes, bytes]:
    """A policy as a state_dict of `torch.nn.Sequential`, and as JSON what else decides its actions.

    Layers have the places 0, 2, 4, ... since an activation follows each but the last.

    Returns:
        What `torch.load(weights_only=True)` reads, and the JSON.
    """
    tensors: OrderedDict[str, torch.Tensor] = OrderedDict()
    for place, (weight, bias) in enumerate(zip(policy.weights, policy.biases, strict=True)):
        tensors[f"{2 * place}.weight"] = torch.from_numpy(weight.T.copy())
        tensors[f"{2 * place}.bias"] = torch.from_numpy(bias.copy())
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue(), policy.to_json()
