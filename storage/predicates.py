"""Conditions over named columns, written by a language model or a person, and read as hostile text.

A condition is parsed by DuckDB (parsed only, in a connection that reaches nothing) and then rebuilt, node by node, from
a short list of what is allowed: comparisons, BETWEEN, IN, AND, OR, NOT, arithmetic, numbers and a few functions of
known columns. All else is refused. The SQL that runs is written from what was rebuilt, never from the text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import duckdb

from .errors import BadInput

Node = Mapping[str, Any]
BEFORE = "SELECT "
"""What the text is put behind; places in a tree are counted from its beginning."""

_PARTS = {"--": "a comment", "/*": "a comment", ";": "a second statement", "'": "a string", "\\": "a backslash"}


class RefusedError(Exception):
    """Something that is not allowed, in words."""


MAX_LENGTH = 500
"""Characters of a condition; an honest one has about fifty."""
MAX_DEPTH = 24
"""Levels of operators and functions in each other."""
FUNCTIONS: Mapping[str, tuple[int, int]] = {
    "abs": (1, 1),
    "sign": (1, 1),
    "floor": (1, 1),
    "ceil": (1, 1),
    "round": (1, 1),
    "sqrt": (1, 1),
    "sin": (1, 1),
    "cos": (1, 1),
    "atan2": (2, 2),
    "least": (2, 8),
    "greatest": (2, 8),
}
"""The functions that are allowed, with the fewest and the most numbers that each takes."""

_ALLOWED = (
    f"Allowed are comparisons, BETWEEN, IN, AND, OR, NOT, + - * / %, numbers, the columns, and {', '.join(FUNCTIONS)}."
)
_COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
_ARITHMETIC = ("+", "-", "*", "/", "%")
_CANONICAL_GROWTH = 8  # how many times longer a canonical text may be than what it was made from, at most


class Predicate(NamedTuple):
    """A condition that keeps every rule."""

    text: str  # canonical: equal conditions that differ in spaces, case or needless brackets have equal texts
    sql: str  # for DuckDB: columns quoted, numbers as doubles; true or false in every row, whatever its numbers
    columns: frozenset[str]  # that it reads


def read_predicate(text: str, columns: Collection[str], *, is_canonical: bool = False) -> Predicate:
    """Read a condition.

    Args:
        text: hostile until proven otherwise.
        columns: names that it may use; case does not count.
        is_canonical: whether it was written by this function, and so may be longer.

    Raises:
        BadInput: quoting what is refused, with what is allowed.
    """
    try:
        limit = MAX_LENGTH * (_CANONICAL_GROWTH if is_canonical else 1)
        return _read(text, tuple(columns), limit)
    except RefusedError as refused:
        raise BadInput(f"{refused}.", f"{_ALLOWED} The columns are {', '.join(columns)}.") from None


@lru_cache(maxsize=8_192)
def _read(text: str, columns: Sequence[str], limit: int) -> Predicate:
    if len(text) > limit:
        raise RefusedError(f"the condition has {len(text)} characters; {limit} are allowed")
    piece = _Reader(text, {name.lower(): name for name in columns}).read(parse_expression(text), MAX_DEPTH)
    if piece.is_number:
        raise RefusedError(f"{quote(piece.text)} is a number, not a condition")
    if not piece.columns:
        raise RefusedError(f"{quote(piece.text)} reads no column, so it is always the same")
    return Predicate(piece.text, f"coalesce({piece.sql}, false)", piece.columns)


class _Reader:
    """Rebuilds one condition."""

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self._text = text
        self._columns = columns

    def read(self, node: Node, depth: int) -> Piece:
        """Rebuild a node and what is in it."""
        if depth == 0:
            raise RefusedError(f"the condition is nested more than {MAX_DEPTH} levels deep")
        kind = str(node.get("class"))
        reader = _READERS.get(kind)
        if reader is None or node.get("alias"):
            raise self.refuse(node, _WHAT.get(kind, "this"))
        return reader(self, node, depth - 1)

    def refuse(self, node: Node, what: str) -> RefusedError:
        """Quote the piece of the text that a node stands for."""
        start, length = int(node.get("query_location", 0)) - len(BEFORE), int(node.get("query_location_length", 0))
        inside = 0 <= start < len(self._text) and length > 0
        piece = self._text[start : start + length] if inside else self._text
        return RefusedError(f"{what} is not allowed: {quote(piece)}")

    def numbers(self, nodes: Sequence[Node], depth: int) -> list[Piece]:
        """Rebuild nodes that have to be numbers."""
        return self._all(nodes, depth, is_number=True)

    def conditions(self, nodes: Sequence[Node], depth: int) -> list[Piece]:
        """Rebuild nodes that have to be conditions."""
        return self._all(nodes, depth, is_number=False)

    def _all(self, nodes: Sequence[Node], depth: int, *, is_number: bool) -> list[Piece]:
        pieces = [self.read(node, depth) for node in nodes]
        for piece in pieces:
            if piece.is_number != is_number:
                found, wanted = ("a condition", "a number") if is_number else ("a number", "a condition")
                raise RefusedError(f"{quote(piece.text)} is {found} where {wanted} is needed")
        return pieces

    def column(self, node: Node, depth: int) -> Piece:
        """A column."""
        names = [str(name) for name in node.get("column_names", ())]
        column = self._columns.get(names[0].lower()) if len(names) == 1 else None
        if column is None:
            raise RefusedError(f"there is no column {quote('.'.join(names))}")
        return name(column, is_plain=_is_plain(column))

    def constant(self, node: Node, depth: int) -> Piece:
        """A number."""
        literal = node.get("literal", {})
        if literal.get("kind") not in ("INTEGER", "NUMERIC"):
            raise self.refuse(node, "anything but a number")
        try:
            value = float(str(literal.get("text")))
        except ValueError:
            raise self.refuse(node, "this number") from None
        if not math.isfinite(value):
            raise self.refuse(node, "a number of this size")
        return number(value)

    def comparison(self, node: Node, depth: int) -> Piece:
        """Two numbers compared."""
        sign = _COMPARISONS.get(str(node.get("type")))
        if sign is None:
            raise self.refuse(node, "this comparison")
        return join(sign, self.numbers([node["left"], node["right"]], depth), COMPARED)

    def conjunction(self, node: Node, depth: int) -> Piece:
        """AND or OR."""
        levels = {"CONJUNCTION_AND": ("AND", AND), "CONJUNCTION_OR": ("OR", OR)}
        word, level = levels.get(str(node.get("type")), ("", 0))
        if not word:
            raise self.refuse(node, "this")
        return join(word, self.conditions(node["children"], depth), level)

    def between(self, node: Node, depth: int) -> Piece:
        """A number between two others."""
        if node.get("type") != "COMPARE_BETWEEN":
            raise self.refuse(node, "this comparison")
        pieces = self.numbers([node["input"], node["lower"], node["upper"]], depth)
        return build("{} BETWEEN {} AND {}", pieces, COMPARED, [SUM] * 3)

    def operator(self, node: Node, depth: int) -> Piece:
        """NOT, or IN a list of numbers."""
        children = node.get("children", ())
        if node.get("type") == "OPERATOR_NOT":
            return build("NOT {}", self.conditions(children, depth), NOT, [ATOM])
        if node.get("type") != "COMPARE_IN" or len(children) < 2:
            raise self.refuse(node, "this operator")
        pieces = self.numbers(children, depth)
        form = "{} IN (" + ", ".join(["{}"] * (len(pieces) - 1)) + ")"
        return build(form, pieces, COMPARED, [SUM] * len(pieces))

    def function(self, node: Node, depth: int) -> Piece:
        """Arithmetic, or one of the functions."""
        called = str(node.get("function_name")).lower()
        extras = ("schema", "catalog", "filter", "distinct", "export_state")
        arguments = node.get("arguments", ())
        named = any(argument.get("name") for argument in arguments)
        if any(node.get(extra) for extra in extras) or node.get("order_bys", {}).get("orders") or named:
            raise self.refuse(node, "this form of a function")
        is_operator = bool(node.get("is_operator"))
        if called not in (_ARITHMETIC if is_operator else FUNCTIONS):
            raise self.refuse(node, f"the {'operator' if is_operator else 'function'} {quote(called)}")
        pieces = self.numbers([argument["expression"] for argument in arguments], depth)
        if is_operator:
            return _arithmetic(called, pieces)
        fewest, most = FUNCTIONS[called]
        if not fewest <= len(pieces) <= most:
            raise self.refuse(node, f"{called} of {len(pieces)} numbers")
        return call(called, pieces)


_READERS: Mapping[str, Callable[[_Reader, Node, int], Piece]] = {
    "COLUMN_REF": _Reader.column,
    "CONSTANT": _Reader.constant,
    "COMPARISON": _Reader.comparison,
    "CONJUNCTION": _Reader.conjunction,
    "BETWEEN": _Reader.between,
    "OPERATOR": _Reader.operator,
    "FUNCTION": _Reader.function,
}
_WHAT = {
    "SUBQUERY": "a query inside a condition",
    "CAST": "a cast",
    "CASE": "CASE",
    "WINDOW": "a window function",
    "PARAMETER": "a parameter",
    "STAR": "a star",
    "LAMBDA": "a lambda",
    "COLLATE": "a collation",
}


def _arithmetic(sign: str, pieces: Sequence[Piece]) -> Piece:
    if len(pieces) == 1 and sign in "+-":
        return pieces[0] if sign == "+" else build("-{}", pieces, SIGNED, [ATOM])
    if len(pieces) != 2:
        raise RefusedError(f"{sign} of {len(pieces)} numbers is not allowed")
    return join(sign, pieces, SUM if sign in "+-" else PRODUCT)


@cache
def _is_plain(column: str) -> bool:
    """Whether a column's name can stand in SQL without quotes: it is neither a word of SQL nor has odd characters."""
    try:
        return parse_expression(column).get("column_names") == [column]
    except RefusedError:
        return False


OR, AND, NOT, COMPARED, SUM, PRODUCT, SIGNED, ATOM = range(1, 9)
"""How tightly the outermost sign of a piece binds."""
_PARTIAL = ("sqrt", "sin", "cos")  # DuckDB raises an error where these have no value


@dataclass(frozen=True)
class Piece:
    """A part of a condition, rebuilt."""

    is_number: bool  # or else true or false
    text: str
    sql: str
    columns: frozenset[str] = frozenset()
    level: int = ATOM  # how tightly its outermost sign binds


def number(value: float) -> Piece:
    """A number; DuckDB reads it as a double."""
    text = str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    sql = repr(value) if "e" in repr(value) else f"{value!r}e0"  # with an exponent DuckDB reads a double
    return Piece(True, text, sql, level=ATOM if value >= 0 else SIGNED)


def join(sign: str, pieces: Sequence[Piece], level: int) -> Piece:
    """Parts with a sign between them; sums and products are read from the left."""
    least = [level if level in (SUM, PRODUCT) else level + 1, *[level + 1] * (len(pieces) - 1)]
    return build(f" {sign} ".join(["{}"] * len(pieces)), pieces, level, least)


def build(form: str, pieces: Sequence[Piece], level: int, least: Sequence[int]) -> Piece:
    """Put parts together: in the text with the brackets that are needed, in SQL with all of them.

    Args:
        form: with one `{}` for each part.
        pieces: the parts.
        level: of the whole.
        least: for each part, the level from which on it needs no brackets.
    """
    texts = [p.text if p.level >= enough else f"({p.text})" for p, enough in zip(pieces, least, strict=True)]
    inner = [p.sql if p.level == ATOM else f"({p.sql})" for p in pieces]
    return Piece(level >= SUM, form.format(*texts), form.format(*inner), _columns_of(pieces), level)


def call(function: str, pieces: Sequence[Piece]) -> Piece:
    """A function of numbers; where it has no value, the result is null, which no comparison matches."""
    text = f"{function}({', '.join(piece.text for piece in pieces)})"
    sql = f"{function}({', '.join(piece.sql for piece in pieces)})"
    return Piece(True, text, f"TRY({sql})" if function in _PARTIAL else sql, _columns_of(pieces))


def name(column: str, *, is_plain: bool) -> Piece:
    """A column, in the text without quotes where it needs none."""
    quoted = sql_name(column)
    return Piece(True, column if is_plain else quoted, quoted, frozenset((column,)))


def _columns_of(pieces: Sequence[Piece]) -> frozenset[str]:
    return frozenset[str]().union(*(piece.columns for piece in pieces))


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


def sql_text(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def sql_name(name: str) -> str:
    """The name of a column or table as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'
