"""What environments side by side give: held against what Gymnasium promises, and gathered column by column.

It holds arrays; it knows neither environments nor policies.
"""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np

from refine.policies import Acts
from storage.schema import Array, Space

from .complaints import BrokenPromiseError

_FIRST_CAPACITY = 256


class Columns(TypedDict):
    """One episode of T steps, as the fields of `storage.schema.Episode`."""

    observations: Array  # (T+1, n), or (T+1,) when discrete
    actions: Array  # (T, m), or (T,) when discrete
    rewards: Array  # (T,) float64
    policy_outputs: Array | None  # (T, k) float32


class Tape:
    """Columns of ticks x lanes. Ticks count from 0 for ever; those before the oldest running episode are dropped.

    Args:
        lanes: environments side by side.
        observation_space: of each of them.
        action_space: of each of them.
    """

    def __init__(self, lanes: int, observation_space: Space, action_space: Space) -> None:
        self.lanes, self.tick = lanes, 0
        self._base = 0  # tick of row 0
        self._observations = _column(_FIRST_CAPACITY + 1, lanes, observation_space)
        self._actions = _column(_FIRST_CAPACITY, lanes, action_space)
        self._rewards = np.zeros((_FIRST_CAPACITY, lanes), dtype=np.float64)
        self._outputs: Array | None = None

    def observations(self, slots: Array | None) -> Array:
        """The current observations: of all lanes when `slots` is None, otherwise of those."""
        shown = self._observations[self.tick - self._base]
        return shown if slots is None else shown[slots]

    def before(self, slots: Array | None) -> Array:
        """The observations one tick earlier, likewise; in the first step of an episode they are of another one."""
        shown = self._observations[max(0, self.tick - self._base - 1)]
        return shown if slots is None else shown[slots]

    def begin(self, slot: int, observation: Any) -> None:
        """Put the first observation of a new episode into a lane.

        Raises:
            BrokenPromiseError: when it does not fit the observation space, or is not finite.
        """
        rows = self._observations[self.tick - self._base]
        rows[slot] = plain_observation(observation, rows.shape[1:], rows.dtype)
        if not are_finite(rows[slot]):
            raise BrokenPromiseError(f"its observation is not finite: {rows[slot].tolist()}")

    def act(self, acts: Acts, slots: Array | None) -> tuple[Array, Array]:
        """Keep what the policy did at this tick.

        Returns:
            Two views by lane, to be filled with what follows: the next observations, and the rewards of this tick.
        """
        row = self.tick - self._base
        where = slice(None) if slots is None else slots
        self._actions[row][where] = acts.actions
        if acts.outputs.shape[1]:
            self._output_column(acts.outputs)[row][where] = acts.outputs
        return self._observations[row + 1], self._rewards[row]

    @property
    def tick_bytes(self) -> int:
        """Of what one tick adds."""
        columns = (self._observations, self._actions, self._rewards, self._outputs)
        return sum(column[0].nbytes for column in columns if column is not None)

    @property
    def is_full(self) -> bool:
        """Whether `make_room` has to come before the next tick."""
        return self.tick - self._base == len(self._rewards)

    def make_room(self, oldest: int) -> None:
        """Make room for more ticks, keeping everything from tick `oldest` on."""
        used = self.tick - self._base
        start = oldest - self._base
        capacity = len(self._rewards) * (2 if used - start > len(self._rewards) // 2 else 1)
        self._observations = _moved(self._observations, start, used + 1, capacity + 1)
        self._actions = _moved(self._actions, start, used, capacity)
        self._rewards = _moved(self._rewards, start, used, capacity)
        if self._outputs is not None:
            self._outputs = _moved(self._outputs, start, used, capacity)
        self._base = oldest

    def cut(self, slot: int, first: int) -> Columns:
        """Copy out the episode that began at tick `first` in a lane and ended with the tick before this one."""
        steps = slice(first - self._base, self.tick - self._base)
        shown = slice(steps.start, steps.stop + 1)
        return Columns(
            observations=self._observations[shown, slot].copy(),
            actions=self._actions[steps, slot].copy(),
            rewards=self._rewards[steps, slot].copy(),
            policy_outputs=None if self._outputs is None else self._outputs[steps, slot].copy(),
        )

    def _output_column(self, outputs: Array) -> Array:
        if self._outputs is None:
            self._outputs = np.zeros((*self._rewards.shape, outputs.shape[1]), dtype=np.float32)
        return self._outputs


def _column(ticks: int, lanes: int, space: Space) -> Array:
    shape = (ticks, lanes) if space.is_discrete else (ticks, lanes, space.size)
    return np.zeros(shape, dtype=space.dtype)


def _moved(column: Array, start: int, stop: int, capacity: int) -> Array:
    """A column of another capacity whose first rows are rows `start` to `stop` of this one."""
    moved = np.zeros((capacity, *column.shape[1:]), dtype=column.dtype)
    moved[: stop - start] = column[start:stop]
    return moved


_RESET = "its reset does not return an observation and info, as Gymnasium's does"


def plain_observation(observation: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """An observation as its space promises it; wider floats are rounded to the type of the space.

    Raises:
        BrokenPromiseError: for another shape, no numbers, or a number that the space's type cannot hold.
    """
    if not shape and observation.__class__ in (int, np.int64):
        return observation
    try:
        values = np.asarray(observation)
    except ValueError as error:
        raise BrokenPromiseError("its observation is a list of lists of different lengths") from error
    if values.shape != shape or values.dtype.kind not in "fiub":
        given = f"{_brief(observation)} of shape {values.shape}"
        raise BrokenPromiseError(f"its observation is {given}; its space promises numbers of shape {shape}")
    with np.errstate(all="ignore"):
        cast = values.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(cast, values):
        raise BrokenPromiseError(f"its observation {_brief(values.tolist())} is not {dtype}, as its space promises")
    return cast


def describe_rounding(given: Any, plain: Any) -> str:
    """What `plain_observation` has changed, as a sentence; empty if nothing."""
    values, kept = np.asarray(given), np.asarray(plain)
    if values.dtype == kept.dtype or np.array_equal(values, kept):
        return ""
    return (
        f"the environment gives observations as {values.dtype}, but its space promises {kept.dtype}: the policy and "
        f"the dataset see them rounded to {kept.dtype}"
    )


def plain_reward(reward: Any) -> float:
    """A reward as a float.

    Raises:
        BrokenPromiseError: for None, an array, or anything else that is not a number.
    """
    if isinstance(reward, float | int | np.number | np.bool_) or (
        isinstance(reward, np.ndarray) and reward.shape == ()
    ):
        return float(reward)
    shape = f" of shape {reward.shape}" if isinstance(reward, np.ndarray) else ""
    instead = ", such as reward.item()" if isinstance(reward, np.ndarray) and reward.size == 1 else ""
    raise BrokenPromiseError(f"its reward is {_brief(reward)}{shape}; a single number is needed{instead}")


def first_observation(result: Any) -> Any:
    """The observation of what `reset` returned.

    Raises:
        BrokenPromiseError: when it is not a pair of an observation and info.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise BrokenPromiseError(_RESET)
    return result[0]


def are_finite(values: Array) -> bool:
    """Whether all numbers are finite."""
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def not_finite(observation: Array, reward: Array, acts: Acts, row: int) -> tuple[int, str] | None:
    """What of one lane's step is not finite: 0 for the step itself, 1 for the next one, and a description."""
    for what, value, later in (
        ("the policy's action", acts.actions[row], 0),
        ("the policy's output", acts.outputs[row], 0),
        ("its reward", reward, 0),
        ("its observation", observation, 1),
    ):
        if not are_finite(np.asarray(value)):
            return later, f"{what} is not finite: {_brief(np.asarray(value).tolist())}"
    return None


def _brief(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."
