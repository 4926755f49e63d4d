"""What an environment gives, held against what Gymnasium and its spaces promise: what differs is said, not stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from refine.policies import Acts
from storage.errors import BadInput
from storage.schema import Array

_STEP = "its step does not return observation, reward, terminated, truncated and info, as Gymnasium's does"
_RESET = "its reset does not return an observation and info, as Gymnasium's does"


class BrokenPromiseError(Exception):
    """Something that an environment gave and that cannot be stored; the text says what."""


def broken(episode_id: int, step: int, text: str, hint: str = "") -> BadInput:
    """The error for an episode that cannot be gone on with."""
    return BadInput(f"Episode {episode_id}, step {step}: {text}.", hint)


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
    """What `plain_observation` has changed, in a sentence; empty where it is the same number for number."""
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
        BrokenPromiseError: for None, an array, or anything else that is no number.
    """
    if isinstance(reward, float | int | np.number | np.bool_) or (
        isinstance(reward, np.ndarray) and reward.shape == ()
    ):
        return float(reward)
    shape = f" of shape {reward.shape}" if isinstance(reward, np.ndarray) else ""
    raise BrokenPromiseError(f"its reward is {_brief(reward)}{shape}; a single number is needed")


def first_observation(result: Any) -> Any:
    """The observation of what `reset` returned.

    Raises:
        BrokenPromiseError: when it is no pair of an observation and info.
    """
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise BrokenPromiseError(_RESET)
    return result[0]


def complaint(error: Exception) -> str:
    """What went wrong in an environment's own code, in one line."""
    if isinstance(error, BrokenPromiseError):
        return str(error)
    if "to unpack" in str(error) and isinstance(error, ValueError | TypeError):
        return _STEP
    text = " ".join(str(error).split())
    return f"its environment raised {type(error).__name__}{f': {text[:300]}' if text else ''}".rstrip(".")


def are_finite(values: Array) -> bool:
    """Whether all numbers are finite."""
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def not_finite(observation: Array, reward: Array, acts: Acts, row: int) -> tuple[int, str] | None:
    """What of one lane's step is not finite: 0 for the step itself, 1 for the one behind it, and what it is."""
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
