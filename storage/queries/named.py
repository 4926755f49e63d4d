"""Questions with a name: each is a file `FOLDER/NAME.sql` beside this one, for the page that shows its answer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ..catalog import Connection

Row = dict[str, Any]
_FOLDER = Path(__file__).parent


def ask(con: Connection, name: str, **values: object) -> list[Row]:
    """The rows of an answer, each as a dictionary by column.

    Args:
        con: a connection to the catalog.
        name: of the question, `report/arms` for example.
        values: for its parameters, by name.
    """
    return rows_of(con.execute(_question(name), values))


def rows_of(answer: Connection) -> list[Row]:
    """All rows of an executed statement, each as a dictionary by column."""
    names = [column[0] for column in answer.description or ()]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


@cache
def _question(name: str) -> str:
    return (_FOLDER / f"{name}.sql").read_text()
