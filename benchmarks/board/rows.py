"""Rows of the board as JSON lines: one for every environment, method and training seed, failures included.

A row is appended by one write when it is finished, so that a killed run goes on where it was. Tables are elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from storage.schema import Frozen


class Row(Frozen):
    """What one method came to in one environment from one training seed."""

    key: str = Field(description="of everything that decides the row; an equal key is not played again")
    env: str = Field(description="the environment's name on the board")
    arm: str
    seed: int = Field(description="training seed")
    status: Literal["done", "failed"] = "done"
    reason: str = Field(default="", description="the gate's reason, what was trained, or why it failed")
    accepted: bool | None = Field(default=None, description="by the gate; null where the method has none")
    credited: bool | None = Field(default=None, description="the second verdict; null where it was not asked for")
    greedy: tuple[float, ...] = Field(default=(), description="returns of the test episodes")
    sampled: tuple[float, ...] = Field(default=(), description="empty when the policy has no distribution")
    gate_steps: int = Field(default=0, description="environment steps of the gate, the baseline's included")
    train_steps: int = Field(default=0, description="environment steps of the training, replayed ones included")
    replayed_steps: int = Field(default=0, description="those that only led back to a critical state")
    collected_steps: int = Field(default=0, description="environment steps of the dataset")
    datasets: tuple[str, ...] = Field(default=(), description="what was learnt from beside the dataset, by rules")
    rounds: int = Field(default=0, description="of relabelling; all of them, not those until the one that counts")
    labels: int = 0
    dollars: float | None = Field(default=None, description="what the labels would have cost, estimated")
    mode: str = Field(default="greedy", description="how policies act before the gate")
    seconds: float = Field(default=0.0, description="of one core")


def judged(row: Row) -> tuple[float, ...]:
    """A row's returns in the mode of the gate; a policy without a distribution is its own sample."""
    return row.sampled if row.mode == "sampled" and row.sampled else row.greedy


def append_row(path: Path, row: Row) -> None:
    """Append a row, on a line of its own even after one that was cut off; other processes may append, too."""
    line = (row.model_dump_json() + "\n").encode()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        whole = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
        os.write(descriptor, line if whole else b"\n" + line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_rows(path: Path) -> list[Row]:
    """The newest row of every environment, method and seed, in the order in which they were first written.

    A line that was cut off by a kill is passed over.
    """
    if not path.is_file():
        return []
    return newest(row for line in path.read_bytes().splitlines() if (row := _parse(line)) is not None)


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of every environment, method and seed."""
    return list({(row.env, row.arm, row.seed): row for row in rows}.values())


def _parse(line: bytes) -> Row | None:
    try:
        return Row.model_validate_json(line)
    except ValidationError:
        return None
