"""Checks that an episode fits its dataset: shapes, dtypes, lengths and actions. Nothing is converted."""

from __future__ import annotations

import numpy as np

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
from .columns import DTYPES, StepArrays, output_size

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
