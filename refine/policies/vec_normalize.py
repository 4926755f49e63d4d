"""Reads the statistics in a `vecnormalize.pkl` of Stable-Baselines3 without running anything of it.

A pickle names functions to call. Here every name leads to an inert record, so that a file can say numbers and nothing
else; names that such a file does not need are refused. What a policy does with the statistics is in `mlp.py`.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from storage.disk import read_file, shorten
from storage.errors import BadInput
from storage.schema import Array

MAX_PICKLE_BYTES = 4_000_000
"""Statistics of a thousand components and the last observations of a hundred environments take 1.3 million."""
MAX_TUPLES = 20_000
MAX_STATISTICS = 1_000_000
"""Numbers of one array."""

_NUMPY = {"dtype", "ndarray", "bool_", "float64", "float32"}
_NUMPY_CORE = {"_reconstruct", "scalar", "_frombuffer"}
_REBUILD = "_reconstructor"
_INERT = {
    "stable_baselines3.common.vec_env.vec_normalize": {"VecNormalize"},
    "stable_baselines3.common.running_mean_std": {"RunningMeanStd"},
    "numpy": _NUMPY,
    "numpy.core.multiarray": _NUMPY_CORE,
    "numpy._core.multiarray": _NUMPY_CORE,
    "numpy.core.numeric": _NUMPY_CORE,
    "numpy._core.numeric": _NUMPY_CORE,
    "_codecs": {"encode"},
    "copyreg": {_REBUILD},
    "copy_reg": {_REBUILD},  # of the oldest protocols
    "__builtin__": {"object"},
    "builtins": {"object", "set", "frozenset", "bytearray"},
    "collections": {"OrderedDict", "deque"},
}
_INERT_NAMES = (  # spaces and the generators that they may hold
    re.compile(r"(?:gym|gymnasium)\.spaces\.\w+\.(?:Box|Discrete|Dict|Tuple|MultiBinary|MultiDiscrete)"),
    re.compile(r"numpy\.random\.(?:\w+\.)?(?:\w+_ctor|RandomState|Generator|MT19937|PCG64|SeedSequence)"),
    re.compile(r"numpy\.random\.bit_generator\.__pyx_unpickle_\w+"),
)


class Record:
    """What a name of the pickle leads to: it keeps what it is given and does nothing."""

    name = ""

    def __new__(cls, *given: Any, **named: Any) -> Record:
        """Keep the arguments, whatever they are."""
        record = super().__new__(cls)
        record.given, record.state, record.items = given, None, {}
        return record

    def __init__(self, *given: Any, **named: Any) -> None:
        self.given: tuple[Any, ...]
        self.state: Any
        self.items: dict[Any, Any]

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep an item of a dictionary."""
        self.items[key] = value

    def append(self, items: Any) -> None:
        """Keep nothing of a list, or of a set."""

    extend = add = append


class _Unpickler(pickle.Unpickler):
    """Leads every name to a record of its own."""

    def find_class(self, module: str, name: str) -> type[Record]:
        """The record of an expected name.

        Raises:
            UnpicklingError: for any other.
        """
        whole = f"{module}.{name}"
        if name in _INERT.get(module, ()) or any(pattern.fullmatch(whole) for pattern in _INERT_NAMES):
            return type("Record", (Record,), {"name": name})
        raise pickle.UnpicklingError(f"it names {shorten(whole)}, which statistics do not need")


class Statistics(NamedTuple):
    """`x = clip((observation - mean) / sqrt(var + epsilon), -limit, limit)`."""

    mean: Array  # (n,) float64
    var: Array  # (n,) float64
    epsilon: float
    limit: float

    @property
    def scale(self) -> Array:
        """The divisor, (n,) float64."""
        return np.sqrt(self.var + self.epsilon)

    def normalise(self, observations: Array) -> Array:
        """Observations (N, n) as the policy learnt from them, float32."""
        return np.clip((observations - self.mean) / self.scale, -self.limit, self.limit).astype(np.float32)


def read_statistics(path: Path) -> Statistics | None:
    """The statistics of observations; None if the file says that observations were not normalised.

    Raises:
        BadInput: in one line, for anything that is not the pickle of a `VecNormalize`.
    """
    content = read_file(path, limit=MAX_PICKLE_BYTES)
    try:
        return _statistics(_load(content))
    except (pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{path} is not read as the statistics of a VecNormalize: {shorten(reason, 200)}.",
            "Restore it, or use raw observations with --no-normalisation.",
        ) from error
    except (MemoryError, OverflowError, RecursionError) as error:
        raise BadInput(f"{path} claims more than such a file can hold: {type(error).__name__}.") from error


def _load(content: bytes) -> Any:
    tuples = 0
    for opcode, argument, _ in pickletools.genops(content):
        tuples += "TUPLE" in opcode.name
        if tuples > MAX_TUPLES:  # one in another, so many would exhaust the stack when they are hashed
            raise pickle.UnpicklingError(f"it has more than {MAX_TUPLES:,} tuples")
        if "PUT" in opcode.name and int(cast("int", argument)) > len(content):  # the memo would be as long
            raise pickle.UnpicklingError("it numbers more objects than it has bytes")
    return _Unpickler(io.BytesIO(content)).load()


def _statistics(found: Any) -> Statistics | None:
    state = _state(found, "VecNormalize")
    if not state.get("norm_obs", True):
        return None
    means = state["obs_rms"]
    parts = [means] if isinstance(means, Record) else _in_order(means, _state(state["observation_space"], "Dict"))
    moments = [[_numbers(_state(part, "RunningMeanStd")[name]) for part in parts] for name in ("mean", "var")]
    mean, var = (np.concatenate([each.reshape(-1) for each in arrays]) for arrays in moments)
    epsilon, limit = (float(_numbers(state[name]).reshape(())) for name in ("epsilon", "clip_obs"))
    if mean.shape != var.shape or not np.isfinite([*mean, *var, epsilon]).all() or (var + epsilon <= 0).any():
        raise ValueError("its means and variances are not finite numbers of one shape")
    if not limit > 0:
        raise ValueError(f"it cuts observations at {limit}")
    return Statistics(mean, var, epsilon, limit)


def _in_order(means: Any, space: Mapping[str, Any]) -> Iterable[Any]:
    """Of a dictionary of observations, in the order in which they are joined."""
    spaces = space["spaces"]
    named = spaces.items if isinstance(spaces, Record) else spaces
    if not isinstance(means, dict) or set(means) != set(named):
        raise ValueError("only some of its observations are normalised")
    return [means[name] for name in named]


def _state(found: Any, name: str) -> Mapping[str, Any]:
    kind = found.given[0] if isinstance(found, Record) and found.name == _REBUILD else found
    held = getattr(kind, "name", type(kind).__name__)
    if not isinstance(found, Record) or held != name or not isinstance(found.state, dict):
        raise ValueError(f"it holds a {held}, not a {name}")
    return found.state


def _numbers(found: Any) -> Array:
    """The numbers of an array, a scalar of NumPy, or a number."""
    if isinstance(found, bool | int | float):
        return np.array(float(found))
    if not isinstance(found, Record):
        raise ValueError(f"it has a {type(found).__name__} where numbers are expected")
    if found.name == "scalar":
        dtype, content = found.given
        return _decode(content, dtype, ())
    if found.name == "_frombuffer":
        content, dtype, shape, order = found.given
        return _decode(content, dtype, shape, order == "F")
    _, shape, dtype, is_fortran, content = cast("tuple[Any, ...]", found.state)
    return _decode(content, dtype, shape, bool(is_fortran))


def _decode(content: Any, described: Any, shape: Any, is_fortran: bool = False) -> Array:
    if isinstance(content, Record) and content.name == "encode":  # protocol 2 writes bytes as a text and its encoding
        content = str(content.given[0]).encode("latin-1")
    code, order = str(described.given[0]), str(described.state[1]) if described.state else "<"
    if code not in ("f8", "f4", "f2", "i8", "i4", "u8", "u4", "u1", "b1"):
        raise ValueError(f"it has numbers of type {shorten(code)}")
    dtype = np.dtype(f"{order if order in ('<', '>') else '<'}{code}")
    count = int(np.prod([int(length) for length in shape], dtype=object)) if shape else 1
    if (
        not 0 <= count <= MAX_STATISTICS
        or not isinstance(content, bytes | bytearray)
        or len(content) != count * dtype.itemsize
    ):
        raise ValueError(f"an array of shape {shape} has the wrong number of bytes")
    return np.frombuffer(content, dtype).astype(np.float64).reshape(shape, order="F" if is_fortran else "C")
