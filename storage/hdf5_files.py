"""Datasets in HDF5 as others write them: D4RL's flat arrays, and the dumps of d3rlpy's ReplayBuffer (2.x and 1.x).

Read piece by piece. Groups besides (D4RL's `infos`, `metadata`) are not taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import pyarrow as pa

from .errors import BadInput
from .final_rows import Losses, complete
from .pieces import ROWS, guarded, unreadable
from .recordings import MANIFEST_KEY, About, Recording, parse_about
from .schema import Array

File: TypeAlias = Any  # h5py.File, whose types do not say which names are arrays
_BROKEN = (OSError, RuntimeError, KeyError)  # as h5py says that a file is damaged
_D4RL = ("observations", "actions", "rewards", "terminals")


@contextmanager
def open_hdf5(path: Path) -> Generator[Recording]:
    """An HDF5 file of D4RL or d3rlpy.

    Raises:
        BadInput: if it is neither, or cannot be read.
    """
    try:
        file: File = h5py.File(path, "r")
    except OSError as error:
        raise unreadable(path, error) from error
    with file:
        about = parse_about(file.attrs[MANIFEST_KEY], str(path)) if MANIFEST_KEY in file.attrs else About()
        read = _reader(path, file, about)
        yield Recording(lambda losses: guarded(read(losses), path, _BROKEN), about)


def table_of(
    episode_ids: Array, observations: Array, actions: Array, rewards: Array, **others: Array | pa.Array
) -> pa.Table:
    """Arrays as columns, (N,) or (N, k) each.

    Raises:
        BadInput: if the arrays differ in length, or an observation or action is no flat list of numbers.
    """
    columns = {"episode_id": episode_ids, "observation": observations, "action": actions, "reward": rewards, **others}
    if len(lengths := {len(values) for values in columns.values()}) > 1:
        raise BadInput(f"The arrays have {' and '.join(map(str, sorted(lengths)))} rows; they have to have the same.")
    return pa.table({name: _column(name, values) for name, values in columns.items()})


def _reader(path: Path, file: File, about: About) -> Callable[[Losses], Iterator[pa.Table]]:
    if "observations_0" in file or "observations_0_0" in file:
        return lambda losses: _dump_pieces(file, about, losses)
    if missing := [name for name in _D4RL if name not in file]:
        raise BadInput(
            f"{path} has no {missing[0]!r}.",
            "It has to be a D4RL file (observations, actions, rewards, terminals) or a dump of d3rlpy's ReplayBuffer.",
        )
    return lambda losses: _d4rl_pieces(file, losses)


def _d4rl_pieces(file: File, losses: Losses) -> Iterator[pa.Table]:
    """Whole episodes, about `ROWS` steps at a time."""
    terminals = _flags(file, "terminals")
    ends = _flags(file, "timeouts") if "timeouts" in file else np.zeros_like(terminals)
    if "episode_terminals" in file:  # d3rlpy 1.x
        ends = _flags(file, "episode_terminals")
    over = terminals | ends
    if len(over):
        over[-1] = True
    stops = np.flatnonzero(over) + 1
    start = before = 0
    while start < len(over):
        stop = int(stops[min(np.searchsorted(stops, start + ROWS), len(stops) - 1)])
        rows = slice(start, stop)
        others = {"next_observation": file["next_observations"][rows]} if "next_observations" in file else {}
        table = table_of(
            before + np.append(0, np.cumsum(over[rows][:-1])),
            file["observations"][rows],
            _actions(file["actions"][rows]),
            file["rewards"][rows],
            terminated=terminals[rows],
            truncated=ends[rows] & ~terminals[rows],
            **others,
        )
        yield complete(table, losses)
        start, before = stop, before + int(np.count_nonzero(over[rows]))


def _dump_pieces(file: File, about: About, losses: Losses) -> Iterator[pa.Table]:
    for number in range(int(file["num_episodes"][()])):
        if f"observations_{number}" not in file:
            raise BadInput(f"Episode {number} has several observations per step; one flat list of numbers is allowed.")
        yield complete(_dumped_episode(file, number, about), losses)


def _dumped_episode(file: File, number: int, about: About) -> pa.Table:
    def extra(name: str) -> Any:
        return file[f"{name}_{number}"][()] if f"{name}_{number}" in file else None

    observations, rewards = (file[f"{name}_{number}"][()] for name in ("observations", "rewards"))
    length, final, seed, episode_id = len(rewards), extra("final_observation"), extra("seed"), extra("episode_id")
    is_terminal = bool(file[f"terminated_{number}"][()])
    is_truncated = not is_terminal if (told := extra("truncated")) is None else bool(told)
    last = np.arange(length) == length - 1
    others: dict[str, Any] = {"terminated": last & is_terminal, "truncated": last & is_truncated}
    if final is not None:
        others["next_observation"] = np.concatenate([observations[1:], final])
    if seed is not None:
        others["seed"] = np.full(length, seed)
    if (outputs := extra("policy_output")) is not None:
        others["policy_output"] = outputs
    actions = _actions(file[f"actions_{number}"][()])
    if about.action_space and about.action_space.is_discrete:
        actions = actions + about.action_space.start
    ids = np.full(length, number if episode_id is None else episode_id)
    return table_of(ids, observations, actions, rewards, **others)


def _flags(file: File, name: str) -> Any:
    return file[name][()].reshape(-1).astype(np.bool_)


def _actions(values: Array) -> Array:
    """Discrete actions are one whole number each, also where they are stored as a list of one."""
    is_single = values.ndim == 2 and values.shape[1] == 1
    return values[:, 0] if is_single and values.dtype.kind in "iu" else values


def _column(name: str, values: Array | pa.Array) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
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
