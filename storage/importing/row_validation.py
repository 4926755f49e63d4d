"""Checks recorded rows, one rule after another, and reports what an import decided, gave up and left out.

It knows neither spaces nor files. An error names the episode and the step; nothing is dropped without a line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..datasets import SeededSteps, StepArrays
from ..errors import BadInput
from ..schema import Array
from .cells import is_list, is_number

REQUIRED = ("episode_id", "step", "observation", "action", "reward", "terminated", "truncated")
OPTIONAL = ("policy_output", "seed")
DERIVED = ("dataset_id", "action_vector", "action_name", "annotations")
"""Further columns of the view `steps` or of an export with labels."""

_LARGEST = (1 << 63) - 1
_FORMAT = (
    "An episode of T steps has T+1 rows: the last has the final observation and a null action; the flags stand on row "
    "T-1."
)


def check_rows(table: pa.Table, *, finite: bool = True) -> SeededSteps:
    """Sort rows in any order into whole episodes, and check them: episodes ascend, steps are contiguous.

    Args:
        table: columns as in the steps schema; lists may be of fixed or variable size, numbers of any width;
            `policy_output` and `seed` may be missing; a final row may have zeros in place of nulls, and the flags.
        finite: whether numbers have to be finite.

    Raises:
        BadInput: for the first broken rule, with the episode and the step.
    """
    if missing := [name for name in REQUIRED if name not in table.column_names]:
        raise BadInput(f"The column {missing[0]!r} is missing.", f"Needed: {', '.join(REQUIRED)}.")
    if not table.num_rows:
        raise BadInput("There are no rows.")
    ids = _whole(table["episode_id"], "episode_id")
    numbers = _whole(table["step"], "step")
    order = np.lexsort((numbers, ids))
    rows = _Rows(table.take(pa.array(order)), ids[order], numbers[order], finite=finite)
    _check_order(rows)
    terminated, truncated = _flags(rows)
    final = rows.is_final
    steps = StepArrays(
        episode_id=rows.ids,
        step=rows.steps.astype(np.int32),
        observation=_lists(rows, "observation", required=np.ones(len(final), np.bool_)),
        action=_action(rows),
        reward=_reward(rows),
        terminated=terminated,
        truncated=truncated,
        is_final=final,
        policy_output=_policy_output(rows),
    )
    return SeededSteps(steps, _seeds(rows))


class _Rows:
    """A sorted table with the episode and step of each row, which every rule needs."""

    def __init__(self, table: pa.Table, ids: NDArray[np.int64], steps: NDArray[np.int64], *, finite: bool) -> None:
        self.table, self._finite = table, finite
        self.ids = ids
        self.steps = steps
        self.starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
        self.is_final = np.append(ids[1:] != ids[:-1], True)

    def require(self, good: NDArray[np.bool_], complaint: str, hint: str = _FORMAT) -> None:
        """Refuse the first row that is not `good`."""
        if (wrong := np.flatnonzero(~good)).size:
            raise BadInput(f"Episode {self.ids[wrong[0]]}, step {self.steps[wrong[0]]}: {complaint}.", hint)

    def finite(self, values: Array) -> NDArray[np.bool_]:
        """Where numbers are finite; everywhere if they need not be."""
        return np.isfinite(values) if self._finite else np.ones(values.shape, np.bool_)

    def present(self, name: str) -> NDArray[np.bool_]:
        """Where a column is not null."""
        return self.table[name].is_valid().to_numpy()


def _whole(column: pa.ChunkedArray, name: str) -> NDArray[np.int64]:
    if not pa.types.is_integer(column.type):
        raise BadInput(f"The column {name!r} is of type {column.type}; it has to be whole numbers.")
    if column.null_count:
        raise BadInput(f"The column {name!r} is null in {column.null_count} rows.")
    values = column.to_numpy()
    if (largest := values.max(initial=0)) > _LARGEST:
        raise BadInput(f"The column {name!r} has {largest}; {_LARGEST} is the largest number allowed.")
    return values.astype(np.int64)


def _check_order(rows: _Rows) -> None:
    rows.require(rows.ids >= 0, "a negative episode_id", "Episodes count from 0.")
    expected = np.arange(len(rows.ids)) - np.repeat(rows.starts, np.diff(rows.starts, append=len(rows.ids)))
    before = np.append(False, (rows.ids[1:] == rows.ids[:-1]) & (rows.steps[1:] == rows.steps[:-1]))
    rows.require(~before, "it has two rows", "")
    rows.require(rows.steps == expected, "a step before it is missing", "Steps count from 0 without a gap.")
    rows.require(~rows.is_final | (rows.steps > 0), "it is the only row of its episode")


def _flags(rows: _Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both flags, moved from the final row to the last step where a file has them there."""
    terminated, truncated = (_flag(rows, name) for name in ("terminated", "truncated"))
    last = np.append(rows.is_final[1:], False)
    either = terminated | truncated
    rows.require(~either | last | rows.is_final, "terminated or truncated before the end of its episode")
    ends = np.flatnonzero(last)
    unflagged = last.copy()
    unflagged[ends] = ~(either[ends] | either[ends + 1])
    rows.require(~unflagged, "it ends its episode, but is neither terminated nor truncated")
    late = rows.is_final & rows.present("action") & ~np.append(False, either[:-1])
    rows.require(~late, "it has an action and the flags; add the final row, or make its action null")
    for flag in (terminated, truncated):
        flag[ends] |= flag[ends + 1]
        flag[ends + 1] = False
    return terminated, truncated


def _flag(rows: _Rows, name: str) -> NDArray[np.bool_]:
    column = rows.table[name]
    if not (pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):
        raise BadInput(f"The column {name!r} is of type {column.type}; it has to be true or false.")
    rows.require(rows.present(name) | rows.is_final, f"{name} is null")
    return pc.fill_null(column.cast(pa.bool_()), False).to_numpy().copy()


def _reward(rows: _Rows) -> NDArray[np.float64]:
    rewards = _scalars(rows, "reward").astype(np.float64)
    rows.require(~rows.is_final | (rewards == 0), "the final row has a reward")
    return rewards


def _action(rows: _Rows) -> Array:
    kind = rows.table["action"].type
    values = _lists(rows, "action", ~rows.is_final) if is_list(kind) else _scalars(rows, "action")
    is_zero = (values == 0).reshape(len(values), -1).all(axis=1)
    rows.require(~rows.is_final | is_zero, "the last row of its episode has an action")
    return values


def _policy_output(rows: _Rows) -> NDArray[np.float32] | None:
    if "policy_output" not in rows.table.column_names or not rows.present("policy_output").any():
        return None
    outputs = _lists(rows, "policy_output", ~rows.is_final).astype(np.float32)
    outputs[rows.is_final] = 0
    return outputs


def _seeds(rows: _Rows) -> list[int | None]:
    if "seed" not in rows.table.column_names:
        return [None] * len(rows.starts)
    seeds = rows.table["seed"]
    if not (pa.types.is_integer(seeds.type) or pa.types.is_null(seeds.type)):
        raise BadInput(f"The column 'seed' is of type {seeds.type}; it has to be whole numbers.")
    firsts = rows.starts[np.cumsum(np.diff(rows.ids, prepend=rows.ids[0] - 1) != 0) - 1]
    filled = pc.fill_null(seeds.cast(pa.int64()), -1).to_numpy()
    rows.require((filled == filled[firsts]) | ~rows.present("seed"), "the seed is not that of its episode's first row")
    return seeds.cast(pa.int64()).take(pa.array(rows.starts)).to_pylist()


def _scalars(rows: _Rows, name: str) -> Array:
    column = rows.table[name]
    if not is_number(column.type):
        raise BadInput(f"The column {name!r} is of type {column.type}; it has to be numbers.")
    rows.require(rows.present(name) | rows.is_final, f"the {name} is null")
    values = pc.fill_null(column, 0).to_numpy()
    rows.require(rows.finite(values), f"the {name} is not finite", "")
    return values


def _lists(rows: _Rows, name: str, required: NDArray[np.bool_]) -> Array:
    """A column of lists as (N, size), with zeros for a null list where null is allowed."""
    column = rows.table[name].combine_chunks()
    if not is_list(column.type) or not is_number(column.type.value_type):
        raise BadInput(f"The column {name!r} is of type {column.type}; it has to be lists of numbers.")
    present = rows.present(name)
    rows.require(present | ~required, f"the {name} is null")
    lengths = pc.call_function("list_value_length", [column]).fill_null(0).to_numpy()
    size = int(lengths[present][0])
    rows.require(~present | (lengths == size), f"the {name} has another length than {size}, the first one's", "")
    if size == 0:
        raise BadInput(f"The column {name!r} has empty lists.")
    flat = column.drop_null().flatten()
    values = np.zeros((len(column), size), column.type.value_type.to_pandas_dtype())
    values[present] = pc.fill_null(flat, 0).to_numpy().reshape(-1, size)
    whole = np.ones((len(column), size), np.bool_)
    whole[present] = flat.is_valid().to_numpy(zero_copy_only=False).reshape(-1, size) & rows.finite(values[present])
    rows.require(np.all(whole, axis=1), f"the {name} is null or not finite in places", "")
    return values


_NAMED = 20  # names listed in one sentence


@dataclass
class ImportReport:
    """Counted up while a recording is read; rows are those of its file, final rows included."""

    repeated: int = 0  # episodes, terminated; the final observation is the last one again
    dropped: int = 0  # episodes, truncated; their last step was given up
    vanished: int = 0  # episodes of one step, truncated; nothing of them is left
    stopped: int = 0  # episodes that ended without a flag; they count as truncated
    empty_flags: dict[str, int] = field(default_factory=dict[str, int])  # flag -> rows without it
    resets: int = 0  # rows in which an environment reset itself; left out
    rows: int = field(default=0, compare=False)  # in the file
    finals: int = field(default=0, compare=False)  # of these, final rows, which hold no step
    steps: int = field(default=0, compare=False)  # that were kept
    episodes: int = field(default=0, compare=False)  # that were kept
    stained: list[int] = field(default_factory=list[int], compare=False)  # episodes with numbers that are not finite
    decided: list[str] = field(default_factory=list[str], compare=False)
    warnings: list[str] = field(default_factory=list[str], compare=False)
    left_out: dict[str, list[str]] = field(default_factory=dict[str, list[str]], compare=False)

    @property
    def given_up(self) -> int:
        """Rows whose step is not in the dataset."""
        return self.dropped + self.vanished + self.resets

    def leave_out(self, kind: str, names: Iterable[str]) -> None:
        """Note names that are left out; a kind is `columns`, `arrays`, ..."""
        if found := sorted(set(names) - set(self.left_out.get(kind, ()))):
            self.left_out.setdefault(kind, []).extend(found)

    def decide(self, sentence: str) -> None:
        """Note, once, a decision that the file left open."""
        if sentence not in self.decided:
            self.decided.append(sentence)

    def note_empty(self, name: str, rows: int) -> None:
        """Count rows with an empty flag, which counts as false."""
        if rows:
            self.empty_flags[name] = self.empty_flags.get(name, 0) + rows

    def see(self, episode_id: int, *, finite: bool) -> None:
        """Count an episode that is kept; exports of older versions may hold numbers that are not finite."""
        self.episodes += 1
        if not finite:
            self.stained.append(episode_id)

    def check(self) -> None:
        """Compare the rows that were read with those that were kept and given up.

        Raises:
            BadInput: if they do not add up, so that no row gets lost.
        """
        if self.rows != self.steps + self.finals + self.given_up:
            raise BadInput(
                f"{self.rows} rows were read, but {self.steps} steps and {self.finals} final rows kept and "
                f"{self.given_up} dropped; nothing is imported.",
                "Keep the rows of an episode together, or add the columns episode_id and step.",
            )

    def note_stains(self) -> None:
        """Warn of numbers that are not finite."""
        if self.stained:
            self.warnings.append(
                f"numbers that are not finite in {len(self.stained)} episodes, the first is {self.stained[0]}: "
                "they are never asked about or trained on"
            )

    def sentences(self) -> list[str]:
        """One sentence for each thing that was decided, given up or left out, or may be wrong."""
        counted = {
            "terminated: their final observation is not in the file, so the last one is repeated": self.repeated,
            "truncated: the observation after their last step is not in the file, so it was dropped": self.dropped,
            "of one step, truncated, dropped: the observation after that step is not in the file": self.vanished,
            "without a flag at their end: they count as truncated": self.stopped,
        }
        lines = [f"episodes {what}: {count}" for what, count in counted.items() if count]
        lines += [
            f"rows without {name}, which counts as false there: {rows}" for name, rows in self.empty_flags.items()
        ]
        if self.resets:
            lines.append(f"rows in which the environment reset itself, left out: {self.resets}")
        if self.given_up:
            kept = self.rows - self.given_up
            lines.append(f"rows read: {self.rows}, kept: {kept}, dropped: {self.given_up}")
        left = [
            f"{kind} left out: {', '.join(names[:_NAMED])}"
            + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            for kind, names in self.left_out.items()
        ]
        return [*self.decided, *lines, *left, *(f"warning: {text}" for text in self.warnings)]

    def as_json(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "rows": {"read": self.rows, "kept": self.rows - self.given_up, "given_up": self.given_up},
            "episodes": {"read": self.episodes + self.vanished, "kept": self.episodes, "given_up": self.vanished},
            "final_observation_repeated": self.repeated,
            "last_step_given_up": self.dropped,
            "ended_without_flag": self.stopped,
            "flags_empty": self.empty_flags,
            "resets_left_out": self.resets,
            "decided": self.decided,
            "left_out": self.left_out,
            "warnings": self.warnings,
        }
