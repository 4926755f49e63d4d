"""Adds final rows to recordings that have one row per step, and counts what such a recording lacks.

A recording of T rows per episode has T observations, the steps schema T+1. With `next_observation` nothing is missing.
Without it, the observation after the last step is unknown:

- after a *terminal* step the last observation is repeated. Learners do not read it: a terminal state has no value.
- after a *truncated* step it would be read, so that step is given up, and its observation is the final one.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import BadInput
from .import_report import ImportReport

Bools = NDArray[np.bool_]


def add_final_observation(table: pa.Table, report: ImportReport) -> pa.Table:
    """Rows of whole episodes with a final row each, in the columns of the steps schema.

    Args:
        table: ascending `episode_id`, `observation`, `action`, `reward`; `step`, `terminated`, `truncated`,
            `next_observation`, `seed` and `policy_output` may be missing. An episode whose last action is null has its
            final row already.
        report: its counts are increased.

    Raises:
        BadInput: if a flag is not 0 or 1, or a next observation is not the observation of the next row.
    """
    if missing := [name for name in ("observation", "action", "reward") if name not in table.column_names]:
        raise BadInput(f"The column {missing[0]!r} is missing.", "Map it with --column MEANING=NAME.")
    ids = np.asarray(table["episode_id"])
    is_last = np.append(ids[1:] != ids[:-1], True)
    ends = is_last & np.asarray(table["action"].is_valid())
    terminated, truncated = (_flag(table, name, report) for name in ("terminated", "truncated"))
    stopped = ends & ~terminated & ~truncated
    truncated = truncated | stopped
    known = "next_observation" in table.column_names
    if known:
        _check_next(table, ids, is_last)
    given_up = ends & ~terminated if not known else np.zeros_like(ends)
    vanished = given_up & np.append(True, is_last[:-1])
    report.finals += int((is_last & ~ends).sum())
    report.stopped += int((stopped & ~vanished).sum())
    report.repeated += 0 if known else int((ends & terminated).sum())
    report.vanished += int(vanished.sum())
    report.dropped += int((given_up & ~vanished).sum())
    truncated = (truncated | np.append(given_up[1:] & ~is_last[:-1], False)) & ~given_up
    return _build(table, (ids, is_last), (terminated, truncated), ends & ~given_up, given_up)


def _build(
    table: pa.Table, place: tuple[NDArray[np.int64], Bools], flags: tuple[Bools, Bools], added: Bools, emptied: Bools
) -> pa.Table:
    """The table with a final row after each of `added`, and the rows `emptied` as final rows themselves."""
    ids, is_last = place
    first = np.append(True, is_last[:-1])
    source = np.repeat(np.arange(len(ids)), 1 + added)[np.repeat(~(emptied & first), 1 + added)]
    is_new = np.append(False, source[1:] == source[:-1])
    is_final = is_new | emptied[source]
    rows, acted = pa.array(source), pa.array(source, mask=is_final)
    columns = {
        "episode_id": pa.array(ids[source]),
        "step": pa.array(_steps(table, first)[source] + is_new),
        "observation": _observations(table, source, is_new),
        "action": table["action"].take(acted),
        "reward": table["reward"].take(acted),
        "terminated": pa.array(flags[0][source] & ~is_final),
        "truncated": pa.array(flags[1][source] & ~is_final),
    }
    if "policy_output" in table.column_names:
        columns["policy_output"] = table["policy_output"].take(acted)
    if "seed" in table.column_names:
        columns["seed"] = table["seed"].take(rows)
    return pa.table(columns)


def _observations(table: pa.Table, source: NDArray[np.int64], is_new: Bools) -> pa.ChunkedArray:
    if "next_observation" not in table.column_names:
        return table["observation"].take(pa.array(source))
    both = pa.chunked_array(
        [*table["observation"].chunks, *table["next_observation"].cast(table["observation"].type).chunks]
    )
    return both.take(pa.array(source + is_new * table.num_rows))


def _steps(table: pa.Table, first: Bools) -> NDArray[np.int64]:
    if "step" in table.column_names and pa.types.is_integer(table["step"].type) and not table["step"].null_count:
        return np.asarray(table["step"]).astype(np.int64)
    starts = np.flatnonzero(first)
    return np.arange(len(first)) - np.repeat(starts, np.diff(starts, append=len(first)))


def _flag(table: pa.Table, name: str, report: ImportReport) -> Bools:
    """One flag per row, (N,); an empty one counts as false, which is reported."""
    if name not in table.column_names:
        return np.zeros(table.num_rows, np.bool_)
    column = table[name]
    if not (pa.types.is_boolean(column.type) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise BadInput(f"The column {name!r} is of type {column.type}; it has to be true or false, or 1 or 0.")
    is_empty = column.is_null().to_numpy() & table["action"].is_valid().to_numpy()
    report.note_empty(name, int(is_empty.sum()))
    values = np.asarray(pc.fill_null(column, False if pa.types.is_boolean(column.type) else 0))
    if (wrong := np.flatnonzero(~np.isin(values, (0, 1)))).size:
        row = wrong[0]
        step = row - np.flatnonzero(np.asarray(table["episode_id"]) == table["episode_id"][row].as_py())[0]
        place = f"Episode {table['episode_id'][row]}, step {step}"
        raise BadInput(f"{place}: {name} is {values[row]}; it has to be true or false, or 1 or 0.")
    return values.astype(np.bool_)


def _check_next(table: pa.Table, ids: NDArray[np.int64], is_last: Bools) -> None:
    shown, after = (_matrix(table[name]) for name in ("observation", "next_observation"))
    if shown.shape != after.shape:
        raise BadInput(f"The next observations have {after.shape[1]} numbers, the observations {shown.shape[1]}.")
    both, neither = after[:-1] == shown[1:], (after[:-1] != after[:-1]) & (shown[1:] != shown[1:])
    same = np.append((both | neither).all(axis=1), True) | is_last
    if (wrong := np.flatnonzero(~same)).size:
        step = wrong[0] - np.flatnonzero(ids == ids[wrong[0]])[0]
        raise BadInput(
            f"Episode {ids[wrong[0]]}, step {step}: its next observation is not the observation of the next row.",
            "Rows of an episode have to follow each other; often an episode's end lacks its flag.",
        )


def _matrix(column: pa.ChunkedArray) -> NDArray[np.generic]:
    flat = np.asarray(column.combine_chunks().flatten())
    return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 1)
