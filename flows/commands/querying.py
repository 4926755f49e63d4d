"""`sql` and `figures`: asking what is there."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import DEFAULT_STORE, JsonOption, StoreOption
from .output import print_json, print_lines, print_table

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(sql)
    app.command()(figures)


def sql(
    query: Annotated[
        str, typer.Argument(help="One reading statement: SELECT, WITH, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN.")
    ],
    store: StoreOption = DEFAULT_STORE,
    format_: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the catalog and the steps anything; nothing can be changed from here.

    Tables: datasets, episodes, annotation_runs, requests, responses, annotations, rejections, policies, refinements,
    evaluations, replays. Views: steps, annotated_steps, label_quality, spending, leaderboard.
    """
    from storage.queries import run_query
    from storage.store import Store

    rows = run_query(Store.open(store), query)
    if format_ is not Format.PARQUET:
        rows = _with_plain_numbers(rows)
    if as_json:
        print_json({"columns": rows.column_names, "rows": rows.to_pylist()})
    else:
        write_rows(rows, format_, output)


def _with_plain_numbers(rows: pa.Table) -> pa.Table:
    """SQL's decimal numbers, such as `0.9` in a query, as doubles: JSON has no others."""
    import pyarrow as pa

    if not any(pa.types.is_decimal(field.type) for field in rows.schema):
        return rows
    plain = [pa.field(field.name, pa.float64()) if pa.types.is_decimal(field.type) else field for field in rows.schema]
    return rows.cast(pa.schema(plain))


def write_rows(rows: pa.Table, format_: Format, output: Path | None) -> None:
    """Print rows, or write them to a file; Parquet needs a file or a pipe."""
    from storage.errors import BadInput

    if format_ is Format.TABLE and output is None:
        print_table("1 row" if rows.num_rows == 1 else f"{rows.num_rows} rows", rows.to_pylist())
        return
    if format_ is Format.PARQUET and output is None and sys.stdout.isatty():
        raise BadInput("Parquet is not for a terminal.", "Add --output FILE, or send it into a pipe.")
    content = encode_rows(rows, format_)
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        from storage.files import write_whole

        write_whole(output, content)


def encode_rows(rows: pa.Table, format_: Format) -> bytes:
    """Rows as JSON lines, CSV (lists as JSON text), Parquet, or a table for a text file."""
    import io

    import polars as pl

    frame = pl.DataFrame(pl.from_arrow(rows))
    if format_ is Format.PARQUET:
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        return buffer.getvalue()
    if format_ is Format.CSV:
        nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
        return frame.with_columns(pl.col(nested).map_elements(_list_text, return_dtype=pl.String)).write_csv().encode()
    return frame.write_ndjson().encode()


def _list_text(values: pl.Series) -> str:
    import json

    return json.dumps(values.to_list())


def figures(
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[Path, typer.Option("--out", help="Folder of the pictures; made if need be.")] = Path(),
    comparison: Annotated[
        str | None, typer.Option("--comparison", help="Comparison id or its beginning; default: the newest one.")
    ] = None,
    picture_format: Annotated[Literal["svg", "pdf", "png"], typer.Option("--format", help="Kind of picture.")] = "svg",
    as_json: JsonOption = False,
) -> None:
    """Draw a comparison's arms with their intervals, what the gate chose from, and the board of all environments."""
    from storage.store import Store

    from ..figures import draw_figures

    files = draw_figures(Store.open(store), out, comparison=comparison, picture_format=picture_format)
    if as_json:
        print_json({"files": [str(file) for file in files]})
    else:
        print_lines(*map(str, files))
