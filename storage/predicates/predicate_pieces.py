"""Pieces of a condition that were found to be allowed, and how they are put together, as text and as SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    quoted = '"' + column.replace('"', '""') + '"'
    return Piece(True, column if is_plain else quoted, quoted, frozenset((column,)))


def _columns_of(pieces: Sequence[Piece]) -> frozenset[str]:
    return frozenset[str]().union(*(piece.columns for piece in pieces))
