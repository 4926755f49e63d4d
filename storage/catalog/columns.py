"""The columns of tables and views: types, names of an observation's components, and what each means in words.

The words are read from `comments.toml`, and written as the catalog's comments.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..content_hash import sql_name, sql_text
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


_FILE = Path(__file__).with_name("comments.toml")
_COMPONENT = "Component of the observation, where the dataset has one of this name."


class Described(NamedTuple):
    """A table or a view, in words."""

    name: str
    is_view: bool
    about: str
    columns: Mapping[str, str]  # in their order


@cache
def described_tables() -> tuple[Described, ...]:
    """All tables and views; the first five are those that matter first."""
    known: dict[str, Any] = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return tuple(_describe(name, known["tables"], known["columns"]) for name in known["tables"])


def _describe(name: str, tables: Mapping[str, Mapping[str, Any]], shared: Mapping[str, str]) -> Described:
    own = tables[name]
    words = {**shared, **tables.get(own.get("like", ""), own), **own}
    return Described(
        name, own.get("view", False), own["about"], {each: words[each] for each in words["columns"].split()}
    )


def comment_on(names: Iterable[str] | None = None, components: Iterable[str] = ()) -> list[str]:
    """Statements that write the comments.

    Args:
        names: of tables and views; all when None.
        components: columns of `annotated_steps` that are named after a component of an observation.
    """
    wanted = None if names is None else set(names)
    found = [each for each in described_tables() if wanted is None or each.name in wanted]
    more = {"annotated_steps": dict.fromkeys(components, _COMPONENT)}
    return [
        statement
        for each in found
        for statement in (
            f"COMMENT ON {'VIEW' if each.is_view else 'TABLE'} {each.name} IS {sql_text(each.about)}",
            *(
                f"COMMENT ON COLUMN {each.name}.{sql_name(column)} IS {sql_text(words)}"
                for column, words in {**each.columns, **more.get(each.name, {})}.items()
            ),
        )
    ]
