"""Policies of Stable-Baselines3 as portable networks, from their weights and what is said of them.

Also the layers of any torch network that is a plain perceptron. No file is opened, see `sb3_files.py`; d3rlpy is read
in `d3rlpy_models.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import gym_notices.notices as gym_notices
import numpy as np
import torch
from torch import nn

from storage.disk import shorten
from storage.errors import BadInput
from storage.schema import Array, Space

from .mlp import Head, MlpPolicy

# Stable-Baselines3 and d3rlpy both try to import the old gym, which would print a page about its end
gym_notices.notices.clear()

_INERT = (nn.Flatten, nn.Identity, nn.Dropout)  # they change nothing when a policy acts
_LIBRARIES = ("stable_baselines3.", "sb3_contrib.")
_EXTRACTORS = ("FlattenExtractor", "CombinedExtractor")  # what they compute of flat observations is to join them
_OTHER_ACTIVATIONS = (  # of torch, as it makes them without arguments
    *("CELU", "ELU", "GELU", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish", "ReLU6", "SELU", "SiLU"),
    *("Sigmoid", "Softplus", "Softsign"),
)
_LAYER = re.compile(r"(?:(\d{1,4})\.)?(weight|bias)")


class NotAnMlpError(BadInput):
    """A policy that acts, but is no perceptron of the portable kind."""


Tensors = Mapping[str, Array]
"""The weights of a policy by the names of a state_dict, (out, in) and (out,) each."""


@dataclass(frozen=True)
class Facts:
    """What is said of a policy beside its weights."""

    policy_class: str  # module and name
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)  # classes by their names
    use_sde: bool = False


class Layout(NamedTuple):
    """Where the network that acts is among the tensors."""

    name: str
    marker: str  # every tensor set of the layout has a name that begins so
    parts: tuple[str, ...]  # prefixes of its layers, first to last
    activation: str  # where nothing is said


_ACTOR_CRITIC = Layout(
    "an actor-critic", "value_net.", ("mlp_extractor.shared_net", "mlp_extractor.policy_net", "action_net"), "Tanh"
)
_SQUASHED = Layout("a squashed Gaussian", "actor.log_std", ("actor.latent_pi", "actor.mu"), "ReLU")
_DETERMINISTIC = Layout("a deterministic actor", "actor.mu.", ("actor.mu",), "ReLU")
_Q_NETWORK = Layout("a Q network", "q_net.q_net.", ("q_net.q_net",), "ReLU")
_QUANTILES = Layout("a network of quantiles", "quantile_net.quantile_net.", ("quantile_net.quantile_net",), "ReLU")
_SEARCHED = Layout("a network of random search", "action_net.", ("action_net",), "ReLU")
_BY_MARKER = (_ACTOR_CRITIC, _SQUASHED, _DETERMINISTIC, _Q_NETWORK, _QUANTILES, _SEARCHED)  # the first that fits
LAYOUTS: Mapping[str, Layout] = {
    "PPO": _ACTOR_CRITIC,
    "A2C": _ACTOR_CRITIC,
    "TRPO": _ACTOR_CRITIC,
    "DQN": _Q_NETWORK,
    "QRDQN": _QUANTILES,
    "SAC": _SQUASHED,
    "TQC": _SQUASHED,
    "TD3": _DETERMINISTIC,
    "DDPG": _DETERMINISTIC,
    "ARS": _SEARCHED,
}


def use_one_thread() -> None:
    """Let torch compute in one thread; on nets this small two threads are several times slower."""
    torch.set_num_threads(1)


def from_sb3(model: Any, observation_space: Space, action_space: Space) -> MlpPolicy:
    """Convert a loaded model exactly; see `from_tensors`."""
    policy = model.policy
    kwargs = {name: str(value) if isinstance(value, type) else value for name, value in model.policy_kwargs.items()}
    facts = Facts(f"{type(policy).__module__}.{type(policy).__qualname__}", kwargs, getattr(model, "use_sde", False))
    tensors = {name: to_array(tensor) for name, tensor in policy.state_dict().items()}
    return from_tensors(tensors, facts, type(model).__name__, observation_space, action_space)


def from_tensors(
    tensors: Tensors, facts: Facts, algorithm: str, observation_space: Space, action_space: Space
) -> MlpPolicy:
    """Convert the weights of a policy exactly.

    A continuous actor-critic clips its mean to the bounds and keeps its standard deviation. Where that depends on the
    state (SAC, TQC, gSDE) it is left out, so that the portable policy acts greedily. Quantiles are averaged. What
    random search has found for discrete actions has no distribution, so it is taken as Q values.

    Args:
        tensors: its state_dict.
        facts: what is said of it.
        algorithm: one of `LAYOUTS`.
        observation_space: of the environment.
        action_space: of the environment.

    Raises:
        NotAnMlpError: for activations other than tanh and ReLU, and as `read_network`.
        BadInput: when it is not of this algorithm, or was made for other spaces.
    """
    network = read_network(tensors, facts, find_layout(tensors, facts, algorithm), action_space)
    return network.to_policy(observation_space, action_space)


class Network(NamedTuple):
    """The network of a policy that acts."""

    layers: Sequence[tuple[Array, Array]]  # weights (out, in) and biases (out,), first to last
    activation: str  # of the hidden layers, by its class in torch
    head: Head
    log_std: Array | None  # (m,)
    output_limit: float | None

    def to_policy(self, observation_space: Space, action_space: Space) -> MlpPolicy:
        """The same as a portable policy.

        Raises:
            NotAnMlpError: for activations other than tanh and ReLU.
            BadInput: when it does not fit the spaces.
        """
        activation = self.activation.lower()
        if activation not in ("tanh", "relu"):
            raise NotAnMlpError(f"Its activation is {self.activation}; tanh and ReLU are portable.")
        weights, biases = zip(*((weight.T, bias) for weight, bias in self.layers), strict=True)
        found = MlpPolicy(observation_space, action_space, weights, biases, activation, self.head)
        return replace(found, log_std=self.log_std, output_limit=self.output_limit)

    def outputs(self, inputs: Array) -> Array:
        """The last layer at inputs (N, n), by torch, (N, k) float32."""
        rows, last = torch.from_numpy(inputs), len(self.layers) - 1
        activate = getattr(nn, self.activation)()
        for place, (weight, bias) in enumerate(self.layers):
            rows = nn.functional.linear(rows, torch.from_numpy(weight), torch.from_numpy(bias))
            rows = rows if place == last else activate(rows)
        return rows.numpy()


def read_network(tensors: Tensors, facts: Facts, layout: Layout, action_space: Space) -> Network:
    """Find the network that acts among the weights of a policy; arguments as in `from_tensors`.

    Raises:
        NotAnMlpError: when something else than linear layers with one activation after each has weights.
        BadInput: when it is not for these actions.
    """
    layers = list(_read_layers(tensors, layout))
    if layout is _QUANTILES:
        layers[-1] = _mean_of_quantiles(*layers[-1], action_space)
    head = _head(facts, layout, action_space)
    log_std = tensors.get("log_std") if head == "clip" and not facts.use_sde else None
    return Network(layers, _activation(facts, layout), head, log_std, _output_limit(tensors, facts, layout))


def find_layout(tensors: Tensors, facts: Facts, algorithm: str | None = None) -> Layout:
    """How weights are laid out, after what no perceptron is was refused.

    Args:
        tensors: a policy's state_dict.
        facts: what is said of it.
        algorithm: whose it has to be, one of `LAYOUTS`; None: any.

    Raises:
        NotAnMlpError: for recurrence, extractors with weights, and classes of other packages.
        BadInput: when they are another algorithm's.
    """
    if any("lstm" in name for name in tensors):
        raise NotAnMlpError("The model is recurrent.")
    if any("features_extractor." in name for name in tensors):
        raise NotAnMlpError("The model sees through an extractor with weights of its own, as images need.")
    extractor = _class_name(facts.policy_kwargs.get("features_extractor_class")) or "FlattenExtractor"
    if extractor.rpartition(".")[2] not in _EXTRACTORS or ("." in extractor and not extractor.startswith(_LIBRARIES)):
        raise NotAnMlpError(f"The model sees through a {extractor}; only flat observations are portable.")
    if not facts.policy_class.startswith(_LIBRARIES):
        named = facts.policy_class or "not named"
        raise NotAnMlpError(f"The policy's class is {named}; those of Stable-Baselines3 are portable.")
    found = next((layout for layout in _BY_MARKER if any(name.startswith(layout.marker) for name in tensors)), None)
    wanted = LAYOUTS[algorithm] if algorithm else found
    if found is not wanted or wanted is None:
        theirs = f"those of {found.name}" if found else f"named {shorten(', '.join(sorted(tensors)[:3])) or 'nothing'}"
        mine = f"a {algorithm} model, which is {wanted.name}" if wanted else "a known model"
        raise BadInput(f"It is not {mine}; its weights are {theirs}.")
    return wanted


def layer_names(tensors: Tensors, layout: Layout) -> Iterator[tuple[str, str]]:
    """Names of the weight and of the bias of each layer of the network that acts, first to last.

    The layers of `torch.nn.Sequential` have the even places; a part may be one layer without a place.

    Raises:
        NotAnMlpError: when something else than linear layers with one activation after each has weights.
    """
    for part in layout.parts:
        matches = [_LAYER.fullmatch(name.removeprefix(f"{part}.")) for name in tensors if name.startswith(f"{part}.")]
        if None in matches:
            raise NotAnMlpError(f"{part} has tensors that are not of a linear layer.")
        places = sorted({match[1] or "" for match in matches if match}, key=lambda place: int(place or 0))
        if [int(place or 0) for place in places] != list(range(0, 2 * len(places), 2)):
            raise NotAnMlpError(f"The layers of {part} have the places {', '.join(places)}; 0, 2, 4 are expected.")
        for place in places:
            layer = f"{part}.{place}" if place else part
            yield f"{layer}.weight", f"{layer}.bias"


def _read_layers(tensors: Tensors, layout: Layout) -> Iterator[tuple[Array, Array]]:
    for weight_name, bias_name in layer_names(tensors, layout):
        weight = tensors.get(weight_name)
        if weight is None or weight.ndim != 2:
            raise NotAnMlpError(f"{weight_name} is not of a linear layer.")
        yield weight, tensors.get(bias_name, np.zeros(len(weight), np.float32))


def _activation(facts: Facts, layout: Layout) -> str:
    named = _class_name(facts.policy_kwargs.get("activation_fn")) or f"torch.nn.{layout.activation}"
    name = named.rpartition(".")[2]
    if not named.startswith("torch.nn.") or name not in ("Tanh", "ReLU", *_OTHER_ACTIVATIONS):
        raise NotAnMlpError(f"Its activation is {shorten(named)}; known: Tanh, ReLU, {', '.join(_OTHER_ACTIVATIONS)}.")
    return name


def _class_name(described: object) -> str:
    """`a.b.C` of `<class 'a.b.C'>`; empty if nothing is said."""
    return "" if described is None else re.sub(r"^<class '(.*)'>$", r"\1", str(described))


def _head(facts: Facts, layout: Layout, action_space: Space) -> Head:
    if layout in ((_SQUASHED, _DETERMINISTIC) if action_space.is_discrete else (_Q_NETWORK, _QUANTILES)):
        raise BadInput(f"It is {layout.name}, which is not for {action_space.kind} actions.")
    if action_space.is_discrete:
        return "logits" if layout is _ACTOR_CRITIC else "q_values"
    if layout in (_SQUASHED, _DETERMINISTIC):
        return "tanh"
    is_linear = facts.policy_class.endswith("LinearPolicy")
    squashed = facts.policy_kwargs.get("squash_output", layout is _SEARCHED and not is_linear)
    return "tanh" if squashed else "clip"


def _output_limit(tensors: Tensors, facts: Facts, layout: Layout) -> float | None:
    """Under gSDE the mean of a squashed Gaussian is cut before it is squashed."""
    if layout is not _SQUASHED or "actor.mu.0.weight" not in tensors:
        return None
    limit = facts.policy_kwargs.get("clip_mean", 2.0)
    if not isinstance(limit, int | float):
        raise BadInput(f"Its clip_mean is {shorten(repr(limit))}; a number is expected.")
    return float(limit)


def _mean_of_quantiles(weight: Array, bias: Array, action_space: Space) -> tuple[Array, Array]:
    """One layer whose outputs are the means over the quantiles, (actions, in) and (actions,)."""
    actions = int(action_space.n or 1)
    if len(weight) % actions:
        raise BadInput(f"It has {len(weight)} outputs, which cannot be quantiles of {actions} actions.")
    shape = (-1, actions)
    return (
        weight.astype(np.float64).reshape(*shape, weight.shape[1]).mean(axis=0).astype(np.float32),
        bias.astype(np.float64).reshape(shape).mean(axis=0).astype(np.float32),
    )


def read_modules(*modules: nn.Module, head: Head) -> Network:
    """Read linear layers with one activation between each two.

    Raises:
        NotAnMlpError: for any other layer or order.
    """
    leaves = list(_leaves(modules))
    linears = [leaf for leaf in leaves if isinstance(leaf, nn.Linear)]
    others = [type(leaf) for leaf in leaves if not isinstance(leaf, nn.Linear)]
    kinds = set(others) or {nn.Tanh}
    alternates = all(isinstance(leaf, nn.Linear) == (place % 2 == 0) for place, leaf in enumerate(leaves))
    if len(kinds) != 1 or not kinds <= {nn.Tanh, nn.ReLU} or not alternates or len(linears) != len(others) + 1:
        layers = ", ".join(type(leaf).__name__ for leaf in leaves)
        raise NotAnMlpError(f"Its layers are {layers}; linear ones with tanh or ReLU between them are portable.")
    layers = [(to_array(linear.weight), _bias(linear)) for linear in linears]
    return Network(layers, kinds.pop().__name__, head, None, None)


def to_array(tensor: torch.Tensor) -> Array:
    """A tensor's numbers in NumPy, as a copy."""
    return tensor.detach().cpu().numpy().copy()


def _leaves(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential | nn.ModuleList):
            yield from _leaves(module)
        elif not isinstance(module, _INERT):
            yield module


def _bias(linear: nn.Linear) -> Array:
    bias: torch.Tensor | None = getattr(linear, "bias", None)
    return np.zeros(linear.out_features, np.float32) if bias is None else to_array(bias)
