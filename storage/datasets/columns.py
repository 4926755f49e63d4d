"""Episodes as Arrow columns and back, bit for bit, and checks that they fit their dataset. Files are in `files.py`.

An episode of T steps is T+1 rows: the last row has the final observation, a null action and a null reward. The flags
`terminated` and `truncated` stand on row T-1, whose step ended the episode, and are false on all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import BadInput
from ..schema import (
    MAX_ACTIONS,
    MAX_COMPONENTS,
    MAX_DIMENSIONS,
    MAX_NAME,
    MAX_VALUES,
    Array,
    Episode,
    ManifestDraft,
    Space,
)

DTYPES = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
COLUMNS = (
    "episode_id",
    "step",
    "observation",
    "action",
    "reward",
    "terminated",
    "truncated",
    "policy_output",
    "seed",
)


ENOUGH_ROWS = 1_000_000
"""From so many rows statistics and batches are as good as from all of a larger dataset, and take bounded memory."""


def choose_rows(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """All rows; of more than `most` so many, drawn by chance, always the same ones, in ascending order."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(most).choice(len(rows), most, replace=False, shuffle=False))]


@dataclass(frozen=True)
class StepArrays:
    """Rows of a dataset as flat columns, episodes in ascending order, final rows included; N = sum of (T+1)."""

    episode_id: NDArray[np.int64]  # (N,)
    step: NDArray[np.int32]  # (N,)
    observation: Array  # (N, n) in the environment's own dtype
    action: Array  # (N,) int64 when discrete, else (N, m); zeros on final rows
    reward: NDArray[np.float64]  # (N,); 0 on final rows
    terminated: NDArray[np.bool_]  # (N,)
    truncated: NDArray[np.bool_]  # (N,)
    is_final: NDArray[np.bool_]  # (N,)
    policy_output: NDArray[np.float32] | None  # (N, k); zeros on final rows

    def __len__(self) -> int:
        return len(self.step)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The row of each episode's step 0, (E,)."""
        return np.flatnonzero(self.step == 0)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Steps of each episode, without the final row, (E,)."""
        return np.diff(self.starts, append=len(self)) - 1

    @cached_property
    def episodes(self) -> NDArray[np.int64]:
        """The episodes' ids, ascending, (E,)."""
        return self.episode_id[self.starts]

    def at(self, rows: slice | NDArray[Any]) -> StepArrays:
        """Some rows, of whole episodes in ascending order; views where they are a slice."""
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        some: dict[str, Any] = {name: None if column is None else column[rows] for name, column in columns.items()}
        return StepArrays(**some)

    def rows_of(
        self, episode_ids: Sequence[int] | NDArray[np.integer[Any]], steps: Sequence[int] | NDArray[np.integer[Any]]
    ) -> NDArray[np.int64]:
        """The rows of many steps, (L,), in the order given; step T is an episode's final row.

        Raises:
            BadInput: if there is no such episode or step; it names the first one.
        """
        wanted, within = np.asarray(episode_ids, np.int64), np.asarray(steps, np.int64)
        place = np.searchsorted(self.episodes, wanted)
        known = np.append(self.episodes, -1)  # one past the end, so every place can be looked up
        if (wrong := np.flatnonzero((known[place] != wanted) | (wanted < 0))).size:
            ids = self.episodes
            known_ids = f"Episodes run from {ids[0]} to {ids[-1]}." if len(ids) else ""
            raise BadInput(f"There is no episode {wanted[wrong[0]]} here.", known_ids)
        if (wrong := np.flatnonzero((within < 0) | (within > self.lengths[place]))).size:
            episode_id, step, length = wanted[wrong[0]], within[wrong[0]], self.lengths[place[wrong[0]]]
            raise BadInput(f"Episode {episode_id} has no step {step}.", f"Its steps run from 0 to {length - 1}.")
        return self.starts[place] + within


class SeededSteps(NamedTuple):
    """Rows, and the seed of each of their episodes."""

    rows: StepArrays
    seeds: list[int | None]


def steps_schema(draft: ManifestDraft) -> pa.Schema:
    """The Arrow types of the steps schema for a dataset's spaces."""
    observations, actions = draft.observation_space, draft.action_space
    outputs = pa.list_(pa.float32(), output_size(draft)) if draft.policy_output else pa.list_(pa.float32())
    types = (
        pa.int64(),
        pa.int32(),
        pa.list_(_arrow_type(observations), observations.size),
        pa.int64() if actions.is_discrete else pa.list_(_arrow_type(actions), actions.size),
        pa.float64(),
        pa.bool_(),
        pa.bool_(),
        outputs,
        pa.int64(),
    )
    return pa.schema(list(zip(COLUMNS, types, strict=True)))


def encode_episodes(episodes: Sequence[Episode], draft: ManifestDraft) -> pa.Table:
    """Episodes as rows of the steps schema, in the order given.

    Args:
        episodes: at least one; each has passed `check_episode`.
        draft: the spaces, and whether there is a policy output.
    """
    lengths = np.array([len(episode) for episode in episodes])
    ends = np.cumsum(lengths + 1)
    is_final = np.zeros(ends[-1], np.bool_)
    is_final[ends - 1] = True
    steps = np.concatenate([np.arange(length + 1, dtype=np.int32) for length in lengths])
    observations = np.concatenate([episode.observations for episode in episodes])
    outputs = [episode.policy_outputs for episode in episodes if episode.policy_outputs is not None]
    columns = {
        "episode_id": pa.array(np.repeat([episode.episode_id for episode in episodes], lengths + 1), pa.int64()),
        "step": pa.array(steps),
        "observation": _lists(observations, draft.observation_space.size, None),
        "action": _spread([episode.actions for episode in episodes], is_final),
        "reward": _spread([episode.rewards for episode in episodes], is_final),
        "terminated": _flags([episode.terminated for episode in episodes], ends),
        "truncated": _flags([episode.truncated for episode in episodes], ends),
        "policy_output": _spread(outputs, is_final) if outputs else pa.nulls(len(is_final), pa.list_(pa.float32())),
        "seed": pa.array([episode.seed for episode in episodes], pa.int64()).take(
            pa.array(np.repeat(np.arange(len(episodes)), lengths + 1))
        ),
    }
    return pa.table(columns)


def decode_steps(tables: Iterable[pa.Table], rows: int, draft: ManifestDraft) -> StepArrays:
    """Rows of the steps schema as flat columns; the inverse of `encode_episodes`, without the seeds.

    Args:
        tables: whole episodes, in ascending order; each table is freed before the next one is requested.
        rows: of all tables together.
        draft: the dataset's manifest, for its spaces.
    """
    filled = _allocate(rows, draft)
    done = 0
    for table in tables:
        _fill(filled, slice(done, done + table.num_rows), table)
        done += table.num_rows
    return filled


def decode_episodes(table: pa.Table, draft: ManifestDraft) -> Iterator[Episode]:
    """Rows of the steps schema as episodes, in the order of the rows."""
    rows = decode_steps([table], table.num_rows, draft)
    return cut_episodes(rows, table["seed"].take(pa.array(rows.starts)).to_pylist(), draft)


def cut_episodes(rows: StepArrays, seeds: Sequence[int | None], draft: ManifestDraft) -> Iterator[Episode]:
    """Flat columns of whole episodes, and a seed for each, as episodes in the order of the rows."""
    for start, length, seed in zip(rows.starts, rows.lengths, seeds, strict=True):
        acted = slice(start, start + length)
        observations = rows.observation[start : start + length + 1]
        yield Episode(
            episode_id=int(rows.episode_id[start]),
            seed=seed,
            observations=observations[:, 0] if draft.observation_space.is_discrete else observations,
            actions=rows.action[acted],
            rewards=rows.reward[acted],
            terminated=bool(rows.terminated[acted][-1]),
            truncated=bool(rows.truncated[acted][-1]),
            policy_outputs=None if rows.policy_output is None else rows.policy_output[acted],
        )


def output_size(draft: ManifestDraft) -> int:
    """Numbers in one policy output: one per action when discrete, one per dimension otherwise."""
    space = draft.action_space
    return (space.n or 0) if space.is_discrete else space.size


def _arrow_type(space: Space) -> pa.DataType:
    return pa.int64() if space.is_discrete else pa.from_numpy_dtype(np.dtype(space.dtype))


def _allocate(rows: int, draft: ManifestDraft) -> StepArrays:
    observations, actions = draft.observation_space, draft.action_space
    return StepArrays(
        episode_id=np.empty(rows, np.int64),
        step=np.empty(rows, np.int32),
        observation=np.empty((rows, observations.size), observations.dtype),
        action=np.empty(rows, np.int64) if actions.is_discrete else np.empty((rows, actions.size), actions.dtype),
        reward=np.empty(rows, np.float64),
        terminated=np.empty(rows, np.bool_),
        truncated=np.empty(rows, np.bool_),
        is_final=np.empty(rows, np.bool_),
        policy_output=np.empty((rows, output_size(draft)), np.float32) if draft.policy_output else None,
    )


def _fill(rows: StepArrays, place: slice, table: pa.Table) -> None:
    for name in ("episode_id", "step", "reward", "terminated", "truncated"):
        getattr(rows, name)[place] = _numbers(table[name])
    rows.is_final[place] = table["reward"].is_null().to_numpy()
    _fill_lists(rows.observation[place], table["observation"])
    if rows.action.ndim == 1:
        rows.action[place] = _numbers(table["action"])
    else:
        _fill_lists(rows.action[place], table["action"])
    if rows.policy_output is not None:
        _fill_lists(rows.policy_output[place], table["policy_output"])


def _spread(parts: Sequence[Array], is_final: Array) -> pa.Array:
    """Values of the steps, (sum of T,) or (sum of T, k), over all rows; null on the final ones."""
    joined = np.concatenate(parts)
    values = np.zeros((len(is_final), *joined.shape[1:]), joined.dtype)
    values[~is_final] = joined
    return pa.array(values, mask=is_final) if joined.ndim == 1 else _lists(values, joined.shape[1], is_final)


def _flags(flags: Sequence[bool], ends: Array) -> pa.Array:
    values = np.zeros(ends[-1], np.bool_)
    values[ends - 2] = flags
    return pa.array(values)


def _lists(values: Array, size: int, mask: Array | None) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, size, mask=None if mask is None else pa.array(mask))


def _numbers(column: pa.ChunkedArray) -> Array:
    """A column of numbers as a new array; nulls become zeros."""
    filled = pc.fill_null(column, False if pa.types.is_boolean(column.type) else 0) if column.null_count else column
    return filled.to_numpy()


def _fill_lists(out: Array, column: pa.ChunkedArray) -> None:
    """Put a column of lists into an array, (N, size); null lists become zeros."""
    size = out.shape[1]
    done = 0
    for chunk in column.chunks:
        values = chunk.values.slice(chunk.offset * size, len(chunk) * size)
        values = pc.fill_null(values, 0) if values.null_count else values
        out[done : done + len(chunk)] = values.to_numpy().reshape(-1, size)
        done += len(chunk)


_MAX_START = 1 << 53
_MANY_ACTIONS = "If they are amounts, use `--actions continuous`."
_BLOCK = 1_000_000  # rows checked together


def check_draft(draft: ManifestDraft) -> None:
    """Refuse a dataset whose spaces and names cannot be stored.

    Raises:
        BadInput: naming the field, the value received and the values allowed.
    """
    check_spaces(draft.observation_space, draft.action_space)
    _check_names("component_names", draft.component_names, draft.observation_space.size)
    actions = draft.action_space
    _check_names("action_names", draft.action_names, (actions.n or 0) if actions.is_discrete else actions.size)


def check_spaces(observations: Space, actions: Space) -> None:
    """Refuse spaces that cannot be stored, or are too large to allocate.

    Raises:
        BadInput: naming the space, the value received and the values allowed.
    """
    _check_space("observation", observations, values=MAX_VALUES, size=MAX_COMPONENTS)
    check_action_space(actions)


def check_action_space(actions: Space) -> None:
    """As `check_spaces`, of the actions alone."""
    _check_space("action", actions, values=MAX_ACTIONS, size=MAX_DIMENSIONS)


def check_episode(episode: Episode, draft: ManifestDraft) -> None:
    """Refuse an episode that would not read back exactly.

    Raises:
        BadInput: naming the episode, what is wrong, and what its dataset expects.
    """
    where = f"Episode {episode.episode_id}"
    length = len(episode)
    if length < 1:
        raise BadInput(f"{where} has no steps.")
    if not (episode.terminated or episode.truncated):
        raise BadInput(f"{where} is neither terminated nor truncated at its last step.")
    if episode.rewards.dtype != np.float64:
        raise BadInput(f"{where} has rewards of dtype {episode.rewards.dtype}; they have to be float64.")
    _check_values(f"{where}: observations", episode.observations, draft.observation_space, length + 1)
    _check_values(f"{where}: actions", episode.actions, draft.action_space, length)
    _check_outputs(where, episode, draft)


def _check_space(what: str, space: Space, *, values: int, size: int) -> None:
    if space.is_discrete:
        if not space.n or space.n < 0 or space.size != 1:
            raise BadInput(f"The discrete {what} space has n={space.n} and size={space.size}; it needs n >= 1, size 1.")
        if space.n > values:
            raise BadInput(f"The space has {space.n:,} discrete {what}s; {values:,} are allowed.", _MANY_ACTIONS)
        if abs(space.start) > _MAX_START:
            raise BadInput(f"The first discrete {what} is {space.start}; at most {_MAX_START:,} is allowed.")
        return
    if space.dtype not in DTYPES:
        raise BadInput(f"The {what} space has dtype {space.dtype[:60]!r}.", f"Allowed: {', '.join(DTYPES)}.")
    if space.size > size:
        raise BadInput(f"Each {what} has {space.size:,} numbers; {size:,} are allowed.")
    for name, bounds in (("low", space.low), ("high", space.high)):
        if bounds is not None and len(bounds) != space.size:
            raise BadInput(f"The {what} space has {len(bounds):,} numbers in {name} for {space.size:,} of each {what}.")


def _check_names(field: str, names: tuple[str, ...], count: int) -> None:
    if len(names) != count:
        raise BadInput(f"{field} has {len(names)} names for {count} values.")
    seen: set[str] = set()
    for name in names:
        folded = name.lower()
        if folded in seen:
            raise BadInput(f"{field} has {folded!r} more than once.", "Upper and lower case count as the same.")
        seen.add(folded)
        if not name:
            raise BadInput(f"{field} has an empty name.")
        if len(name) > MAX_NAME:
            raise BadInput(f"{field} has a name of {len(name):,} characters; {MAX_NAME} are allowed: {name[:40]!r}...")
        if not name.isprintable():
            raise BadInput(f"{field} has {name!a}, with a character that cannot be printed.")


def _check_values(what: str, values: Array, space: Space, rows: int) -> None:
    shape = (rows,) if space.is_discrete else (rows, space.size)
    if values.shape != shape:
        raise BadInput(f"{what} have shape {values.shape}; expected {shape}.")
    dtype = "int64" if space.is_discrete else space.dtype
    if values.dtype != np.dtype(dtype):
        raise BadInput(f"{what} have dtype {values.dtype}; the space says {dtype}.")
    if space.is_discrete and space.n is not None:
        last = space.start + space.n - 1
        wrong = np.flatnonzero((values < space.start) | (values > last))
        if wrong.size:
            raise BadInput(f"{what}: step {wrong[0]} has {values[wrong[0]]}; allowed: {space.start} to {last}.")


def _check_outputs(where: str, episode: Episode, draft: ManifestDraft) -> None:
    outputs = episode.policy_outputs
    if (outputs is None) != (draft.policy_output is None):
        raise BadInput(f"{where} has {'no ' if outputs is None else ''}policy outputs; expected {draft.policy_output}.")
    expected = (len(episode), output_size(draft))
    if outputs is not None and (outputs.shape != expected or outputs.dtype != np.float32):
        raise BadInput(f"{where} has policy outputs {outputs.dtype} {outputs.shape}; expected float32 {expected}.")


def is_finite(episode: Episode) -> bool:
    """Whether all numbers of an episode are finite."""
    columns = (episode.observations, episode.actions, episode.rewards, episode.policy_outputs)
    return all(values is None or values.dtype.kind != "f" or bool(np.isfinite(values).all()) for values in columns)


def require_finite(rows: StepArrays, dataset_id: str) -> None:
    """Refuse rows with numbers that are not finite, which older versions stored.

    Raises:
        BadInput: naming an observation, action, reward or policy output that is not finite.
    """
    columns = {
        "observation": rows.observation,
        "action": rows.action,
        "reward": rows.reward,
        "policy output": rows.policy_output,
    }
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        for name, values in columns.items():
            if values is None or values.dtype.kind != "f" or (finite := np.isfinite(values[block])).all():
                continue
            row = start + int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
            place = f"episode {rows.episode_id[row]}, step {rows.step[row]}"
            raise BadInput(
                f"The dataset {dataset_id} holds numbers that are not finite, for example at {place}: the {name} "
                f"{values[row].tolist()}.",
                "Collect or import it again without them; they are never asked about or trained on.",
            )
