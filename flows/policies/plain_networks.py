"""Opens `torch:FILE`: a state_dict of torch or a file of safetensors, of this project, of CleanRL, or of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from refine.policies import MlpPolicy
from storage.disk import parse_json, read_file
from storage.errors import BadInput
from storage.schema import sha256_file

from ..simulation import Foreign, ForeignActor, Named, NetworkActor, Policy, Spaces, check_spaces
from .external import RAW, find_file, probe
from .sb3 import ask_network

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
        network = _read(name, spaces)
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
            raise BadInput(f"{spec!r} has the option {option!r}; allowed: {known}, net=BEGINNING and {RAW}.")
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
        raise BadInput(f"{file} has no tensor {error}, which {beside} speaks of.") from error
    return MlpPolicy.from_json(said, layers)


def _read(name: TorchName, spaces: Spaces) -> Any:
    from refine.policies import read_plain_network, read_state

    return read_plain_network(read_state(name.file), *spaces, **name.said)


def _ask_torch(spec: str, spaces: Spaces) -> Foreign:
    return ask_network(_read(parse_torch(spec), spaces), spaces)
