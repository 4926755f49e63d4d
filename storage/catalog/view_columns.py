"""The columns of the views: their types, the names of an observation's components, and when two actions agree."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..schema import Space

AGREEMENT_SHARE = 0.05
"""A suggested number agrees with another one within this share of its range."""
MAX_NAMED_COMPONENTS = 512
"""A dataset with more components than this has them only as `observation[i]`."""


STEP_TYPES = {
    "observation": "DOUBLE[]",
    "action": "BIGINT",
    "action_vector": "DOUBLE[]",
    "action_name": "VARCHAR",
    "reward": "DOUBLE",
    "terminated": "BOOLEAN",
    "truncated": "BOOLEAN",
    "policy_output": "FLOAT[]",
    "seed": "BIGINT",
}
KEY_TYPES = {"dataset_id": "VARCHAR", "episode_id": "BIGINT", "step": "INTEGER"}
NOTE_TYPES = {
    "annotation_id": "VARCHAR",
    "run_id": "VARCHAR",
    "request_id": "VARCHAR",
    **KEY_TYPES,
    "critical": "BOOLEAN",
    "suggested_action": "DOUBLE[]",
    "suggested_label": "VARCHAR",
    "implicit_reward": "DOUBLE",
    "confidence": "DOUBLE",
    "rationale": "VARCHAR",
    "model": "VARCHAR",
    "prompt_version": "VARCHAR",
    "created_at": "TIMESTAMPTZ",
}
JOINED_TYPES = {"agrees": "BOOLEAN", "return_": "DOUBLE", "length": "INTEGER"}


def component_columns(names: Sequence[str]) -> list[str]:
    """The columns of `annotated_steps` that hold an observation's components, in their order.

    A name becomes an SQL identifier; one that is a column of the view already gets the prefix `obs_`.
    """
    taken = {*NOTE_TYPES, *STEP_TYPES, *JOINED_TYPES}
    columns: list[str] = []
    for name in names[:MAX_NAMED_COMPONENTS] if len(names) <= MAX_NAMED_COMPONENTS else []:
        plain = re.sub(r"\W+", "_", name)
        column = f"obs_{plain}" if plain.lower() in taken or not re.match(r"[^\W\d]", plain) else plain
        while column.lower() in taken:
            column += "_"
        taken.add(column.lower())
        columns.append(column)
    return columns


def same_action(space: Space, left: str, right: str) -> str:
    """SQL that says whether two actions, each a DOUBLE[], agree.

    Args:
        space: of the actions.
        left: SQL of the first.
        right: SQL of the second; where a number has no bounds, its size sets the tolerance.
    """
    if space.is_discrete:
        return f"{left}[1] = {right}[1]"
    return " AND ".join(
        f"abs({left}[{place}] - {right}[{place}]) <= {_tolerance(space, place, right)}"
        for place in range(1, space.size + 1)
    )


def _tolerance(space: Space, place: int, reference: str) -> str:
    low, high = (bounds[place - 1] if bounds else math.inf for bounds in (space.low, space.high))
    if math.isfinite(low) and math.isfinite(high):
        return repr(AGREEMENT_SHARE * (high - low))
    return f"{AGREEMENT_SHARE} * greatest(1, abs({reference}[{place}]))"
