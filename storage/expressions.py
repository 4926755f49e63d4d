"""Arithmetic and conditions over named numbers, written by a language model or a person, and read as hostile text.

An expression is parsed by DuckDB (parsed only, in a connection that reaches nothing) and then rebuilt, node by node,
from a short list of what is allowed: comparisons, BETWEEN, IN, AND, OR, NOT, CASE WHEN, arithmetic, numbers and a few
functions of known names. All else is refused. What runs is written from what was rebuilt, never from the text.

An expression has one meaning and two engines: SQL for the steps in a store, NumPy for a policy that plays. Numbers are
doubles as IEEE 754 computes them; "no value" is NaN, and a comparison with it is false. As a number, a condition is 1
or 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, reduce
from typing import Any, NamedTuple

import duckdb
import numpy as np

from .errors import BadInput
from .schema import Array, sql_name

Node = Mapping[str, Any]
Values = Mapping[str, Array]
"""Numbers by name, each of shape (N,)."""
Compute = Callable[[Values], Array]
BEFORE = "SELECT "
"""What the text is put behind; places in a tree are counted from its beginning."""

_BLANKS = str.maketrans("\t\r\n", "   ")
"""Ends of lines and tabs separate as spaces do: there are no comments that they could end."""
_PARTS = {"--": "a comment", "/*": "a comment", ";": "a second statement", "'": "a string", "\\": "a backslash"}


class RefusedError(Exception):
    """Something that is not allowed, in words."""


MAX_LENGTH = 1_000
"""Characters of an expression; an honest one has about a hundred."""
MAX_DEPTH = 50
"""Levels of operators and functions in each other."""
_MAX_NAMED = 60  # columns that a message lists
_MAX_SQL = 100_000  # characters; a few functions repeat what they are applied to


class _Function(NamedTuple):
    """A function that is allowed."""

    fewest: int  # numbers that it takes
    most: int
    sql: str  # with {0}, {1}, ... for the numbers, or {all}
    compute: Callable[..., Array]


def _greatest(*numbers: Array) -> Array:
    return reduce(np.maximum, numbers) + 0.0  # -0.0 becomes 0.0


def _least(*numbers: Array) -> Array:
    return -_greatest(*(-n for n in numbers)) + 0.0


def _clip(x: Array, low: Array, high: Array) -> Array:
    return _least(_greatest(x, low), high)


def _round(x: Array) -> Array:
    """Halves are rounded away from zero, as SQL does."""
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.copysign(1.0, x), whole)


def _power(base: Array, exponent: Array) -> Array:
    """As in C, where NumPy takes a power of 0.5 for a square root: that has no value for minus infinity."""
    is_odd_one_out = np.isneginf(base) & (exponent == 0.5)
    return np.where(is_odd_one_out, np.inf, np.power(base + 0.0, exponent))


_FUNCTIONS: Mapping[str, _Function] = {
    **{
        name: _Function(1, 1, f"{name}({{0}})", compute)
        for name, compute in {
            "abs": np.abs,
            "floor": np.floor,
            "ceil": np.ceil,
            "round": _round,
            "sqrt": np.sqrt,
            "exp": np.exp,
            "ln": np.log,
            "sin": np.sin,
            "cos": np.cos,
            "asin": np.arcsin,
            "acos": np.arccos,
        }.items()
    },
    "sign": _Function(1, 1, "CASE WHEN isnan({0}) THEN {0} ELSE sign({0})::DOUBLE END", np.sign),
    "atan2": _Function(2, 2, "atan2({0}, {1})", np.arctan2),
    # to DuckDB NaN is the greatest number, so that the least one is found as the greatest of the opposites
    "least": _Function(2, 8, "-greatest({opposites}) + 0e0", _least),
    "greatest": _Function(2, 8, "greatest({all}) + 0e0", _greatest),
    "clip": _Function(3, 3, "-greatest(-(greatest({0}, {1}) + 0e0), -{2}) + 0e0", _clip),
}
FUNCTIONS = tuple(_FUNCTIONS)
"""The names of the functions that are allowed."""
_ALIASES = {"min": "least", "max": "greatest"}

_ALLOWED = (
    "Allowed are comparisons, BETWEEN, IN, AND, OR, NOT, CASE WHEN, + - * / % **, numbers, the columns, and "
    f"{', '.join(FUNCTIONS)}."
)
OR, AND, NOT, COMPARED, SUM, PRODUCT, SIGNED, POWER, ATOM = range(1, 10)
"""How tightly the outermost sign of a piece binds."""
_COMPARISONS: Mapping[str, tuple[str, str, Callable[[Array, Array], Array]]] = {
    # as differences, because to DuckDB NaN is equal to itself and greater than all other numbers
    "COMPARE_EQUAL": ("=", "abs({0} - {1}) <= 0e0", lambda a, b: np.abs(a - b) <= 0),
    "COMPARE_NOTEQUAL": ("<>", "-abs({0} - {1}) < 0e0", lambda a, b: -np.abs(a - b) < 0),
    "COMPARE_LESSTHAN": ("<", "{0} - {1} < 0e0", lambda a, b: a - b < 0),
    "COMPARE_GREATERTHAN": (">", "{1} - {0} < 0e0", lambda a, b: b - a < 0),
    "COMPARE_LESSTHANOREQUALTO": ("<=", "{0} - {1} <= 0e0", lambda a, b: a - b <= 0),
    "COMPARE_GREATERTHANOREQUALTO": (">=", "{1} - {0} <= 0e0", lambda a, b: b - a <= 0),
}
_ARITHMETIC: Mapping[str, Callable[[Array, Array], Array]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "**": _power,
}
PREVIOUS = "previous."
"""Before the name of a component: its value one step earlier, which has no value in step 0."""
_CANONICAL_GROWTH = 8  # how many times longer a canonical text may be than what it was made from, at most
_NOTHING = "'nan'::DOUBLE"


@dataclass(frozen=True)
class Expression:
    """An expression that keeps every rule."""

    text: str  # canonical: equal expressions that differ in spaces, case or needless brackets have equal texts
    sql: str  # for DuckDB: columns quoted, numbers as doubles; never null where the columns are not, see `number_sql`
    columns: frozenset[str]  # that it reads
    is_condition: bool  # or else a number
    run: Compute = field(compare=False, repr=False)  # may warn, see `compute`
    level: int = field(default=ATOM, compare=False, repr=False)  # how tightly its outermost sign binds

    def compute(self, values: Values) -> Array:
        """Its value, element by element.

        Args:
            values: (N,) for each column that it reads.

        Returns:
            (N,) float64, or bool for a condition; () if it reads no column. Nothing is raised: what has no value is
            NaN, as a number divided by zero is infinite.
        """
        with np.errstate(all="ignore"):
            return np.asarray(self.run(values))

    @property
    def as_number(self) -> Expression:
        """1 for a condition that holds, 0 for another; a number unchanged."""
        if not self.is_condition:
            return self
        return replace(
            self,
            sql=f"({self.sql})::DOUBLE",
            is_condition=False,
            run=lambda values: np.asarray(self.run(values)).astype(np.float64),
            level=min(self.level, COMPARED),
        )


def read_expression(
    text: str, columns: Collection[str] | None, *, flags: Collection[str] = (), is_canonical: bool = False
) -> Expression:
    """Read an expression.

    Args:
        text: hostile until proven otherwise.
        columns: names that it may use; case does not count. None: any name.
        flags: those of them that are conditions, true or false.
        is_canonical: whether it was written by this function, and so may be longer.

    Raises:
        BadInput: quoting what is refused, with what is allowed.
    """
    try:
        limit = MAX_LENGTH * (_CANONICAL_GROWTH if is_canonical else 1)
        return _read(text, None if columns is None else tuple(columns), frozenset(flags), limit)
    except RefusedError as refused:
        raise BadInput(f"{refused}.", _ALLOWED if columns is None else _allowed(columns)) from None


def read_predicate(
    text: str, columns: Collection[str], *, flags: Collection[str] = (), is_canonical: bool = False
) -> Expression:
    """Read a condition, see `read_expression`.

    Raises:
        BadInput: also for a number, and for a condition that reads no column.
    """
    found = read_expression(text, columns, flags=flags, is_canonical=is_canonical)
    if not found.is_condition:
        raise BadInput(f"{quote(found.text)} is a number, not a condition.", _allowed(columns))
    if not found.columns:
        raise BadInput(f"{quote(found.text)} reads no column, so it is always the same.", _allowed(columns))
    return found


def read_formula(
    text: str, columns: Collection[str], *, flags: Collection[str] = (), is_canonical: bool = False
) -> Expression:
    """Read a number, see `read_expression`; a condition counts 1 or 0."""
    return read_expression(text, columns, flags=flags, is_canonical=is_canonical).as_number


def _allowed(columns: Collection[str]) -> str:
    now = [column for column in columns if not column.startswith(PREVIOUS)]
    named = ", ".join(now[:_MAX_NAMED]) + (f", and {len(now) - _MAX_NAMED} more" if len(now) > _MAX_NAMED else "")
    before = f"; {PREVIOUS}NAME is a component one step earlier" if len(now) < len(columns) else ""
    return f"{_ALLOWED} The columns are {named}{before}."


@lru_cache(maxsize=8_192)
def _read(text: str, columns: Sequence[str] | None, flags: frozenset[str], limit: int) -> Expression:
    if len(text) > limit:
        raise RefusedError(f"the expression has {len(text)} characters; {limit} are allowed")
    known = None if columns is None else {name.lower(): name for name in columns}
    text = text.translate(_BLANKS)
    found = _Reader(text, known, flags).read(parse_expression(text), MAX_DEPTH)
    return replace(found, sql=f"({found.sql})", level=ATOM)


class _Reader:
    """Rebuilds one expression."""

    def __init__(self, text: str, columns: Mapping[str, str] | None, flags: frozenset[str]) -> None:
        self._text = text
        self._columns = columns
        self._flags = flags

    def read(self, node: Node, depth: int) -> Expression:
        """Rebuild a node and what is in it."""
        if depth == 0:
            raise RefusedError(f"the expression is nested more than {MAX_DEPTH} levels deep")
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

    def numbers(self, nodes: Sequence[Node], depth: int) -> list[Expression]:
        """Rebuild nodes that have to be numbers; a condition becomes 1 or 0."""
        return [self.read(node, depth).as_number for node in nodes]

    def conditions(self, nodes: Sequence[Node], depth: int) -> list[Expression]:
        """Rebuild nodes that have to be conditions."""
        pieces = [self.read(node, depth) for node in nodes]
        for piece in pieces:
            if not piece.is_condition:
                raise RefusedError(f"{quote(piece.text)} is a number where a condition is needed")
        return pieces

    def column(self, node: Node, depth: int) -> Expression:
        """A column."""
        names = [str(name) for name in node.get("column_names", ())]
        called = ".".join(names)
        column = (called if len(names) == 1 else None) if self._columns is None else self._columns.get(called.lower())
        if column is None:
            raise RefusedError(f"there is no column {quote(called)}")
        parts = column.split(".", 1) if column.startswith(PREVIOUS) else [column]
        text = ".".join(part if _is_plain(part) else sql_name(part) for part in parts)
        is_flag = column in self._flags
        return Expression(
            text, sql_name(column), frozenset((column,)), is_flag, lambda values: np.asarray(values[column])
        )

    def constant(self, node: Node, depth: int) -> Expression:
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
        text = str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        sql = repr(value) if "e" in repr(value) else f"{value!r}e0"  # with an exponent DuckDB reads a double
        level = ATOM if value >= 0 else SIGNED
        return Expression(text, sql, frozenset(), False, lambda _: np.asarray(value), level)

    def comparison(self, node: Node, depth: int) -> Expression:
        """Two numbers compared."""
        sign, sql, compute = _COMPARISONS.get(str(node.get("type")), ("", "", None))
        if compute is None:
            raise self.refuse(node, "this comparison")
        pieces = self.numbers([node["left"], node["right"]], depth)
        return _build(f"{{0}} {sign} {{1}}", sql, compute, pieces, COMPARED, [SUM, SUM])

    def conjunction(self, node: Node, depth: int) -> Expression:
        """AND or OR."""
        kinds = {"CONJUNCTION_AND": ("AND", AND, np.logical_and), "CONJUNCTION_OR": ("OR", OR, np.logical_or)}
        word, level, compute = kinds.get(str(node.get("type")), ("", 0, None))
        if compute is None:
            raise self.refuse(node, "this")
        pieces = self.conditions(node["children"], depth)
        form = f" {word} ".join(f"{{{place}}}" for place in range(len(pieces)))
        return _build(form, form, lambda *parts: reduce(compute, parts), pieces, level, [level + 1] * len(pieces))

    def between(self, node: Node, depth: int) -> Expression:
        """A number between two others."""
        if node.get("type") != "COMPARE_BETWEEN":
            raise self.refuse(node, "this comparison")
        pieces = self.numbers([node["input"], node["lower"], node["upper"]], depth)
        sql = "({1} - {0} <= 0e0) AND ({0} - {2} <= 0e0)"

        def is_between(x: Array, low: Array, high: Array) -> Array:
            return (low - x <= 0) & (x - high <= 0)

        return _build("{0} BETWEEN {1} AND {2}", sql, is_between, pieces, COMPARED, [SUM] * 3)

    def operator(self, node: Node, depth: int) -> Expression:
        """NOT, or IN a list of numbers."""
        children = node.get("children", ())
        if node.get("type") == "OPERATOR_NOT":
            return _build("NOT {0}", "NOT {0}", np.logical_not, self.conditions(children, depth), NOT, [ATOM])
        if node.get("type") != "COMPARE_IN" or len(children) < 2:
            raise self.refuse(node, "this operator")
        pieces = self.numbers(children, depth)
        others = [f"{{{place}}}" for place in range(1, len(pieces))]
        text = f"{{0}} IN ({', '.join(others)})"
        sql = " OR ".join(f"(abs({{0}} - {other}) <= 0e0)" for other in others)
        return _build(text, sql, _is_among, pieces, COMPARED, [SUM] * len(pieces))

    def case(self, node: Node, depth: int) -> Expression:
        """CASE WHEN: the number of the first condition that holds, or else the last one, or else no value."""
        checks, last = node.get("case_checks", ()), node.get("else_expr") or {}
        whens = self.conditions([check["when_expr"] for check in checks], depth)
        open_ended = last.get("class") == "CONSTANT" and last.get("literal", {}).get("kind") == "NULL_LITERAL"
        thens = self.numbers([*(check["then_expr"] for check in checks), *([] if open_ended else [last])], depth)
        pieces = [piece for pair in zip(whens, thens, strict=False) for piece in pair] + thens[len(checks) :]
        start = "CASE" + "".join(f" WHEN {{{2 * n}}} THEN {{{2 * n + 1}}}" for n in range(len(checks)))
        end = "" if open_ended else f" ELSE {{{2 * len(checks)}}}"
        return _build(f"{start}{end} END", f"{start}{end or f' ELSE {_NOTHING}'} END", _choose, pieces, ATOM)

    def function(self, node: Node, depth: int) -> Expression:
        """Arithmetic, or one of the functions."""
        written = str(node.get("function_name")).lower()
        called = _ALIASES.get(written, "**" if written == "^" else written)
        extras = ("schema", "catalog", "filter", "distinct", "export_state")
        arguments = node.get("arguments", ())
        named = any(argument.get("name") for argument in arguments)
        if any(node.get(extra) for extra in extras) or node.get("order_bys", {}).get("orders") or named:
            raise self.refuse(node, "this form of a function")
        is_operator = bool(node.get("is_operator"))
        if called not in (_ARITHMETIC if is_operator else _FUNCTIONS):
            raise self.refuse(node, f"the {'operator' if is_operator else 'function'} {quote(written)}")
        pieces = self.numbers([argument["expression"] for argument in arguments], depth)
        if is_operator:
            return self._arithmetic(node, called, pieces)
        function = _FUNCTIONS[called]
        if not function.fewest <= len(pieces) <= function.most:
            raise self.refuse(node, f"{written} of {len(pieces)} numbers")
        text = f"{called}({', '.join(f'{{{place}}}' for place in range(len(pieces)))})"
        return _build(text, f"({function.sql})", function.compute, pieces, ATOM)

    def _arithmetic(self, node: Node, sign: str, pieces: Sequence[Expression]) -> Expression:
        if len(pieces) == 1 and sign in "+-":
            return pieces[0] if sign == "+" else _build("-{0}", "-{0}", np.negative, pieces, SIGNED, [ATOM])
        if len(pieces) != 2:
            raise RefusedError(f"{sign} of {len(pieces)} numbers is not allowed")
        form = f"{{0}} {sign} {{1}}"
        if sign != "**":
            level = SUM if sign in "+-" else PRODUCT  # read from the left
            return _build(form, form, _ARITHMETIC[sign], pieces, level, [level, level + 1])
        if pieces[0].level in _TWO_READINGS and not self._is_bracketed(node):
            written, one, other = _TWO_READINGS[pieces[0].level]
            raise RefusedError(f"`{written}` has two readings: write {one} or {other}")
        return _build(form, "pow({0} + 0e0, {1})", _power, pieces, POWER, [ATOM, ATOM])

    def _is_bracketed(self, node: Node) -> bool:
        """Whether brackets stand around the first number of an operator: its text begins behind theirs."""
        inner = node["arguments"][0]["expression"]
        start, inside = (int(each.get("query_location", 0)) - len(BEFORE) for each in (node, inner))
        return start < inside < len(self._text)


_TWO_READINGS: Mapping[int, tuple[str, str, str]] = {
    SIGNED: ("-x ** 2", "-(x ** 2)", "(-x) ** 2"),
    POWER: ("x ** 2 ** 3", "(x ** 2) ** 3", "x ** (2 ** 3)"),
}
"""What may stand before ** in brackets only: the text, and what it may mean."""
_READERS: Mapping[str, Callable[[_Reader, Node, int], Expression]] = {
    "COLUMN_REF": _Reader.column,
    "CONSTANT": _Reader.constant,
    "COMPARISON": _Reader.comparison,
    "CONJUNCTION": _Reader.conjunction,
    "BETWEEN": _Reader.between,
    "OPERATOR": _Reader.operator,
    "FUNCTION": _Reader.function,
    "CASE": _Reader.case,
}
_WHAT = {
    "SUBQUERY": "a query inside an expression",
    "CAST": "a cast",
    "WINDOW": "a window function",
    "PARAMETER": "a parameter",
    "STAR": "a star",
    "LAMBDA": "a lambda",
    "COLLATE": "a collation",
}


@cache
def _is_plain(column: str) -> bool:
    """Whether a column's name can stand in SQL without quotes: it is neither a word of SQL nor has odd characters."""
    try:
        return parse_expression(column).get("column_names") == [column]
    except RefusedError:
        return False


def _build(
    text: str,
    sql: str,
    compute: Callable[..., Array],
    parts: Sequence[Expression],
    level: int,
    least: Sequence[int] | None = None,
) -> Expression:
    """Put parts together: in the text with the brackets that are needed, in SQL with all of them.

    Args:
        text: with {0}, {1}, ... for the parts.
        sql: as the text; {all} are all parts, {opposites} their opposites.
        compute: the value, of the parts' values.
        parts: in their order.
        level: of the whole, which says also whether it is a number.
        least: for each part, the level from which on it needs no brackets; none needs any when None.

    Raises:
        RefusedError: if the SQL becomes too long.
    """
    enough = least or [OR] * len(parts)
    texts = [p.text if p.level >= own else f"({p.text})" for p, own in zip(parts, enough, strict=True)]
    inner = [part.sql if part.level == ATOM else f"({part.sql})" for part in parts]
    written = sql.format(*inner, all=", ".join(inner), opposites=", ".join(f"-{each}" for each in inner))
    if len(written) > _MAX_SQL:
        raise RefusedError("the expression is nested too deeply: its parts repeat each other too often")
    runs = [part.run for part in parts]
    return Expression(
        text.format(*texts),
        written,
        frozenset[str]().union(*(part.columns for part in parts)),
        level < SUM,
        lambda values: compute(*(run(values) for run in runs)),
        level,
    )


def number_sql(sql: str) -> str:
    """SQL of a column that expressions read, from SQL of numbers: null becomes no value, once and not in every use."""
    return f"coalesce({sql}, {_NOTHING})"


def _is_among(x: Array, *others: Array) -> Array:
    return reduce(np.logical_or, (np.abs(x - other) <= 0 for other in others))


def _choose(*parts: Array) -> Array:
    """The number of the first condition that holds; parts alternate, with the last one at the end, if there is one."""
    pairs = len(parts) // 2
    chosen = parts[-1] if len(parts) % 2 else np.float64(np.nan)
    for place in reversed(range(pairs)):
        chosen = np.where(parts[2 * place], parts[2 * place + 1], chosen)
    return np.asarray(chosen)


def parse_expression(text: str) -> Node:
    """DuckDB's tree of one expression.

    Raises:
        RefusedError: if the text is not exactly one expression, or holds characters that no expression needs.
    """
    for part, what in _PARTS.items():
        if part in text:
            raise RefusedError(f"the expression has {what} ({part})")
    if not text.isascii() or not text.isprintable():
        odd = next(c for c in text if not (c.isascii() and c.isprintable()))
        raise RefusedError(f"the expression has the character {odd!a}")
    tree = _tree(f"{BEFORE}{text}")
    if tree.get("error"):
        message = str(tree.get("error_message") or "it cannot be parsed").strip().split("\n", 1)[0][:200]
        raise RefusedError(f"{quote(text)} is no expression: {message}")
    statements = tree["statements"]
    expressions = statements[0]["node"].get("select_list", [])
    plain = len(statements) == len(expressions) == 1 and _skeleton(tree) == _bare_skeleton()
    if not plain or _tree(f"{BEFORE}({text})").get("error"):  # brackets hold an expression, and no clause behind it
        raise RefusedError(f"{quote(text)} is more than an expression")
    return expressions[0]


def _tree(sql: str) -> dict[str, Any]:
    try:
        found = _parser().cursor().execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    except duckdb.Error as error:
        return {"error": True, "error_message": str(error)}
    try:
        return json.loads(found[0]) if found else {"error": True}
    except RecursionError:
        raise RefusedError("the expression is nested too deeply") from None


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
    """A piece of an expression, for a message."""
    shown = text if len(text) <= 80 else f"{text[:79]}…"
    return f"`{shown}`"
