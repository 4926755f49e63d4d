"""Reads files of Stable-Baselines3 without running anything of them: the zip of a model, and what lies beside it.

`data` is JSON whose pickled fields are not looked at beyond the name of the policy's class; `policy.pth` is read by
torch as weights only. What they mean is in `sb3_models.py`.
"""

from __future__ import annotations

import base64
import io
import lzma
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from storage.disk import (
    MAX_ARRAY_BYTES,
    MAX_BYTES,
    UnreadableError,
    decode_json,
    read_text,
    require_growth,
    require_regular,
    shorten,
)
from storage.errors import BadInput
from storage.schema import Array, Space

from .sb3_models import Facts, Tensors

_CLASS_BYTES = 4_096  # of a pickled class, which is its name
_BAD = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, OSError, EOFError),
    *(KeyError, ValueError, NotImplementedError, RuntimeError),
)
_SETTINGS_BYTES = 1_000_000
_NUMBER = re.compile(r"[-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|inf)", re.IGNORECASE)
_SAYS_NOT = re.compile(r"norm_obs['\"]?\s*[=:]\s*['\"]?False", re.IGNORECASE)
_STATISTICS = ("vecnormalize.pkl", "vec_normalize.pkl")
_SETTINGS = ("config.yml", "args.yml")


class SavedModel(NamedTuple):
    """What a zip says."""

    facts: Facts
    tensors: Tensors
    spaces: tuple[Mapping[str, Any], Mapping[str, Any]]  # observation and action, as far as they are readable


def read_model(path: Path) -> SavedModel:
    """Read a zip.

    Raises:
        BadInput: in one line, when it is damaged, too large or no model.
    """
    require_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            data = decode_json(_member(archive, path, "data", MAX_BYTES))
            weights = _member(archive, path, "policy.pth", MAX_ARRAY_BYTES)
    except UnreadableError as error:
        raise BadInput(f"{path} is not a model of Stable-Baselines3: its `data` is not JSON: {error}.") from error
    except _BAD as error:
        raise not_a_model(path, error) from error
    if not isinstance(data, dict):
        raise BadInput(f"{path} is not a model of Stable-Baselines3: its `data` is not an object.")
    spaces = (_mapping(data, "observation_space"), _mapping(data, "action_space"))
    return SavedModel(_facts(data), read_tensors(weights, path), spaces)


def not_a_model(path: Path, error: Exception) -> BadInput:
    """The refusal of a file that cannot be read as a zip of a model."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return BadInput(f"{path} is not a model of Stable-Baselines3: {shorten(reason, 200)}.")


def copy_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in a zip that `read_model` has read.

    Raises:
        BadInput: when one is in a folder, or too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in dict.fromkeys(archive.namelist()):
                if "/" in name or "\\" in name:
                    raise BadInput(f"{path} holds {shorten(name)}; files without folders are expected.")
                yield name, _member(archive, path, name, MAX_ARRAY_BYTES)
    except _BAD as error:
        raise not_a_model(path, error) from error


def _member(archive: zipfile.ZipFile, path: Path, name: str, limit: int) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > limit:
        raise BadInput(f"{path} claims {info.file_size:,} bytes of {name}; {limit:,} are allowed.")
    require_growth(f"{path}, {name}", info.file_size, info.compress_size)
    return archive.read(info)


def read_tensors(content: bytes, path: Path, *, nested: bool = False) -> dict[str, Array]:
    """The tensors of a state_dict that torch wrote, as weights only: nothing else in it is loaded.

    Args:
        content: of the file.
        path: of the file, for messages.
        nested: whether it may be a checkpoint: of several state_dicts the first, or all with dots in their names;
            what is no tensor is left out.

    Raises:
        BadInput: when it is damaged, larger than it may be, or holds anything but tensors of numbers.
    """
    _check_inner(content, path)
    try:
        with warnings.catch_warnings(action="ignore"):  # about protocols that it may not know
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch may raise anything for a damaged file
        refused = "it holds more than tensors, which is not loaded"  # torch's words would advise to load it
        reason = refused if "Weights only load failed" in str(error) else " ".join(str(error).split())
        raise BadInput(f"{path}: its weights are not read: {shorten(reason, 200)}.") from error
    if nested:
        found = dict(_flatten(found[0] if isinstance(found, tuple | list) and found else found, ""))
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise BadInput(f"{path}: its weights are a {type(found).__name__}; tensors with names are expected.")
    return {name: _to_array(name, tensor, path) for name, tensor in found.items()}


def _flatten(found: Any, prefix: str, depth: int = 4) -> Iterator[tuple[str, Any]]:
    if isinstance(found, torch.Tensor):
        yield prefix.removesuffix("."), found
    elif isinstance(found, dict) and depth:
        for name, value in found.items():
            yield from _flatten(value, f"{prefix}{name}.", depth - 1)


def _check_inner(content: bytes, path: Path) -> None:
    """Torch's own files are zips too; older ones are not, and hold their numbers as they are."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            claimed = sum(info.file_size for info in archive.infolist())
    except _BAD as error:
        raise not_a_model(path, error) from error
    if claimed > MAX_ARRAY_BYTES:
        raise BadInput(f"{path} claims {claimed:,} bytes of weights; {MAX_ARRAY_BYTES:,} are allowed.")
    require_growth(f"{path}, its weights", claimed, len(content))


def _to_array(name: str, tensor: Any, path: Path) -> Array:
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_complex():
        raise BadInput(f"{path}: {shorten(name)} is a {type(tensor).__name__}; dense tensors of numbers are expected.")
    if 8 * tensor.numel() > MAX_ARRAY_BYTES or tensor.is_meta or tensor.is_quantized:
        raise BadInput(f"{path}: {shorten(name)} claims {tensor.numel():,} numbers, more than it may hold.")
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy().copy()


def _mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _facts(data: Mapping[str, Any]) -> Facts:
    kwargs = _mapping(data, "policy_kwargs")
    uses = bool(data.get("use_sde")) or bool(kwargs.get("use_sde"))
    return Facts(_class_of(_mapping(data, "policy_class")), kwargs, uses)


def _class_of(described: Mapping[str, Any]) -> str:
    """Module and name of a pickled class. Its pickle is listed, not loaded: two texts are its module and its name."""
    module = described.get("__module__")
    if not isinstance(module, str):
        return ""
    try:
        content = base64.b64decode(str(described.get(":serialized:", "")), validate=True)[:_CLASS_BYTES]
        texts = [
            str(part)
            for _, argument, _ in pickletools.genops(content)
            if isinstance(argument, str)
            for part in argument.split()
        ]
    except ValueError:
        texts = []
    return f"{module}.{texts[1]}" if texts[:1] == [module] and len(texts) > 1 else f"{module}."


def recorded_space(described: Mapping[str, Any], ours: Space) -> Space:
    """The space that a zip says its model was made for, as far as it is readable; else the environment's.

    Bounds are printed with eight digits: near enough to the environment's, they are those.

    Args:
        described: of the zip.
        ours: of the environment.
    """
    kind = re.sub(r"^.*\.(\w+)'>$", r"\1", str(described.get(":type:")))
    try:
        if kind == "Discrete":
            count, start = int(described["n"]), int(described.get("start", 0))
            return Space(kind="discrete", dtype="int64", size=1, n=count, start=start)
        if kind == "Box":
            return _recorded_box(described, ours)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    return ours


def recorded_shape(described: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of a space, if it is readable."""
    shape = described.get("_shape", described.get("shape"))
    is_shape = isinstance(shape, list) and all(isinstance(length, int) for length in shape)
    return tuple(shape) if is_shape else None


def _recorded_box(described: Mapping[str, Any], ours: Space) -> Space:
    shape = recorded_shape(described)
    if shape is None:
        return ours
    size = int(np.prod(shape))
    fields: dict[str, Any] = {}
    for name in ("low", "high"):
        bounds = [float(number) for number in _NUMBER.findall(str(described.get(name)))]
        own = getattr(ours, name)
        near = own is not None and len(bounds) == len(own) and np.allclose(bounds, own, rtol=1e-4, atol=1e-6)
        fields[name] = own if near or len(bounds) != size else tuple(bounds)
    return Space(kind="box", dtype=ours.dtype, size=size, **fields)


def find_statistics(model: Path) -> Path | None:
    """The statistics of a `VecNormalize` beside a zip: under its name, in the zoo's folder, or in the same one."""
    numbered = re.sub(r"_(\d+)_steps$", r"_vecnormalize_\1_steps.pkl", model.stem)
    candidates = [model.with_name(f"{model.stem}_{name}") for name in _STATISTICS]
    candidates += [folder / name for folder in _folders(model) for name in _STATISTICS]
    if numbered != model.stem:
        candidates.insert(0, model.with_name(numbered))
    return next((path for path in candidates if path.is_file()), None)


def says_normalised(model: Path) -> Path | None:
    """The file beside a zip that says that its observations were normalised, if one does."""
    files = [folder / name for folder in _folders(model) for name in _SETTINGS]
    return next((path for path in files if path.is_file() and _asks_for_it(path)), None)


def _folders(model: Path) -> list[Path]:
    """Where the zoo keeps what belongs to `ENV.zip`: in `ENV/`; beside `best_model.zip` there is one such folder."""
    own = model.with_suffix("")
    inner = [own] if own.is_dir() else []
    if not inner:
        with suppress(OSError):
            inner = [path for path in sorted(model.parent.iterdir()) if path.is_dir() and _has_settings(path)]
    return [*(inner if len(inner) == 1 else []), model.parent]


def _has_settings(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SETTINGS)


def _asks_for_it(path: Path) -> bool:
    """Whether its `normalize` is set and does not leave out observations; the file is parsed, nothing is built."""
    try:
        root = yaml.compose(read_text(path, limit=_SETTINGS_BYTES), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInput(f"{path} is not YAML: {shorten(' '.join(str(error).split()))}.") from error
    for name, value in _pairs(root):
        if name == "normalize":
            text = str(value.value if isinstance(value, yaml.ScalarNode) else dict(_texts(value)))
            return text.strip().lower() not in ("false", "no", "off", "null", "~", "") and not _SAYS_NOT.search(text)
    return False


def _pairs(root: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    """Names and values of mappings, and of lists of two as an ordered dictionary is written."""
    seen: set[int] = set()
    nodes = [] if root is None else [root]
    while nodes:
        node = nodes.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            pairs = node.value
        else:
            pairs = [tuple(node.value)] if len(node.value) == 2 else []
            nodes += node.value
        for key, value in pairs:
            nodes += [key, value]
            if isinstance(key, yaml.ScalarNode):
                yield str(key.value), value


def _texts(node: yaml.Node) -> Iterator[tuple[str, str]]:
    for name, value in _pairs(node):
        yield name, str(value.value) if isinstance(value, yaml.ScalarNode) else ""
