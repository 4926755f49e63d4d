"""Conditions over named columns, written by a language model or a person, and read as hostile text.

A condition is parsed by DuckDB (parsed only, in a connection that reaches nothing) and then rebuilt, node by node, from
a short list of what is allowed: comparisons, BETWEEN, IN, AND, OR, NOT, arithmetic, numbers and a few functions of
known columns. All else is refused. The SQL that runs is written from what was rebuilt, never from the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

from ..errors import BadInput
from .predicate_pieces import AND, ATOM, COMPARED, NOT, OR, PRODUCT, SIGNED, SUM, Piece, build, call, join, name, number
from .trees import BEFORE, Node, RefusedError, parse_expression, quote

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
