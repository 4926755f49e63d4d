"""Reads plain networks: a state_dict of torch, weights only, or a file of safetensors. Nothing of a file is run.

Layers come from the shapes. What tensors cannot say, the activation and what the last layer means, is named by the
user, unless the names are those of CleanRL's agents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from storage.disk import MAX_ARRAY_BYTES, MAX_BYTES, UnreadableError, decode_json, read_file, shorten
from storage.errors import BadInput
from storage.schema import Array, Space

from .mlp import Head, action_units, input_size, output_size
from .sb3_files import read_tensors
from .sb3_models import Network, NotAnMlpError, Tensors

_SAFE_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
_WEIGHT = ".weight"


class Known(NamedTuple):
    """How a known program names its tensors."""

    program: str
    marks: frozenset[str]  # tensors by which it is recognised
    layers: str  # a pattern of the layers that act
    activation: str
    head: Head
    normalises: bool = False  # by statistics that it does not save


_KNOWN = (
    Known(
        "CleanRL's PPO of continuous actions",
        frozenset({"actor_mean.0.weight", "actor_logstd"}),
        r"actor_mean\.\d+",
        "Tanh",
        "clip",
        normalises=True,
    ),
    Known("CleanRL's PPO", frozenset({"actor.0.weight", "critic.0.weight"}), r"actor\.\d+", "Tanh", "logits"),
    Known("CleanRL's DQN", frozenset({"network.0.weight"}), r"network\.\d+", "ReLU", "q_values"),
    Known("CleanRL's SAC", frozenset({"fc1.weight", "fc_mean.weight"}), r"fc\d+|fc_mean", "ReLU", "tanh"),
    Known("CleanRL's TD3 and DDPG", frozenset({"fc1.weight", "fc_mu.weight"}), r"fc\d+|fc_mu", "ReLU", "tanh"),
)
_TORCH = {"tanh": "Tanh", "relu": "ReLU", "elu": "ELU", "silu": "SiLU", "gelu": "GELU", "leaky_relu": "LeakyReLU"}
ACTIVATIONS = tuple(_TORCH)
HEADS: Mapping[str, Head] = {"logits": "logits", "q_values": "q_values", "squashed": "tanh", "clipped": "clip"}


def read_state(path: Path) -> Tensors:
    """The tensors of a file, by their names in its order.

    Raises:
        BadInput: in one line, when it is damaged, too large, or holds anything but tensors of numbers.
    """
    content = read_file(path, limit=MAX_ARRAY_BYTES)
    return (
        _read_safetensors(content, path) if path.suffix == ".safetensors" else read_tensors(content, path, nested=True)
    )


def _read_safetensors(content: bytes, path: Path) -> Tensors:
    """Eight bytes say how long the JSON is that says where each tensor is."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 0 < length <= min(MAX_BYTES, len(content) - 8):
        raise BadInput(f"{path} is not a safetensors file: its header has {length:,} bytes.")
    try:
        header = decode_json(content[8 : 8 + length])
        tensors = {name: _tensor(content[8 + length :], entry) for name, entry in header.items() if name[:2] != "__"}
    except (UnreadableError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = shorten(" ".join(str(error).split()))
        raise BadInput(f"{path} is not a safetensors file: {reason or type(error).__name__}.") from error
    return tensors


def _tensor(numbers: bytes, entry: Mapping[str, object]) -> Array:
    kind, shape, (start, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]  # pyright: ignore
    if kind not in _SAFE_TYPES:
        raise ValueError(f"a tensor has type {shorten(kind)}; {', '.join(_SAFE_TYPES)} are read")
    dtype = np.dtype(_SAFE_TYPES[kind])
    count = int(np.prod([int(size) for size in shape], dtype=object)) if shape else 1
    if not 0 <= start <= end <= len(numbers) or end - start != count * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} has the wrong number of bytes")
    found = np.frombuffer(numbers, dtype, count, start).reshape(shape)
    return found.astype(np.float32) if dtype.kind == "f" else found.copy()


def read_plain_network(
    tensors: Tensors,
    observation_space: Space,
    action_space: Space,
    *,
    activation: str | None = None,
    head: str | None = None,
    net: str | None = None,
    raw: bool = False,
) -> Network:
    """Find the network that acts.

    Args:
        tensors: of a file.
        observation_space: of the environment.
        action_space: of the environment.
        activation: one of `ACTIVATIONS`, or None where the names say it.
        head: one of `HEADS`, or None where the names say it.
        net: what the names of its layers begin with; None: the only ones that fit the spaces.
        raw: whether it may act without the statistics that its program normalised by.

    Raises:
        NotAnMlpError: when it has layers that are not linear.
        BadInput: when something has to be named, or it does not fit the spaces.
    """
    known = None if net else next((each for each in _KNOWN if each.marks <= tensors.keys()), None)
    if known and known.normalises and not raw:
        raise BadInput(
            f"{known.program} normalises observations by statistics that this file does not have; without them the "
            "policy acts on other numbers than it learnt from.",
            "If yours did not, add +no-normalisation.",
        )
    names = _names_of(tensors, known, net, (input_size(observation_space), output_size(action_space)))
    layers = [(tensors[f"{name}.weight"], _bias(tensors, name)) for name in names]
    if "action_scale" in tensors:
        _check_units(tensors, action_space)
    missing = [name for name, value in (("activation", activation), ("head", head)) if value is None]
    if missing and not known and (len(layers) > 1 or head is None):
        raise BadInput(
            f"The file does not say its {' and '.join(missing)}.",
            f"Name them: torch+activation=A+head=H:FILE, A one of {', '.join(ACTIVATIONS)}, H of {', '.join(HEADS)}.",
        )
    log_std = tensors["actor_logstd"].reshape(-1) if known and known.normalises else None
    acts = HEADS[head] if head else known.head if known else "logits"
    between = _TORCH[activation] if activation else known.activation if known else "Tanh"
    return Network(layers, between, acts, log_std, None)


def _bias(tensors: Tensors, name: str) -> Array:
    return tensors.get(f"{name}.bias", np.zeros(len(tensors[f"{name}.weight"]), np.float32))


def _names_of(tensors: Tensors, known: Known | None, net: str | None, sizes: tuple[int, int]) -> Sequence[str]:
    """The layers that act, first to last."""
    layers = [name.removesuffix(_WEIGHT) for name in tensors if name.endswith(_WEIGHT)]
    if known:
        return _checked(tensors, [name for name in layers if re.fullmatch(known.layers, name)], sizes)
    if net:
        return _checked(tensors, [name for name in layers if name.startswith(net)], sizes, net)
    groups: dict[str, list[str]] = {}
    for name in layers:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    fitting = [names for names in [*groups.values(), layers] if _chain(tensors, names) == sizes]
    if not fitting or any(names != fitting[0] for names in fitting):
        found = "; ".join(f"{prefix or 'no prefix'}: {_widths(tensors, names)}" for prefix, names in groups.items())
        raise BadInput(
            f"{len(fitting)} networks in it take {sizes[0]} numbers and give {sizes[1]}; it has {shorten(found)}.",
            "Name the prefix of the layers that act: torch+net=actor:FILE.",
        )
    return _checked(tensors, fitting[0], sizes)


def _checked(tensors: Tensors, names: Sequence[str], sizes: tuple[int, int], net: str = "") -> Sequence[str]:
    strange = [name for name in tensors if net and name.startswith(net) and not name.endswith((_WEIGHT, ".bias"))]
    if strange or any(tensors[f"{name}.weight"].ndim != 2 for name in names):
        raise NotAnMlpError(f"It has layers that are not linear ({shorten(', '.join([*strange, *names]))}).")
    if _chain(tensors, names) != sizes:
        raise BadInput(f"Its layers have the widths {_widths(tensors, names)}; {sizes[0]} to {sizes[1]} are needed.")
    return names


def _chain(tensors: Tensors, names: Sequence[str]) -> tuple[int, int] | None:
    """Inputs of the first layer and outputs of the last; None if one does not take what the one before gives."""
    shapes = [tensors[f"{name}.weight"].shape for name in names]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        return None
    fits = all(after[1] == before[0] for before, after in pairwise(shapes))
    return (shapes[0][1], shapes[-1][0]) if fits else None


def _widths(tensors: Tensors, names: Sequence[str]) -> str:
    return ", ".join("x".join(map(str, tensors[f"{name}.weight"].shape[::-1])) for name in names)


def _check_units(tensors: Tensors, space: Space) -> None:
    """An actor that scales its own actions reaches from bound to bound of the environment that it was made for."""
    middle, half = action_units(space)
    theirs = [np.broadcast_to(tensors[name].reshape(-1), half.shape) for name in ("action_bias", "action_scale")]
    if not np.allclose(theirs, [middle, half], rtol=1e-4, atol=1e-6):
        raise BadInput(f"Its actions are {theirs[0]} plus and minus {theirs[1]}; the environment's {middle}, {half}.")
