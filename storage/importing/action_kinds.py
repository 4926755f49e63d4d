"""Whether recorded actions are discrete or continuous: as the user or the file says, or inferred here and reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from ..datasets import StepArrays, check_action_space
from ..errors import BadInput
from ..schema import MAX_ACTIONS, Array, Frozen, Space
from .episode_ends import Autoreset
from .row_validation import ImportReport

ActionKind = Literal["discrete", "continuous"]
Rows = Callable[[], Iterator[StepArrays]]
_SHOWN = 10  # unused actions listed in a note


class Choices(Frozen):
    """What a user decides where the file does not say."""

    actions: ActionKind | None = Field(default=None, description="None: by the type of their numbers, and reported")
    autoreset: Autoreset | None = Field(
        default=None, description="what to do with rows in which an environment reset itself; None: refuse or warn"
    )
    first_action: int | None = Field(default=None, description="the smallest discrete action; None: 0")


def choose_actions(rows: Rows, known: Space | None, choices: Choices, report: ImportReport) -> Space:
    """The action space that is already known, if the choices agree with it; otherwise an inferred one.

    Args:
        rows: reads the recording anew.
        known: the space of the environment or of the file's own manifest.
        choices: the user's.
        report: receives what was decided and why.

    Raises:
        BadInput: if a choice contradicts the space or the rows.
    """
    if known is None:
        return _infer(rows, choices, report)
    if choices.actions and known.is_discrete != (choices.actions == "discrete"):
        kind = "discrete" if known.is_discrete else "continuous"
        raise BadInput(f"--actions {choices.actions}: according to the environment or the file they are {kind}.")
    if choices.first_action is not None and (not known.is_discrete or choices.first_action != known.start):
        raise BadInput(
            f"--first-action {choices.first_action}: according to the environment or the file it is {known.start}."
        )
    return known


def infer_box(values: Array) -> Space:
    """An unbounded box of the values' own dtype; values are (N, n)."""
    return Space(kind="box", dtype=str(values.dtype), size=values.shape[1])


class _Seen:
    """What the actions of all rows have in common."""

    def __init__(self, rows: Rows) -> None:
        self.dtype, self.size, self.is_whole = np.dtype(np.int64), 1, True
        self.values: set[int] = set()  # incomplete once there are more than discrete actions may have
        self.lowest, self.highest = 0, 0
        self.fraction = ""  # place of the first one that is not whole
        for steps in rows():
            actions = steps.action[~steps.is_final].reshape(np.count_nonzero(~steps.is_final), -1)
            self.dtype, self.size = actions.dtype, actions.shape[1]
            whole = np.all(np.isfinite(actions) & (actions == np.floor(actions)), axis=1)
            self.is_whole = bool(whole.all())
            self._note_fraction(steps, actions, whole)
            if not self.is_whole or self.size > 1:
                break
            found = np.unique(actions.astype(np.int64))
            self.lowest, self.highest = (
                (min(self.lowest, int(found[0])), max(self.highest, int(found[-1])))
                if self.values
                else (int(found[0]), int(found[-1]))
            )
            if len(self.values) <= MAX_ACTIONS:
                self.values.update(found.tolist())

    def _note_fraction(self, steps: StepArrays, actions: Array, whole: Array) -> None:
        if not whole.all():
            row = np.flatnonzero(~steps.is_final)[np.argmin(whole)]
            place = f"Episode {steps.episode_id[row]}, step {steps.step[row]}"
            self.fraction = f"{place}: the action {actions[np.argmin(whole)].tolist()} is not whole"

    @property
    def span(self) -> str:
        return f"whole numbers from {self.lowest} to {self.highest}" if self.values else "whole numbers"


def _infer(rows: Rows, choices: Choices, report: ImportReport) -> Space:
    seen = _Seen(rows)
    kind = choices.actions or ("discrete" if seen.dtype.kind in "iu" else "continuous")
    if kind == "discrete":
        return _discrete(seen, choices, report)
    if choices.first_action is not None:
        raise BadInput(
            f"--first-action {choices.first_action}: these actions are continuous ({seen.dtype}).",
            "Add --actions discrete if they are ids.",
        )
    dtype = seen.dtype if seen.dtype.kind == "f" else np.dtype(np.float64)
    if choices.actions is None and seen.is_whole and seen.size == 1:
        report.decide(
            f"actions are continuous because they are {seen.dtype}, although all are {seen.span}; --actions discrete "
            "reads them as ids"
        )
    elif choices.actions is None:
        report.decide(f"actions are continuous, {seen.size} of {seen.dtype}, as their type says")
    return Space(kind="box", dtype=str(dtype), size=seen.size)


def _discrete(seen: _Seen, choices: Choices, report: ImportReport) -> Space:
    if seen.size > 1:
        raise BadInput(
            f"Actions are lists of {seen.size} whole numbers; a discrete action is one.",
            "Use --actions continuous to read them as numbers, or --env for the space of an environment.",
        )
    if not seen.is_whole:
        raise BadInput(f"{seen.fraction}, so actions are not discrete.", "Leave out --actions discrete.")
    start, lowest, highest = choices.first_action or 0, seen.lowest, seen.highest
    if lowest < start:
        raise BadInput(f"The smallest action is {lowest}.", f"Add --first-action {lowest}.")
    space = Space(kind="discrete", dtype="int64", size=1, n=highest - start + 1, start=start)
    check_action_space(space)  # before its actions are counted
    if choices.actions is None:
        report.decide(
            f"actions are discrete, {start} to {highest}, because they are {seen.dtype}; --actions continuous "
            "reads them as numbers"
        )
    _report_gaps(seen, start, report)
    return space


def _report_gaps(seen: _Seen, start: int, report: ImportReport) -> None:
    """Actions that never occur, but are part of the space because it has no gaps."""
    lowest, highest = seen.lowest, seen.highest
    if missing := highest - start + 1 - len(seen.values):
        first = (value for value in range(start, highest) if value not in seen.values)
        shown = ", ".join(str(value) for value, _ in zip(first, range(_SHOWN), strict=False))
        more = f" and {missing - _SHOWN} more" if missing > _SHOWN else ""
        offer = f"; --first-action {lowest} starts them at {lowest}" if lowest > start else ""
        report.decide(f"actions that never occur, but are part of the space: {shown}{more}{offer}")
