"""What the tables, views and columns of the catalog mean: read from `comments.toml`, and written as its comments."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..expressions import sql_name, sql_text

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
