"""Observations of several parts or of any shape as one row of numbers, as Gymnasium's FlattenObservation makes them.

Discrete parts become one number per value, 0 or 1; the order is Gymnasium's. The components are named after the keys.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation

from storage.errors import BadInput
from storage.schema import Array

_MINIGRID = "minigrid"
_LONGEST_NAME = 60
_LONGEST_TEXT = 2_000


class Part(NamedTuple):
    """A space inside an observation that has no further parts."""

    path: tuple[str, ...]  # keys of Dicts and numbers in Tuples
    space: spaces.Space[Any]

    @property
    def name(self) -> str:
        """For messages."""
        return "/".join(self.path) or str(self.space)


def flatten_observations(environment: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment, wrapped if its observations have to be flattened and can be; MiniGrid's by its own wrapper."""
    if can_flatten(environment.observation_space):
        return FlattenObservation(environment)
    if type(environment.unwrapped).__module__.partition(".")[0] == _MINIGRID and _has_text(environment):
        return importlib.import_module("minigrid.wrappers").FlatObsWrapper(environment)
    return environment


def can_flatten(space: spaces.Space[Any]) -> bool:
    """Whether a space becomes a row of numbers without loss of meaning, as one that is a row does."""
    parts = list(parts_of(space))
    return bool(parts) and all(_is_flat(part.space) for part in parts)


def parts_of(space: spaces.Space[Any], path: tuple[str, ...] = ()) -> Iterator[Part]:
    """The parts of a space in the order in which they are flattened."""
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from parts_of(inner, (*path, str(key)))
    elif isinstance(space, spaces.Tuple):
        for number, inner in enumerate(space.spaces):
            yield from parts_of(inner, (*path, str(number)))
    else:
        yield Part(path, space)


def is_image(space: spaces.Space[Any]) -> bool:
    """Whether a Box holds rows and columns of pixels."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


class Flattened(NamedTuple):
    """How observations were made flat."""

    names: tuple[str, ...]  # of the components
    space: str  # what it was, as Gymnasium writes it


def describe_flattened(space: spaces.Space[Any]) -> Flattened:
    """What a dataset keeps of a space that `can_flatten`."""
    return Flattened(name_components(space), " ".join(str(space).split())[:_LONGEST_TEXT])


def name_components(space: spaces.Space[Any]) -> tuple[str, ...]:
    """A name for every number of a flattened space, made of the keys: `goal_0`, `direction_is_2`, `o1_is_14`."""
    names = [
        f"{stem}{end}"
        for path, inner in parts_of(space)
        for stem, end in ((_stem(path), end) for end in _ends(inner, is_named=bool(path)))
    ]
    taken: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        taken[name] = taken.get(name, 0) + 1
        unique.append(name if taken[name] == 1 else f"{name}_{taken[name]}")
    return tuple(unique) if len(set(unique)) == len(unique) else tuple(f"o{place}" for place in range(len(names)))


def flatten_rows(space: spaces.Space[Any], values: Any) -> Array:
    """Many observations, as Minari stores them, to (N, n); each row as `gymnasium.spaces.flatten` makes it.

    Args:
        space: of the observations.
        values: for a Dict, arrays by key; for a Tuple, a tuple of arrays; else an array, (N, ...).

    Raises:
        BadInput: when a part is missing, or its values are outside its space.
    """
    columns = [_rows(part, _pick(values, part)) for part in parts_of(space)]
    if len({len(column) for column in columns}) != 1:
        raise BadInput("The parts of the observations have different lengths.")
    dtype = spaces.flatten_space(space).dtype
    return np.concatenate(columns, axis=1).astype(dtype)


def _has_text(environment: gymnasium.Env[Any, Any]) -> bool:
    shown = environment.observation_space
    return isinstance(shown, spaces.Dict) and "mission" in shown.spaces and "image" in shown.spaces


def _is_flat(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Box):
        return not is_image(space) and space.dtype.kind in "fiub"
    return isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)


def _stem(path: tuple[str, ...]) -> str:
    """The keys as a SQL identifier; numbers of Tuples begin with an o, as nameless components do."""
    words = [re.sub(r"\W+", "_", key.lower(), flags=re.ASCII).strip("_") for key in path]
    stem = "_".join(filter(None, words))[:_LONGEST_NAME] or "o"
    return stem if stem[0].isalpha() else f"o{stem}"


def _ends(space: spaces.Space[Any], *, is_named: bool) -> Iterator[str]:
    """What follows the keys in the names of a part's components."""
    joint = "_" if is_named else ""
    if isinstance(space, spaces.Discrete):
        yield from (_is(value) for value in range(int(space.start), int(space.start + space.n)))
    elif isinstance(space, spaces.MultiDiscrete):
        nvec, start = np.asarray(space.nvec).reshape(-1), np.asarray(space.start).reshape(-1)
        for place, (count, first) in enumerate(zip(nvec, start, strict=True)):
            yield from (f"{joint}{place}{_is(value)}" for value in range(int(first), int(first + count)))
    else:
        shape = space.shape or ()
        for place in np.ndindex(*shape):
            number = joint + "_".join(map(str, place))
            yield "" if is_named and int(np.prod(shape)) == 1 else number if place else "0"


def _is(value: int) -> str:
    return f"_is_{value}" if value >= 0 else f"_is_minus_{-value}"


def _pick(values: Any, part: Part) -> Any:
    for key in part.path:
        try:
            values = values[int(key)] if isinstance(values, tuple | list) else values[key]
        except (LookupError, TypeError, ValueError):
            raise BadInput(f"The observations have no part {part.name!r}.") from None
    return values


def _rows(part: Part, values: Any) -> Array:
    """The columns of one part, (N, k)."""
    space, given = part.space, np.asarray(values)
    rows = given.reshape(len(given), -1)
    if isinstance(space, spaces.Discrete):
        return _one_hot(part, rows, [int(space.n)], [int(space.start)])
    if isinstance(space, spaces.MultiDiscrete):
        counts, starts = np.asarray(space.nvec).reshape(-1), np.asarray(space.start).reshape(-1)
        return _one_hot(part, rows, counts.tolist(), starts.tolist())
    if rows.shape[1] != int(np.prod(space.shape or ())):
        raise BadInput(f"The observations have shape {given.shape[1:]} in {part.name!r}, not {space.shape}.")
    return rows.astype(space.dtype)


def _one_hot(part: Part, rows: Array, counts: list[int], starts: list[int]) -> Array:
    if rows.shape[1] != len(counts):
        raise BadInput(f"The observations have {rows.shape[1]} numbers in {part.name!r}, not {len(counts)}.")
    columns: list[Array] = []
    for place, (count, start) in enumerate(zip(counts, starts, strict=True)):
        index = rows[:, place].astype(np.int64) - start
        if len(index) and (index.min() < 0 or index.max() >= count):
            raise BadInput(f"An observation has a number in {part.name!r} outside {start} .. {start + count - 1}.")
        columns.append(np.eye(count, dtype=np.int64)[index])
    return np.concatenate(columns, axis=1)
