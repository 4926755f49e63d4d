"""Reads HDF5 datasets: D4RL's flat arrays, and dumps of d3rlpy's ReplayBuffer (2.x and 1.x).

Read piece by piece. Other groups (D4RL's `infos`, `metadata`) are left out. An HDF5 file can link to other files, from
which it would read, and claim more than it holds: each array is looked at before a byte of it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import pyarrow as pa

from ..disk import require_growth, require_regular
from ..errors import BadInput
from ..schema import MAX_COMPONENTS, Array
from .episode_ends import add_final_observation
from .recordings import (
    MANIFEST_KEY,
    MAX_EPISODE_BYTES,
    MAX_ROWS,
    ROWS,
    About,
    Recording,
    guarded,
    parse_about,
    unreadable,
)
from .row_validation import ImportReport

File: TypeAlias = Any  # h5py.File; its types do not say which names are arrays
MAX_OBJECTS = 5_000_000
"""Groups and arrays allowed in one file."""
_MAX_CHUNK_BYTES = 1 << 28
_BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises for a damaged file
_D4RL = ("observations", "actions", "rewards", "terminals")
_DUMPED = ("observations", "actions", "rewards", "terminated", "truncated", "policy_output", "seed")
_DUMPED_BESIDE = ("final_observation", "episode_id")
_D4RL_MORE = ("next_observations", "timeouts", "episode_terminals")
_NUMBERS = "fiub"
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32_000: "lzf"}


@contextmanager
def open_hdf5(path: Path) -> Generator[Recording]:
    """An HDF5 file of D4RL or d3rlpy.

    Raises:
        BadInput: if it is another file, or cannot be read.
    """
    require_regular(path)
    try:
        file: File = h5py.File(path, "r")
    except _BROKEN as error:
        raise unreadable(path, error) from error
    with file:
        try:
            arrays = _Arrays(path, file)
            about = parse_about(arrays.notes, str(path)) if arrays.notes is not None else About()
            read = _reader(arrays, about)
        except _BROKEN as error:
            raise unreadable(path, error) from error
        yield Recording(lambda report: guarded(read(report), path, _BROKEN), about, is_export=arrays.notes is not None)


def check_hdf5(path: Path) -> None:
    """Check everything in a file that another library is going to read.

    Raises:
        BadInput: naming the first link, array that holds neither numbers nor texts, or array kept outside the file.
    """
    require_regular(path)
    try:
        with h5py.File(path, "r") as file:
            _check_group(path, file)
    except _BROKEN as error:
        raise unreadable(path, error) from error


def table_of(
    episode_ids: Array, observations: Array, actions: Array, rewards: Array, **others: Array | pa.Array
) -> pa.Table:
    """Arrays as columns, (N,) or (N, k) each.

    Raises:
        BadInput: if the arrays differ in length, or an observation or action is not a flat list of numbers.
    """
    columns = {"episode_id": episode_ids, "observation": observations, "action": actions, "reward": rewards, **others}
    if len(lengths := {len(values) for values in columns.values()}) > 1:
        raise BadInput(_lengths_differ(lengths))
    return pa.table({name: _column(name, values) for name, values in columns.items()})


class _Arrays:
    """The arrays of numbers in a file, each checked when it is asked for."""

    def __init__(self, path: Path, file: File) -> None:
        self.path = path
        self._file = file
        notes = file.attrs.get(MANIFEST_KEY)
        if not isinstance(notes, str | bytes | None):
            raise BadInput(f"{path}: its attribute {MANIFEST_KEY!r} is not a text.", "Export the dataset again.")
        self.notes = notes  # the manifest that an exported file carries

    @property
    def names(self) -> set[str]:
        """The names at the top of the file."""
        return set(self._file)

    def __contains__(self, name: str) -> bool:
        return self._file.get(name, getlink=True) is not None

    def __getitem__(self, name: str) -> Any:
        """An array of numbers, not read yet.

        Raises:
            BadInput: if it is not such an array, or not in this file.
        """
        if name not in self:
            raise BadInput(f"{self.path} has no {name!r}.", _EXPECTED)
        array = _check_link(self.path, self._file, name)
        if not isinstance(array, h5py.Dataset):
            raise BadInput(f"{self.path}: {name!r} is a {type(array).__name__.lower()}; an array is needed.", _EXPECTED)
        return _check_array(self.path, name, array)

    def rows(self, name: str, rows: slice | None = None) -> Any:
        """Rows of an array, at least one-dimensional, in native byte order."""
        array = self[name]
        if not array.shape:
            raise BadInput(f"{self.path}: {name!r} has no rows; an array is needed.", _EXPECTED)
        values = array[rows] if rows else array[()]
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def flags(self, name: str) -> Any:
        """An array of zeros and ones, (N,), as booleans."""
        shape = self[name].shape
        if len(shape) > 2 or shape[1:] not in ((), (1,)):
            raise BadInput(f"{self.path}: {name!r} has shape {shape}; one flag per row is needed.", _EXPECTED)
        values = self.rows(name).reshape(-1)
        if (wrong := np.flatnonzero(~np.isin(values, (0, 1)))).size:
            place = f"{self.path}: {name!r}, row {wrong[0]} (the first is 0)"
            raise BadInput(f"{place}: {values[wrong[0]]} is neither 0 nor 1.", _EXPECTED)
        return values.astype(np.bool_)

    def number(self, name: str) -> Any:
        """A single number."""
        array = self[name]
        if array.size != 1:
            raise BadInput(f"{self.path}: {name!r} has shape {array.shape}; a single number is needed.", _EXPECTED)
        return array[()].item()

    def flag(self, name: str) -> bool:
        """A single flag."""
        value = self.number(name)
        if value not in (0, 1):
            raise BadInput(f"{self.path}: {name!r} is {value}; it has to be 0 or 1.", _EXPECTED)
        return bool(value)

    def length(self, names: Iterable[str]) -> int:
        """How many rows some arrays have."""
        lengths = {len(self[name]) if self[name].shape else 0 for name in names if name in self}
        if len(lengths) > 1:
            raise BadInput(_lengths_differ(lengths))
        return lengths.pop()


_EXPECTED = "It has to be a D4RL file (observations, actions, rewards, terminals) or a dump of d3rlpy's ReplayBuffer."


def _check_link(path: Path, group: File, name: str) -> Any:
    """The object behind a name, if it is in this file itself."""
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        place = f"{group.name.rstrip('/')}/{name}".lstrip("/")
        raise BadInput(f"{path}: {place!r} is a link ({type(link).__name__}).", "Write the array itself into the file.")
    return group[name]


def _check_array(path: Path, name: str, array: Any) -> Any:
    """An array whose numbers are in this file, no more of them than the file can hold."""
    where, plan = f"{path}: {name!r}", array.id.get_create_plist()
    if array.is_virtual or array.external:
        raise BadInput(f"{where} keeps its numbers in another file.", "Write the array itself into the file.")
    if array.dtype.kind not in _NUMBERS or array.dtype.itemsize > 8:
        raise BadInput(f"{where} holds {_describe_type(array.dtype)}; numbers are needed.", _EXPECTED)
    if array.shape is None:
        raise BadInput(f"{where} is empty; numbers are needed.", _EXPECTED)
    if array.shape and (len(array) > MAX_ROWS or array.size > len(array) * MAX_COMPONENTS):
        raise BadInput(f"{where} has shape {array.shape}; {MAX_ROWS:,} rows of {MAX_COMPONENTS:,} are allowed.")
    filters = [plan.get_filter(place) for place in range(plan.get_nfilters())]
    if strange := [number for number, *_ in filters if number not in _FILTERS]:
        raise BadInput(f"{where} is compressed by filter {strange[0]}.", f"Known: {', '.join(_FILTERS.values())}.")
    if array.chunks and np.prod(array.chunks, dtype=np.float64) * array.dtype.itemsize > _MAX_CHUNK_BYTES:
        raise BadInput(f"{where} has chunks of shape {array.chunks}; {_MAX_CHUNK_BYTES:,} bytes are allowed.")
    require_growth(where, array.size * array.dtype.itemsize, array.id.get_storage_size())
    return array


def _describe_type(dtype: np.dtype[Any]) -> str:
    if h5py.check_string_dtype(dtype) is not None:
        return "texts"
    if h5py.check_ref_dtype(dtype) is not None:
        return "references"
    if h5py.check_vlen_dtype(dtype) is not None:
        return "lists of different lengths"
    return {"V": "records or raw bytes", "O": "objects", "c": "complex numbers"}.get(dtype.kind, str(dtype))


def _check_group(path: Path, root: File) -> None:
    """Every name below a group, each group once."""
    groups, seen, found = [root], {hash(root)}, 0  # hashed by its address in the file
    while groups:
        group = groups.pop()
        for name in group:
            found += 1
            if found > MAX_OBJECTS:
                raise BadInput(f"{path} holds more than {MAX_OBJECTS:,} arrays and groups.", "Split the dataset.")
            item = _check_link(path, group, name)
            if isinstance(item, h5py.Dataset):
                if h5py.check_string_dtype(item.dtype) is None:
                    _check_array(path, str(item.name), item)
                    continue
                where = f"{path}: {item.name!r}"
                if item.is_virtual or item.external:
                    raise BadInput(f"{where} keeps its texts in another file.", "Write them into the file itself.")
                require_growth(where, item.size * item.dtype.itemsize, item.id.get_storage_size())
            elif isinstance(item, h5py.Group) and hash(item) not in seen:
                seen.add(hash(item))
                groups.append(item)


def _reader(arrays: _Arrays, about: About) -> Callable[[ImportReport], Iterator[pa.Table]]:
    if "observations_0" in arrays or "observations_0_0" in arrays:
        return lambda report: _dump_pieces(arrays, about, report)
    for name in (*_D4RL, *(name for name in _D4RL_MORE if name in arrays)):
        _ = arrays[name]  # check all of them before the first one is read
    return lambda report: _d4rl_pieces(arrays, report)


def _d4rl_pieces(arrays: _Arrays, report: ImportReport) -> Iterator[pa.Table]:
    """Whole episodes, about `ROWS` steps at a time."""
    arrays.length((*_D4RL, *_D4RL_MORE))
    terminals = arrays.flags("terminals")
    report.rows = len(terminals)
    report.leave_out("arrays", arrays.names - {*_D4RL, *_D4RL_MORE})
    ends = arrays.flags("timeouts") if "timeouts" in arrays else np.zeros_like(terminals)
    if "episode_terminals" in arrays:  # d3rlpy 1.x
        ends = arrays.flags("episode_terminals")
    over = terminals | ends
    if len(over):
        over[-1] = True
    stops = np.flatnonzero(over) + 1
    start = before = 0
    row_bytes = _row_bytes(arrays)
    while start < len(over):
        first = int(stops[np.searchsorted(stops, start + 1)])
        if (size := (first - start) * row_bytes) > MAX_EPISODE_BYTES:
            raise BadInput(f"Episode {before} has {size:,} bytes; {MAX_EPISODE_BYTES:,} are allowed.")
        wanted = min(ROWS, max(1, MAX_EPISODE_BYTES // row_bytes))
        stop = max(first, int(stops[max(np.searchsorted(stops, start + wanted, side="right") - 1, 0)]))
        rows = slice(start, stop)
        others = {"next_observation": arrays.rows("next_observations", rows)} if "next_observations" in arrays else {}
        table = table_of(
            before + np.append(0, np.cumsum(over[rows][:-1])),
            arrays.rows("observations", rows),
            _actions(arrays.rows("actions", rows)),
            arrays.rows("rewards", rows),
            terminated=terminals[rows],
            truncated=ends[rows] & ~terminals[rows],
            **others,
        )
        yield add_final_observation(table, report)
        start, before = stop, before + int(np.count_nonzero(over[rows]))


def _row_bytes(arrays: _Arrays) -> int:
    names = [name for name in ("observations", "next_observations", "actions") if name in arrays]
    return sum(int(np.prod(arrays[name].shape[1:])) * arrays[name].dtype.itemsize for name in names) + 32


def _dump_pieces(arrays: _Arrays, about: About, report: ImportReport) -> Iterator[pa.Table]:
    taken = {name.rpartition("_")[0] for name in arrays.names if name[-1:].isdecimal()}
    report.leave_out("arrays", taken - {*_DUMPED, *_DUMPED_BESIDE})
    for number in range(int(arrays.number("num_episodes"))):
        if f"observations_{number}_0" in arrays:
            raise BadInput(f"Episode {number} has several observations per step; one flat list of numbers is allowed.")
        table = _dumped_episode(arrays, number, about)
        report.rows += table.num_rows
        yield add_final_observation(table, report)


def _dumped_episode(arrays: _Arrays, number: int, about: About) -> pa.Table:
    def extra(name: str) -> Any:
        return arrays.number(f"{name}_{number}") if f"{name}_{number}" in arrays else None

    length = arrays.length([f"{name}_{number}" for name in ("observations", "actions", "rewards")])
    observations, rewards = (arrays.rows(f"{name}_{number}") for name in ("observations", "rewards"))
    seed, episode_id = extra("seed"), extra("episode_id")
    is_terminal = arrays.flag(f"terminated_{number}")
    is_truncated = not is_terminal if f"truncated_{number}" not in arrays else arrays.flag(f"truncated_{number}")
    last = np.arange(length) == length - 1
    others: dict[str, Any] = {"terminated": last & is_terminal, "truncated": last & is_truncated}
    if f"final_observation_{number}" in arrays:
        others["next_observation"] = np.concatenate([observations[1:], arrays.rows(f"final_observation_{number}")])
    if seed is not None:
        others["seed"] = np.full(length, seed)
    if f"policy_output_{number}" in arrays:
        others["policy_output"] = arrays.rows(f"policy_output_{number}")
    actions = _actions(arrays.rows(f"actions_{number}"))
    if about.action_space and about.action_space.is_discrete:
        actions = actions + about.action_space.start
    ids = np.full(length, number if episode_id is None else episode_id)
    return table_of(ids, observations, actions, rewards, **others)


def _actions(values: Array) -> Array:
    """Discrete actions are one whole number each, also where they are stored as a list of one."""
    is_single = values.ndim == 2 and values.shape[1] == 1
    return values[:, 0] if is_single and values.dtype.kind in "iu" else values


def _lengths_differ(lengths: Iterable[int]) -> str:
    return f"The arrays have {' and '.join(map(str, sorted(lengths)))} rows; they have to have the same."


def _column(name: str, values: Array | pa.Array) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if values.dtype.kind == "b" and name not in ("terminated", "truncated"):
        values = values.astype(np.uint8)
    narrow = values.dtype == np.float16
    values = values.astype(np.float32 if narrow else values.dtype.newbyteorder("="), copy=False)
    if name == "reward" and values.size == len(values):
        values = values.reshape(-1)
    if values.ndim == 1 and name in ("observation", "next_observation"):
        values = values.reshape(-1, 1)
    if values.ndim > 2 or values.dtype.kind not in "fiub":
        raise BadInput(
            f"Each {name} has shape {values.shape[1:]}, {values.dtype}; one flat list of numbers is allowed."
        )
    if values.ndim == 1:
        return pa.array(np.ascontiguousarray(values))
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
