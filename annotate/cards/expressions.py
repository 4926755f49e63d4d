"""Small arithmetic over named numbers, as cards write it; it is interpreted here, never handed to Python's `eval`.

What the names stand for is the caller's business.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator

from storage.disk import shorten
from storage.schema import Array

_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.Not: np.logical_not,
    ast.And: np.logical_and,
    ast.Or: np.logical_or,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: Mapping[str, tuple[int, Callable[..., Array]]] = {
    "abs": (1, np.abs),
    "sqrt": (1, np.sqrt),
    "sin": (1, np.sin),
    "cos": (1, np.cos),
    "atan2": (2, np.arctan2),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
}
_MAX_LENGTH = 1000
_MAX_DEPTH = 50
_MAX_WHOLE = 2**53  # beyond it Python's own numbers would be worked with, and one power of them never ends


def names_in(expression: str) -> frozenset[str]:
    """The names that an expression needs values for.

    Raises:
        ValueError: if the text is not an expression of this language.
    """
    tree = _parse(expression)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called)


def evaluate(expression: str, values: Mapping[str, Array]) -> Array:
    """The value of an expression, element by element.

    Args:
        expression: numbers, names, `+ - * / % **`, comparisons, `and`, `or`, `not` and the functions
            abs, sqrt, sin, cos, atan2, min, max.
        values: an array of shape (N,) for each name.

    Returns:
        An array of shape (N,), boolean for a comparison; of shape () if the expression has no names. Nothing is raised
        for a division by zero; the result is infinite or not a number there.

    Raises:
        ValueError: if the text is not an expression of this language, a name has no value, or its pieces do not fit.
    """
    missing = names_in(expression) - values.keys()
    if missing:
        raise ValueError(f"{expression!r} uses {', '.join(sorted(missing))}; known are {', '.join(sorted(values))}")
    try:
        with np.errstate(all="ignore"):
            return np.asarray(_value(_parse(expression), values))
    except TypeError as error:  # a difference of comparisons
        raise ValueError(f"{shorten(repr(expression))} cannot be worked out: {error}") from error


def _checked(expression: str) -> str:
    names_in(expression)
    return expression


Expression = Annotated[str, AfterValidator(_checked)]


@lru_cache(maxsize=512)
def _parse(expression: str) -> ast.expr:
    if len(expression) > _MAX_LENGTH:
        raise ValueError(f"an expression has at most {_MAX_LENGTH} characters, this one {len(expression)}")
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{expression!r} is not an expression") from error
    _check(tree, expression, _MAX_DEPTH)
    _refuse_large(tree, expression)
    return tree


def _refuse_large(tree: ast.expr, expression: str) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value > _MAX_WHOLE:
            raise ValueError(f"{shorten(repr(expression))} has a whole number beyond {_MAX_WHOLE}; write it as 1e20")


def _check(node: ast.expr, expression: str, depth: int) -> None:
    if depth == 0:
        raise ValueError(f"{expression!r} is nested too deeply")
    match node:
        case ast.Constant(value=bool() | int() | float()) | ast.Name():
            return
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            if len(arguments) != _FUNCTIONS[name][0]:
                raise ValueError(f"{name} in {expression!r} takes {_FUNCTIONS[name][0]} argument(s)")
            children = arguments
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            children = [node.left, node.right]
        case ast.UnaryOp(op=op) if type(op) in _OPERATORS:
            children = [node.operand]
        case ast.BoolOp():
            children = node.values
        case ast.Compare(ops=ops) if all(type(op) in _OPERATORS for op in ops):
            children = [node.left, *node.comparators]
        case _:
            raise ValueError(f"{ast.unparse(node)!r} in {expression!r} is not allowed in a card's expression")
    for child in children:
        _check(child, expression, depth - 1)


def _value(node: ast.expr, values: Mapping[str, Array]) -> Array:
    match node:
        case ast.Constant(value=bool() | int() | float() as number):
            return np.asarray(number)
        case ast.Name(id=name):
            return values[name]
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name][1](*(_value(argument, values) for argument in arguments))
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand, values))
        case ast.BoolOp(op=op, values=parts):
            return _fold(_OPERATORS[type(op)], [_value(part, values) for part in parts])
        case ast.Compare(left=left, ops=ops, comparators=rights):
            sides = [_value(side, values) for side in (left, *rights)]
            pairs = zip(ops, sides[:-1], sides[1:], strict=True)
            return _fold(np.logical_and, [_OPERATORS[type(op)](a, b) for op, a, b in pairs])
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is not an expression")


def _fold(join: Callable[..., Array], parts: list[Array]) -> Array:
    whole = parts[0]
    for part in parts[1:]:
        whole = join(whole, part)
    return whole
