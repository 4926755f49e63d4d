"""Policies that torch has learnt: zips of Stable-Baselines3 and its contrib package, and `torch:FILE`.

Reading runs nothing of a file; with `+trust` a zip is loaded by the library. The statistics of a `VecNormalize` beside
the zip become part of the policy; without them a policy that was normalised is refused, for it would act on other
numbers than it learnt from. `torch:FILE` is a state_dict or a file of safetensors, of this project, of CleanRL, or of
the user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refine.policies import Agreement, MlpPolicy, Mode
from storage.disk import parse_json, read_file, write_whole
from storage.errors import BadInput
from storage.schema import Array, canonical_json, sha256_file

from ..simulation import Answer, Foreign, ForeignActor, Named, NetworkActor, Policy, Spaces, check_spaces, to_space
from .external import (
    RAW,
    TRUST,
    deciding,
    decision,
    find_extra,
    find_file,
    find_zip,
    probe,
    refuse_image_shape,
    refuse_memory,
)

if TYPE_CHECKING:
    from refine.policies import Network, SavedModel, Statistics

LIBRARIES = {
    "PPO": "stable_baselines3",
    "A2C": "stable_baselines3",
    "DQN": "stable_baselines3",
    "SAC": "stable_baselines3",
    "TD3": "stable_baselines3",
    "DDPG": "stable_baselines3",
    "QRDQN": "sb3_contrib",
    "TQC": "sb3_contrib",
    "TRPO": "sb3_contrib",
    "ARS": "sb3_contrib",
}
# needed for training only; may not unpickle on another Python
_UNNEEDED = {"learning_rate": 0.0, "lr_schedule": 0.0, "clip_range": 0.0, "clip_range_vf": None, "buffer_size": 1}


class Sb3Name(NamedTuple):
    """`sb3:ALGO:PATH` in parts; ALGO may be followed by `+trust` and `+no-normalisation`."""

    algorithm: str
    file: Path
    trusted: bool
    raw: bool


def parse_sb3(spec: str) -> Sb3Name:
    """Read a name, and find its zip.

    Raises:
        BadInput: for another algorithm or option, or when there is no such file.
    """
    named, _, path = spec.partition(":")[2].partition(":")
    algorithm, *options = named.split("+")
    if "recurrent" in algorithm.lower() or "lstm" in algorithm.lower():
        refuse_memory(spec, algorithm)
    if algorithm.upper() not in LIBRARIES or not path or not set(options) <= {TRUST, RAW}:
        raise BadInput(
            f"{spec!r} is not sb3:ALGO:PATH with ALGO one of {', '.join(LIBRARIES)}, "
            f"optionally followed by +{TRUST} or +{RAW}."
        )
    return Sb3Name(algorithm.upper(), find_zip(spec), TRUST in options, RAW in options)


def open_sb3(spec: Named, spaces: Spaces) -> Policy:
    """Open `sb3:ALGO:PATH`.

    Raises:
        BadInput: when there is no such file or algorithm, it cannot be read, was made for other spaces, or was
            normalised and has no statistics beside it.
        Prerequisite: when a library that `+trust` needs is not installed.
    """
    from refine.policies import NotAnMlpError, find_layout, from_tensors, recorded_space

    name = parse_sb3(spec)
    statistics = None if name.raw else find_normalisation(name.file)
    if name.trusted:
        return _open_trusted(spec, name, spaces, statistics)
    saved = _read(spec, name)
    with _about(spec, name):
        find_layout(saved.tensors, saved.facts, name.algorithm)
    said = [recorded_space(described, ours) for described, ours in zip(saved.spaces, spaces, strict=True)]
    check_spaces(spec, Spaces(*said), spaces)
    try:
        network = from_tensors(saved.tensors, saved.facts, name.algorithm, *spaces)
        return NetworkActor(spec, normalised(network, statistics, name.file))
    except NotAnMlpError:
        actor = ForeignActor(spec, _hash(name), spaces, _ask_read)
        with _about(spec, name):
            actor.act(probe(spaces))
        return actor


def find_normalisation(file: Path) -> Statistics | None:
    """The statistics that belong to a zip; None if nothing says that it was normalised.

    Raises:
        BadInput: when something does, and there are none.
    """
    from refine.policies import find_statistics, read_statistics, says_normalised

    found = find_statistics(file)
    if found is not None:
        return read_statistics(found)
    if (said := says_normalised(file)) is not None:
        raise BadInput(
            f"{said} says that the observations of {file.name} were normalised, and there is no vecnormalize.pkl "
            "beside it; without it the policy acts on other numbers than it learnt from.",
            "Put it beside the zip, or use --no-normalisation (sb3:ALGO+no-normalisation:PATH).",
        )
    return None


def normalised(network: MlpPolicy, statistics: Statistics | None, file: Path) -> MlpPolicy:
    """A network that normalises its observations first.

    Raises:
        BadInput: when the statistics are of other observations.
    """
    if statistics is None:
        return network
    if statistics.mean.shape != (network.input_size,) or network.observation_space.is_discrete:
        raise BadInput(
            f"The vecnormalize.pkl of {file} has statistics of {statistics.mean.size} numbers; "
            f"the policy takes {network.input_size}.",
            "Put the right one beside it, or use --no-normalisation.",
        )
    return replace(network, shift=statistics.mean, scale=statistics.scale, input_limit=statistics.limit)


def export_sb3(network: MlpPolicy, like: Path, out: Path, seen: Array | None) -> tuple[Agreement, Path | None]:
    """Write a policy into a copy of the zip that it began with, and its statistics beside that.

    Args:
        network: the policy.
        like: the original zip.
        out: the copy.
        seen: observations of the policy's dataset.

    Returns:
        How near the copy is, and the file of the statistics if there is one.

    Raises:
        BadInput: when it does not fit the zip, or has other statistics.
    """
    from refine.policies import write_like

    like = find_zip(f"sb3:any:{like}")
    if out.resolve() == like.resolve():
        raise BadInput(f"{out} is the original itself.", "Name another file with --output.")
    content, agreement = write_like(network, like, seen)
    beside, copy = _statistics_of(network, like), out.with_name(f"{out.stem}_vecnormalize.pkl")
    if beside is not None:
        write_whole(copy, beside)
    write_whole(out, content)
    return agreement, None if beside is None else copy


def _statistics_of(network: MlpPolicy, like: Path) -> bytes | None:
    """The bytes of the statistics that a policy normalises by; None if it does not."""
    from refine.policies import MAX_PICKLE_BYTES, find_statistics, read_statistics

    if network.shift is None and network.scale is None and network.input_limit is None:
        return None
    found = find_statistics(like)
    plain = replace(network, shift=None, scale=None, input_limit=None)
    original = normalised(plain, read_statistics(found) if found else None, like)
    if original.sha256 != network.sha256:
        raise BadInput(
            f"The policy normalises its observations differently from {found or like}, so the copy would act "
            "on other numbers.",
            "Put the vecnormalize.pkl that it began with beside the zip.",
        )
    return read_file(found, limit=MAX_PICKLE_BYTES) if found else None


@contextmanager
def _about(spec: str, name: Sb3Name) -> Generator[None]:
    """Say which file an error is about, and that its library may load what reading does not."""
    from refine.policies import NotAnMlpError

    try:
        yield
    except NotAnMlpError as error:
        hint = f"If you trust the file, its library may load it: collect --trust, or {_trusted(spec)}."
        raise BadInput(f"{name.file}: {error.problem}", hint) from error
    except BadInput as error:
        raise BadInput(f"{name.file}: {error.problem}", error.hint) from error


def _read(spec: str, name: Sb3Name) -> SavedModel:
    from refine.policies import read_model

    saved = read_model(name.file)
    _refuse_unusable(spec, saved)
    return saved


def _ask_read(spec: str, spaces: Spaces) -> Foreign:
    """What is read and acts in torch, for it is not portable."""
    from refine.policies import find_layout, read_network

    name = parse_sb3(spec)
    saved = _read(spec, name)
    layout = find_layout(saved.tensors, saved.facts, name.algorithm)
    network = read_network(saved.tensors, saved.facts, layout, spaces.action)
    return ask_network(network, spaces, None if name.raw else find_normalisation(name.file))


def ask_network(network: Network, spaces: Spaces, statistics: Statistics | None = None) -> Foreign:
    """A network that was read and is not portable, such as for its activation; torch computes it."""
    from refine.policies import network_inputs, use_one_thread

    use_one_thread()
    decide = replace(decision(network.head, spaces.action), log_std=network.log_std, output_limit=network.output_limit)

    def outputs_of(observation: Array) -> Array:
        seen = observation if statistics is None else statistics.normalise(observation)
        return network.outputs(network_inputs(seen, spaces.observation))

    return deciding(decide, outputs_of)


def _trusted(spec: str) -> str:
    kind, algorithm, path = spec.split(":", 2)
    return f"{kind}:{algorithm}+{TRUST}:{path}"


def _refuse_unusable(spec: str, saved: SavedModel) -> None:
    """Refuse what remembers or sees images, which no library's loading would change."""
    from refine.policies import recorded_shape

    named = saved.facts.policy_class
    if "recurrent" in named.lower() or any("lstm" in tensor for tensor in saved.tensors):
        refuse_memory(spec, named or "lstm")
    shape = recorded_shape(saved.spaces[0])
    if "Cnn" in named or (shape is not None and len(shape) == 3):
        refuse_image_shape(spec, shape or (0, 0, 0))


def _open_trusted(spec: Named, name: Sb3Name, spaces: Spaces, statistics: Statistics | None) -> Policy:
    from refine.policies import NotAnMlpError, from_sb3

    model = _load_trusted(spec, name)
    if hasattr(model.policy, "lstm_actor"):
        refuse_memory(spec, type(model.policy).__name__)
    refuse_image_shape(spec, getattr(model.observation_space, "shape", None))
    theirs = Spaces(to_space(model.observation_space, "observation"), to_space(model.action_space, "action"))
    check_spaces(spec, theirs, spaces)
    try:
        return NetworkActor(spec, normalised(from_sb3(model, *spaces), statistics, name.file))
    except NotAnMlpError:
        return ForeignActor(spec, _hash(name), spaces, _ask_trusted)


def _hash(name: Sb3Name) -> str:
    """Of the files that decide what acts."""
    from refine.policies import find_statistics

    beside = None if name.raw else find_statistics(name.file)
    hashes = [sha256_file(file) for file in (name.file, beside) if file is not None]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(canonical_json(hashes).encode()).hexdigest()


def _ask_trusted(spec: str, spaces: Spaces) -> Foreign:
    from refine.policies import use_one_thread

    use_one_thread()
    name = parse_sb3(spec)
    model = _load_trusted(spec, name)
    statistics = None if name.raw else find_normalisation(name.file)

    def respond(observation: Array, mode: Mode, rng: np.random.Generator | None) -> Answer:
        inputs = observation if statistics is None else statistics.normalise(observation)
        return Answer(model.predict(inputs, deterministic=True)[0])

    return Foreign(respond)


def _load_trusted(spec: str, name: Sb3Name) -> Any:
    """Load a zip through its library, which unpickles what it holds."""
    library = find_extra(LIBRARIES[name.algorithm], "sb3")
    try:
        return getattr(library, name.algorithm).load(name.file, device="cpu", custom_objects=_UNNEEDED)
    except Exception as error:  # a pickle may raise anything
        raise BadInput(f"{name.file} is not a {name.algorithm} model: {type(error).__name__}: {error}.") from error


_KEYS = ("activation", "head", "net")


class TorchName(NamedTuple):
    """`torch+KEY=VALUE:FILE` in parts."""

    file: Path
    said: dict[str, Any]


def open_torch(spec: Named, spaces: Spaces) -> Policy:
    """Open `torch:FILE`, with what tensors cannot say between: `torch+activation=relu+head=logits+net=actor:FILE`.

    A JSON that `policy export --format torch` wrote beside it says all of it.

    Raises:
        BadInput: when there is no such file, it cannot be read, leaves something open, or does not fit the spaces.
    """
    from refine.policies import NotAnMlpError

    name = parse_torch(spec)
    own = None if name.said else _read_own(name.file)
    if own is not None:
        check_spaces(spec, Spaces(own.observation_space, own.action_space), spaces)
        return NetworkActor(spec, own)
    try:
        network = _read_torch(name, spaces)
    except BadInput as error:
        raise BadInput(f"{name.file}: {error.problem}", error.hint) from error
    try:
        return NetworkActor(spec, network.to_policy(*spaces))
    except NotAnMlpError:
        actor = ForeignActor(spec, sha256_file(name.file), spaces, _ask_torch)
        actor.act(probe(spaces))
        return actor


def parse_torch(spec: str) -> TorchName:
    """Read a name, and find its file.

    Raises:
        BadInput: for another option or value, or when there is no such file.
    """
    from refine.policies import ACTIVATIONS, HEADS

    kind, _, path = spec.partition(":")
    allowed = {"activation": ACTIVATIONS, "head": tuple(HEADS)}
    said: dict[str, Any] = {}
    for option in kind.split("+")[1:]:
        key, _, value = option.partition("=")
        if option == RAW:
            said["raw"] = True
        elif key not in _KEYS or not value or value not in allowed.get(key, (value,)):
            known = ", ".join(f"{key}={'|'.join(values)}" for key, values in allowed.items())
            raise BadInput(f"{spec!r} has the option {option!r}; allowed: {known}, net=PREFIX and {RAW}.")
        else:
            said[key] = value
    return TorchName(find_file(path, spec), said)


def _read_own(file: Path) -> MlpPolicy | None:
    """The policy that this project wrote, if its JSON lies beside the file."""
    beside = file.with_suffix(".json")
    if not beside.is_file():
        return None
    said = parse_json(read_file(beside), str(beside))
    if not isinstance(said, dict) or not {"sha256", "layers", "head"} <= said.keys():
        return None
    from refine.policies import read_state

    tensors = read_state(file)
    places = [2 * place for place in range(len(said["layers"]))]
    try:
        layers = [(tensors[f"{place}.weight"], tensors[f"{place}.bias"]) for place in places]
    except KeyError as error:
        raise BadInput(f"{file} has no tensor {error}, which {beside} names.") from error
    return MlpPolicy.from_json(said, layers)


def _read_torch(name: TorchName, spaces: Spaces) -> Any:
    from refine.policies import read_plain_network, read_state

    return read_plain_network(read_state(name.file), *spaces, **name.said)


def _ask_torch(spec: str, spaces: Spaces) -> Foreign:
    return ask_network(_read_torch(parse_torch(spec), spaces), spaces)
