"""What replays measured about single labels, as rows of `label_replays`. How they are measured is not known here.

It is evidence beside an annotation; nothing is ever removed because of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..catalog import Connection, insert_rows
from ..store import Store


@dataclass(frozen=True)
class LabelReplay:
    """A suggestion taken once in its exact state, against the logged action, both followed by the same policy."""

    label_replay_id: str
    annotation_id: str
    dataset_id: str
    episode_id: int
    step: int
    policy_sha256: str  # of the policy that goes on after the one action
    mode: str  # how it acts
    continuations: int  # pairs of continuations, each pair with the same chance
    exact: bool  # whether the state was reached bit for bit; nothing is measured otherwise
    suggested_return: float | None  # mean sum of rewards from this step on
    logged_return: float | None
    advantage: float | None  # suggested minus logged
    advantages: tuple[float, ...]  # one for each pair
    standard_error: float | None  # of the advantage; None for a single pair
    environment_steps: int  # what it cost, the way to the state included
    detail: str
    environment_sha256: str | None = None  # of the environment that was played in, see `environments`


def insert_label_replays(con: Connection, replays: Sequence[LabelReplay]) -> int:
    """Insert replays; one that is there already stays as it is. Returns how many were new."""
    return insert_rows(
        con, "label_replays", [vars(replay) | {"advantages": list(replay.advantages)} for replay in replays]
    )


def load_label_replays(store: Store, dataset_id: str, *, current: bool = False) -> list[LabelReplay]:
    """The replays of a dataset's labels, by episode, step and id.

    Args:
        store: the store.
        dataset_id: the dataset.
        current: only those that were made in the same environment as the newest one.
    """
    columns = ", ".join(field.name for field in fields(LabelReplay))
    table = "current_label_replays" if current else "label_replays"
    with store.catalog.read() as con:
        rows = con.execute(
            f"SELECT {columns} FROM {table} WHERE dataset_id = ? ORDER BY episode_id, step, label_replay_id",
            [dataset_id],
        ).fetchall()
    return [_label_replay(row) for row in rows]


def _label_replay(row: tuple[object, ...]) -> LabelReplay:
    values = {field.name: value for field, value in zip(fields(LabelReplay), row, strict=True)}
    advantages = values["advantages"]
    values["advantages"] = tuple(advantages) if isinstance(advantages, list) else ()
    return LabelReplay(**values)  # pyright: ignore[reportArgumentType] -- the table's columns have these types
