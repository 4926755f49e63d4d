"""One expression as DuckDB parses it, from text that is hostile until proven otherwise. Nothing is planned or run.

What an expression may hold is decided in `predicates.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import duckdb

Node = Mapping[str, Any]
BEFORE = "SELECT "
"""What the text is put behind; places in a tree are counted from its beginning."""

_PARTS = {"--": "a comment", "/*": "a comment", ";": "a second statement", "'": "a string", "\\": "a backslash"}


class RefusedError(Exception):
    """Something that is not allowed, in words."""


def parse_expression(text: str) -> Node:
    """DuckDB's tree of one expression.

    Raises:
        RefusedError: if the text is not exactly one expression, or holds characters that no condition needs.
    """
    for part, what in _PARTS.items():
        if part in text:
            raise RefusedError(f"the condition has {what} ({part})")
    if not text.isascii() or not text.isprintable():
        odd = next(c for c in text if not (c.isascii() and c.isprintable()))
        raise RefusedError(f"the condition has the character {odd!a}")
    tree = _tree(f"{BEFORE}{text}")
    if tree.get("error"):
        raise RefusedError(f"{quote(text)} is no condition: {_first_line(tree.get('error_message'))}")
    statements = tree["statements"]
    expressions = statements[0]["node"].get("select_list", [])
    plain = len(statements) == len(expressions) == 1 and _skeleton(tree) == _bare_skeleton()
    if not plain or _tree(f"{BEFORE}({text})").get("error"):  # brackets hold an expression, and no clause behind it
        raise RefusedError(f"{quote(text)} is more than a condition")
    return expressions[0]


def _tree(sql: str) -> dict[str, Any]:
    try:
        found = _parser().cursor().execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    except duckdb.Error as error:
        return {"error": True, "error_message": str(error)}
    try:
        return json.loads(found[0]) if found else {"error": True}
    except RecursionError:
        raise RefusedError("the condition is nested too deeply") from None


def _skeleton(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stands around the expressions of a statement."""
    nodes = [(statement, statement["node"]) for statement in tree["statements"]]
    return [
        {**statement, "node": {name: value for name, value in node.items() if name != "select_list"}}
        for statement, node in nodes
    ]


@cache
def _bare_skeleton() -> list[dict[str, Any]]:
    return _skeleton(_tree(f"{BEFORE}1"))


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A connection of its own that holds nothing and reaches nothing; it parses and never plans."""
    closed: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1,  # none in the background, so that a forked process may go on with it
        "enable_external_access": "false",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
    }
    con = duckdb.connect(":memory:", config=closed)
    con.execute("SET python_enable_replacements = false")
    con.execute("SET lock_configuration = true")
    return con


def quote(text: str) -> str:
    """A piece of a condition, for a message."""
    shown = text if len(text) <= 80 else f"{text[:79]}…"
    return f"`{shown}`"


def _first_line(message: object) -> str:
    return str(message or "it cannot be parsed").strip().split("\n", 1)[0][:200]
