"""A portable multilayer perceptron: what a baseline or a refined policy is on disk, and what acts in rollouts.

What networks take and give is here, too: a space as inputs, sizes, bounds and units.

NumPy only, so that acting never loads a learner. Training is in `training/train.py`; conversion from torch in
`training/reference/networks.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast, overload

import numpy as np
from numpy.typing import NDArray

from storage.disk import UnreadableError, decode_json, read_arrays
from storage.errors import BadInput, DamagedStore
from storage.schema import Array, Space

Activation = Literal["tanh", "relu"]
Head = Literal["logits", "q_values", "tanh", "clip"]
Mode = Literal["greedy", "sampled"]
OutputKind = Literal["logits", "q_values", "mean"]

_DISCRETE_HEADS = ("logits", "q_values")
_CONTINUOUS_HEADS = ("tanh", "clip")
_LIMITS = ("input_limit", "output_limit")
_BESIDE = ("shift", "scale", "log_std")


def input_size(space: Space) -> int:
    """Numbers that one observation becomes: the box's components, or one per value when discrete."""
    return int(space.n or 1) if space.is_discrete else space.size


def output_size(space: Space) -> int:
    """Numbers that decide one action: the box's components, or one per value when discrete."""
    return int(space.n or 1) if space.is_discrete else space.size


def network_inputs(observations: Array, space: Space) -> Array:
    """Turn observations into float32 rows that a network takes: as they are, or one-hot when discrete.

    Args:
        observations: (N, n), or (N,) or (N, 1) when discrete.
        space: the observation space.

    Returns:
        (N, n) or (N, number of values) float32.

    Raises:
        BadInput: for a wrong shape or a value out of range.
    """
    observations = np.asarray(observations)
    if not space.is_discrete:
        if observations.ndim != 2 or observations.shape[1] != space.size:
            raise BadInput(f"Observations have shape {observations.shape}; (N, {space.size}) is expected.")
        return np.ascontiguousarray(observations, dtype=np.float32)
    if observations.ndim > 2 or (observations.ndim == 2 and observations.shape[1] != 1):
        raise BadInput(f"Discrete observations have shape {observations.shape}; (N,) or (N, 1) is expected.")
    index = observations.reshape(-1).astype(np.int64) - space.start
    count = input_size(space)
    if index.size and (index.min() < 0 or index.max() >= count):
        raise BadInput(f"A discrete observation is outside {space.start} .. {space.start + count - 1}.")
    return np.eye(count, dtype=np.float32)[index]


def action_bounds(space: Space) -> tuple[Array, Array]:
    """Lower and upper bounds of a continuous action space, (m,) float32 each; infinite where it has none."""
    low = np.full(space.size, -np.inf) if space.low is None else np.asarray(space.low)
    high = np.full(space.size, np.inf) if space.high is None else np.asarray(space.high)
    return low.astype(np.float32), high.astype(np.float32)


def action_units(space: Space) -> tuple[Array, Array]:
    """Middle and half width of a continuous action space, (m,) float32 each.

    A network's own unit is `(action - middle) / half`, so that the bounds are -1 and 1. A dimension without finite
    bounds keeps the environment's unit: middle 0, half width 1.
    """
    low, high = action_bounds(space)
    bounded = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(bounded, low, np.float32(-1)), np.where(bounded, high, np.float32(1))
    return (low + high) / 2, (high - low) / 2


class Acts(NamedTuple):
    """What a policy did at N observations, and what it computed to decide."""

    actions: Array  # (N,) int64 when discrete, else (N, m) in the action space's dtype, inside its bounds
    outputs: Array  # (N, k) float32: logits, Q values, or the mean of the action


class Past(NamedTuple):
    """What came before N observations in their episodes."""

    previous: Array  # the observations one step before, of the same shape; anything in step 0
    steps: NDArray[np.integer[Any]]  # (N,) number of the step


@dataclass(frozen=True)
class MlpPolicy:
    """A policy of dense layers, exactly reproducible row by row.

    The network computes `W_L a(... a(W_1 x + b_1) ...) + b_L` with `x = (observation - shift) / scale`, in float32.
    A discrete observation is one-hot encoded first. The head says what the last layer means:

    - `logits`: unnormalised log-probabilities of a discrete action;
    - `q_values`: expected returns of a discrete action;
    - `tanh`: a continuous action squashed to the bounds, `mid + half * tanh(z)`, Gaussian noise before the squashing;
    - `clip`: a continuous action cut to the bounds after Gaussian noise was added.

    `input_limit` cuts `x` to plus and minus itself, as `VecNormalize` does; `output_limit` cuts the last layer before
    the head, as actors with state-dependent exploration do.

    Arrays are copied to contiguous float32 and made read-only.

    Raises:
        BadInput: when shapes, head and spaces do not fit each other, or a number is not finite.
    """

    observation_space: Space
    action_space: Space
    weights: tuple[Array, ...]  # (in, out) each
    biases: tuple[Array, ...]  # (out,) each
    activation: Activation
    head: Head
    shift: Array | None = None  # (n,)
    scale: Array | None = None  # (n,)
    log_std: Array | None = None  # (m,)
    input_limit: float | None = None
    output_limit: float | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "biases"):
            object.__setattr__(self, name, tuple(_frozen(array) for array in getattr(self, name)))
        for name in _BESIDE:
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _frozen(value))
        problem = next(_problems(self), None)
        if problem is not None:
            raise BadInput(f"The policy is not consistent: {problem}.")

    @property
    def output_kind(self) -> OutputKind:
        """What `forward` returns: logits, Q values, or the mean of a continuous action."""
        return "mean" if self.head in _CONTINUOUS_HEADS else cast("OutputKind", self.head)

    @property
    def is_stochastic(self) -> bool:
        """Whether `sampled` differs from `greedy`; Q values and a mean without `log_std` have no distribution."""
        return self.head == "logits" or self.log_std is not None

    @property
    def input_size(self) -> int:
        """Numbers that enter the first layer: the box's components, or one per value of a discrete observation."""
        return input_size(self.observation_space)

    def forward(self, observations: Array) -> Array:
        """Compute logits, Q values, or the mean of the action.

        A row's result has the same bits whatever the other rows are and however many there are: every row is its own
        vector-matrix product (a stacked `matmul`), because a blocked matrix product rounds by its shape.

        Args:
            observations: (N, n), or (N,) or (N, 1) when the observation is discrete; any numeric dtype.

        Returns:
            (N, k) float32.

        Raises:
            BadInput: for a wrong shape or a discrete observation out of range.
        """
        outputs = self._last_layer(observations)
        return self._squash(outputs) if self.head == "tanh" else outputs

    def act(
        self, observations: Array, *, mode: Mode = "greedy", rngs: Sequence[np.random.Generator] | None = None
    ) -> Acts:
        """Choose one action per observation.

        A policy without a distribution (see `is_stochastic`) is its own sample.

        Args:
            observations: as in `forward`, N rows.
            mode: `greedy` takes the most likely (or most valuable, or mean) action, `sampled` draws one.
            rngs: one generator per row, needed when sampled; each row draws from its own only.

        Returns:
            Actions inside the action space, and the outputs behind them.

        Raises:
            BadInput: when sampled without exactly one generator per row, and as in `forward`.
        """
        last = self._last_layer(observations)
        outputs = self._squash(last) if self.head == "tanh" else last
        if mode == "greedy" or not self.is_stochastic:
            return Acts(self._greedy(outputs), outputs)
        if rngs is None or len(rngs) != len(last):
            given = "none" if rngs is None else str(len(rngs))
            raise BadInput(f"Sampling {len(last)} actions needs {len(last)} random generators; {given} given.")
        return Acts(self._sample(last, rngs), outputs)

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decides an action: spaces, architecture and every weight."""
        return hash_network(_describe(self), _arrays_of(self))

    @cached_property
    def shape(self) -> str:
        """Everything but the numbers; policies of one shape can act side by side, see `stand_abreast`."""
        return json.dumps([_describe(self), [name for name in _BESIDE if getattr(self, name) is not None]])

    def to_files(self) -> dict[str, bytes]:
        """Encode the policy as `policy.json` and `weights.npz`; equal policies give equal bytes."""
        return encode_network(_describe(self), _arrays_of(self))

    def to_json(self) -> bytes:
        """What decides its actions beside the weights, for readers of other files of them."""
        beside = {name: array.tolist() for name, array in _arrays_of(self).items() if name in _BESIDE}
        description = _describe(self) | beside | {"sha256": self.sha256}
        return (json.dumps(description, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, description: Mapping[str, Any], layers: Sequence[tuple[Array, Array]]) -> MlpPolicy:
        """Put together what `to_json` wrote and layers (out, in) and (out,) of another file.

        Raises:
            BadInput: when they are no policy, or not the one that was written.
        """
        arrays = {f"weight_{place}": weight.T for place, (weight, _) in enumerate(layers)}
        arrays |= {f"bias_{place}": bias for place, (_, bias) in enumerate(layers)}
        arrays |= {name: np.asarray(description[name], np.float32) for name in _BESIDE if name in description}
        try:
            policy = _build(description, arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"It does not describe a policy: {' '.join(str(error).split())}.") from error
        if policy.sha256 != description.get("sha256"):
            raise BadInput("Its weights are not those of the policy that it describes.")
        return policy

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> MlpPolicy:
        """Decode what `to_files` wrote.

        Raises:
            DamagedStore: when a file is missing, cannot be read, is not what its hash names, or is no policy.
        """
        description, arrays = decode_network(files)
        try:
            return _build(description, arrays)
        except (KeyError, TypeError, ValueError, BadInput) as error:
            raise DamagedStore(f"The policy's files do not fit together: {error}.", RESTORE) from error

    def _last_layer(self, observations: Array) -> Array:
        hidden = self._inputs(observations)[:, None, :]  # (N, 1, n): N separate vector-matrix products
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.matmul(hidden, weight)
            hidden += bias
            if self.activation == "tanh":
                np.tanh(hidden, out=hidden)
            else:
                np.maximum(hidden, 0, out=hidden)
        last = np.matmul(hidden, self.weights[-1])
        last += self.biases[-1]
        last = last[:, 0, :]
        return last if self.output_limit is None else np.clip(last, -self.output_limit, self.output_limit)

    def _inputs(self, observations: Array) -> Array:
        inputs = network_inputs(observations, self.observation_space)
        if self.shift is not None:
            inputs = inputs - self.shift
        if self.scale is not None:
            inputs = inputs / self.scale
        return inputs if self.input_limit is None else np.clip(inputs, -self.input_limit, self.input_limit)

    @cached_property
    def _bounds(self) -> tuple[Array, Array]:
        return action_bounds(self.action_space)

    @cached_property
    def _std(self) -> Array:
        return np.exp(cast("Array", self.log_std))

    def _squash(self, last: Array) -> Array:
        low, high = self._bounds
        return (low + high) / 2 + (high - low) / 2 * np.tanh(last)

    def _greedy(self, outputs: Array) -> Array:
        if self.action_space.is_discrete:
            return outputs.argmax(axis=1).astype(np.int64) + self.action_space.start
        return self._bounded(outputs)

    def _sample(self, last: Array, rngs: Sequence[np.random.Generator]) -> Array:
        if self.head == "logits":
            weights = np.subtract(last, np.maximum.reduce(last, axis=1, keepdims=True), dtype=np.float64)
            heights = np.add.accumulate(np.exp(weights, out=weights), axis=1)
            thresholds = draw_uniforms(rngs) * heights[:, -1]
            below = heights[:, :-1] <= thresholds[:, None]
            return np.add.reduce(below, axis=1, dtype=np.int64) + self.action_space.start
        noise = np.empty(last.shape)
        for row, rng in zip(noise, rngs, strict=True):
            rng.standard_normal(out=row)
        noisy = last + self._std * noise.astype(np.float32)
        return self._bounded(self._squash(noisy) if self.head == "tanh" else noisy)

    def _bounded(self, actions: Array) -> Array:
        low, high = self._bounds
        return np.clip(actions, low, high).astype(self.action_space.dtype)


def _frozen(array: Array) -> Array:
    copy = np.array(array, dtype=np.float32, order="C")
    copy.setflags(write=False)
    return copy


class _Abreast(MlpPolicy):
    """Networks of one shape, of which each acts at a row of its own: every array has the rows as one more axis."""

    def __post_init__(self) -> None:
        """Its parts were checked one by one."""


def stand_abreast(policies: Sequence[MlpPolicy]) -> MlpPolicy:
    """One policy for as many observations as policies, of which row n has the bits that the n-th policy gives it.

    Args:
        policies: those of one shape, see `MlpPolicy.shape`.
    """
    first = policies[0]
    if all(policy is first for policy in policies):
        return first
    given = [name for name in _BESIDE if getattr(first, name) is not None]
    extra = {name: np.stack([getattr(policy, name) for policy in policies]) for name in given}
    return _Abreast(
        first.observation_space,
        first.action_space,
        weights=tuple(np.stack(layer) for layer in zip(*(policy.weights for policy in policies), strict=True)),
        biases=tuple(np.stack(layer)[:, None] for layer in zip(*(policy.biases for policy in policies), strict=True)),
        activation=first.activation,
        head=first.head,
        input_limit=first.input_limit,
        output_limit=first.output_limit,
        **extra,
    )


def _problems(policy: MlpPolicy) -> Iterator[str]:
    """Name what does not fit, in words; yields nothing for a sound policy."""
    allowed = _DISCRETE_HEADS if policy.action_space.is_discrete else _CONTINUOUS_HEADS
    if policy.head not in allowed:
        yield f"a {policy.action_space.kind} action space takes a head of {allowed}, not {policy.head!r}"
    if policy.activation not in ("tanh", "relu"):
        yield f"the activation is {policy.activation!r}; tanh and relu are known"
    if policy.log_std is not None and policy.action_space.is_discrete:
        yield "log_std belongs to continuous actions"
    if policy.head == "tanh" and not np.isfinite(action_bounds(policy.action_space)).all():
        yield "the tanh head needs finite action bounds"
    yield from _layer_problems(policy)
    yield from _array_problems(policy)


def _layer_problems(policy: MlpPolicy) -> Iterator[str]:
    if not policy.weights or len(policy.weights) != len(policy.biases):
        yield f"it has {len(policy.weights)} weight matrices and {len(policy.biases)} biases"
    width = policy.input_size
    for layer, (weight, bias) in enumerate(zip(policy.weights, policy.biases, strict=False)):
        if weight.ndim != 2 or weight.shape[0] != width or bias.shape != weight.shape[1:]:
            yield f"layer {layer} has weights {weight.shape} and bias {bias.shape}; {width} inputs enter it"
            return
        width = weight.shape[1]
    if width != output_size(policy.action_space):
        yield f"the last layer has {width} outputs; the action space needs {output_size(policy.action_space)}"


def _array_problems(policy: MlpPolicy) -> Iterator[str]:
    sizes = {"shift": policy.input_size, "scale": policy.input_size, "log_std": policy.action_space.size}
    for name, array in _arrays_of(policy).items():
        if not np.isfinite(array).all():
            yield f"{name} holds a number that is not finite"
        if name in sizes and array.shape != (sizes[name],):
            yield f"{name} has shape {array.shape}; ({sizes[name]},) is expected"
    if policy.scale is not None and not (policy.scale > 0).all():
        yield "scale must be positive"
    for name in _LIMITS:
        limit = getattr(policy, name)
        if limit is not None and not 0 < limit < np.inf:
            yield f"{name} is {limit}; a positive number is expected"


def _arrays_of(policy: MlpPolicy) -> dict[str, Array]:
    arrays = {f"weight_{layer}": weight for layer, weight in enumerate(policy.weights)}
    arrays |= {f"bias_{layer}": bias for layer, bias in enumerate(policy.biases)}
    return arrays | {name: getattr(policy, name) for name in _BESIDE if getattr(policy, name) is not None}


def _describe(policy: MlpPolicy) -> dict[str, Any]:
    return {
        "observation_space": _space_to_json(policy.observation_space),
        "action_space": _space_to_json(policy.action_space),
        "activation": policy.activation,
        "head": policy.head,
        "layers": [list(weight.shape) for weight in policy.weights],
    } | {name: getattr(policy, name) for name in _LIMITS if getattr(policy, name) is not None}


def _space_to_json(space: Space) -> dict[str, Any]:
    """JSON has no infinity; an unbounded component becomes the string `inf`, which `Space` reads back."""
    fields = space.model_dump()
    for name in ("low", "high"):
        if fields[name] is not None:
            fields[name] = [bound if np.isfinite(bound) else str(bound) for bound in fields[name]]
    return fields


def _build(description: Mapping[str, Any], arrays: Mapping[str, Array]) -> MlpPolicy:
    layers = range(len(description["layers"]))
    return MlpPolicy(
        observation_space=Space.model_validate(description["observation_space"]),
        action_space=Space.model_validate(description["action_space"]),
        weights=tuple(arrays[f"weight_{layer}"] for layer in layers),
        biases=tuple(arrays[f"bias_{layer}"] for layer in layers),
        activation=description["activation"],
        head=description["head"],
        **{name: arrays.get(name) for name in _BESIDE},
        **{name: description.get(name) for name in _LIMITS},
    )


SPEC_FILE = "policy.json"
WEIGHTS_FILE = "weights.npz"
FORMAT = "trajnote-mlp"
FORMAT_VERSIONS = (1, 2)  # 2: with a limit, which readers of 1 would not apply
RESTORE = "Restore the policy's folder from a copy, or make the policy again."


def hash_network(description: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """Hash a description and its arrays with sha256; library versions and file formats do not enter."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def encode_network(description: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, bytes]:
    """Encode a description and its arrays; equal networks give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **cast("dict[str, Any]", arrays))
    spec = {
        "description": description,
        "format": FORMAT,
        "format_version": FORMAT_VERSIONS[any(name in description for name in _LIMITS)],
        "sha256": hash_network(description, arrays),
        "weights_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "versions": {"numpy": np.__version__},
    }
    text = json.dumps(spec, indent=2, sort_keys=True, allow_nan=False) + "\n"
    return {SPEC_FILE: text.encode(), WEIGHTS_FILE: buffer.getvalue()}


def decode_network(files: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Decode what `encode_network` wrote: the description and its arrays.

    Raises:
        DamagedStore: when a file is missing, cannot be read, or is not what its hash names.
    """
    for name in (SPEC_FILE, WEIGHTS_FILE):
        if name not in files:
            raise DamagedStore(f"The policy has no {name}; its files are {sorted(files)}.", RESTORE)
    spec = _read_spec(files[SPEC_FILE])
    _check_hash(WEIGHTS_FILE, hashlib.sha256(files[WEIGHTS_FILE]).hexdigest(), spec.get("weights_sha256"))
    try:
        arrays = read_arrays(files[WEIGHTS_FILE])
    except UnreadableError as error:
        raise DamagedStore(f"{WEIGHTS_FILE} cannot be read: {error}.", RESTORE) from error
    try:
        found = hash_network(spec["description"], arrays)
    except ValueError as error:  # NaN, which no description has
        raise DamagedStore(f"{SPEC_FILE} does not describe a policy: {error}.", RESTORE) from error
    _check_hash("The policy", found, spec.get("sha256"))
    return spec["description"], arrays


def _check_hash(what: str, found: str, named: object) -> None:
    if found != named:
        raise DamagedStore(f"{what} hashes to {found[:16]}; {SPEC_FILE} says {str(named)[:16]}.", RESTORE)


def _read_spec(text: bytes) -> dict[str, Any]:
    try:
        spec = decode_json(text)
    except UnreadableError as error:
        raise DamagedStore(f"{SPEC_FILE} is not JSON: {error}.", RESTORE) from error
    if not isinstance(spec, dict) or not isinstance(spec.get("description"), dict):
        raise DamagedStore(f"{SPEC_FILE} does not describe a policy.", RESTORE)
    known = [(FORMAT, version) for version in FORMAT_VERSIONS]
    found = (spec.get("format"), spec.get("format_version"))
    if found not in known:
        raise DamagedStore(f"{SPEC_FILE} has format {found}; this version reads {known[-1]}.", RESTORE)
    return cast("dict[str, Any]", spec)


_AHEAD = 64  # numbers that a row draws at once; a call of a generator costs as much as forty more numbers


class EpisodeGenerators(Sequence[np.random.Generator]):
    """One random generator per episode, a row each, whose uniform numbers are drawn ahead.

    What `uniforms` gives are the numbers that one `random()` of every row's generator would give at each call. The
    generators run ahead of it, so a caller that uses it for a row draws nothing else from that row.
    """

    def __init__(self, rngs: Iterable[np.random.Generator]) -> None:
        self._rngs = list(rngs)
        self._drawn = np.empty((_AHEAD, len(self._rngs)))
        self._used = _AHEAD  # rows of `_drawn` that were given out; nothing is drawn before it is asked for

    def uniforms(self) -> Array:
        """One number in [0, 1) of every row, (N,) float64."""
        if self._used == _AHEAD:
            self._drawn = np.stack([rng.random(_AHEAD) for rng in self._rngs], axis=1)
            self._used = 0
        self._used += 1
        return self._drawn[self._used - 1]

    def renew(self, row: int, rng: np.random.Generator) -> None:
        """Give a row the generator of another episode."""
        self._rngs[row] = rng
        if self._used < _AHEAD:
            self._drawn[self._used :, row] = rng.random(_AHEAD - self._used)

    def drop(self, row: int) -> None:
        """Have a row less; those behind it move up."""
        del self._rngs[row]
        self._drawn = np.delete(self._drawn, row, axis=1)

    def __len__(self) -> int:
        return len(self._rngs)

    @overload
    def __getitem__(self, index: int) -> np.random.Generator: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.random.Generator]: ...
    def __getitem__(self, index: int | slice) -> np.random.Generator | list[np.random.Generator]:
        return self._rngs[index]


def draw_uniforms(rngs: Sequence[np.random.Generator]) -> Array:
    """One number in [0, 1) of every row's generator, (N,) float64."""
    return rngs.uniforms() if isinstance(rngs, EpisodeGenerators) else np.array([rng.random() for rng in rngs])
