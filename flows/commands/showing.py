"""`sql`, `figures`, `report`, `review` and `watch`: looking at a store's data, and at what came of it."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from storage import disk, queries
from storage.errors import BadInput

from .. import labelling, reporting, simulation
from .options import DEFAULT_STORE, DatasetOption, JsonOption, StoreOption, TrustOption, open_store
from .output import format_of, print_json, print_lines, print_result, print_table, progress_bars, strict

if TYPE_CHECKING:
    import pyarrow as pa


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


_ENDINGS = {
    ".csv": Format.CSV,
    ".jsonl": Format.JSON,
    ".ndjson": Format.JSON,
    ".json": Format.JSON,
    ".parquet": Format.PARQUET,
}


def sql(
    query: Annotated[
        str | None,
        typer.Argument(
            help="One read-only statement: SELECT, WITH, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN; default: open a shell."
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    format_: Annotated[
        Format | None, typer.Option("--format", help="Format of the rows; default: by the file's name, else a table.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, .csv, .jsonl or .parquet; default: print.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Time limit in seconds.")] = 600.0,
    memory: Annotated[
        float | None,
        typer.Option("--memory", min=0.1, help="Memory limit in gigabytes; default: half of the machine's."),
    ] = None,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Print at most so many rows.")] = 1_000,
    as_json: JsonOption = False,
) -> None:
    """Query the catalog and the steps; nothing can be changed.

    Start with datasets, steps, annotated_steps, annotations, leaderboard. Without a query this opens a shell, whose
    `.tables` explains each table; with a pipe, the query is read from standard input.
    """
    form = format_of(output, _ENDINGS, format_, Format.TABLE)
    if output is not None and (form is Format.TABLE or as_json):
        raise BadInput(
            f"--output {output} does not go with {'--json' if as_json else '--format table'}.",
            f"Name a file that ends in {', '.join(_ENDINGS)}." if not as_json else "Leave one of the two out.",
        )
    bounds = queries.Bounds(timeout, None if memory is None else int(memory * 1e9))
    opened = open_store(store)

    def answer(question: str) -> None:
        rows = queries.run_query(opened, question, as_text=as_json or form is not Format.PARQUET, bounds=bounds)
        if as_json:
            print_json({"columns": rows.column_names, "rows": list(iterate_rows(rows))})
        else:
            write_rows(rows, form, output, max_rows)

    if query is None and sys.stdin.isatty():
        from .shell import run_shell

        run_shell(opened, answer)
    else:
        answer(sys.stdin.read() if query is None else query)


def write_rows(rows: pa.Table, format_: Format, output: Path | None, max_rows: int) -> None:
    """Print rows, or write them to a file; Parquet needs a file or a pipe."""
    if format_ is Format.TABLE:
        print_table("1 row" if rows.num_rows == 1 else f"{rows.num_rows} rows", list(iterate_rows(rows[:max_rows])))
        if rows.num_rows > max_rows:
            print_lines(f"and {rows.num_rows - max_rows} more rows; --max-rows and --output show more")
        return
    if format_ is Format.PARQUET and output is None and sys.stdout.isatty():
        raise BadInput("Parquet is not for a terminal.", "Add --output FILE, or send it into a pipe.")
    content = encode_rows(rows, format_)
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        disk.write_whole(output, content)


def encode_rows(rows: pa.Table, format_: Format) -> bytes:
    """Rows as Parquet, CSV (lists, structs and maps as JSON text), or JSON lines."""
    if format_ is Format.PARQUET:
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd")
        return buffer.getvalue()
    text = io.StringIO()
    if format_ is Format.CSV:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows.column_names)
        writer.writerows(map(_csv_cell, row.values()) for row in iterate_rows(rows))
    else:
        for row in iterate_rows(rows):
            text.write(json.dumps(strict(row), ensure_ascii=False) + "\n")
    return text.getvalue().encode()


def _csv_cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(strict(value), ensure_ascii=False) if isinstance(value, list | dict) else value


def iterate_rows(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as plain values: maps are mappings from text, whole numbers of any size are int."""
    for batch in rows.to_batches(max_chunksize=10_000):
        columns = [list(map(_reader(column.type), column.to_pylist())) for column in batch.columns]
        for values in zip(*columns, strict=True):
            yield dict(zip(rows.column_names, values, strict=True))


def _reader(kind: pa.DataType) -> Callable[[Any], Any]:
    """What makes a plain value of a type's value."""
    import pyarrow as pa

    if pa.types.is_map(kind):
        key, item = _reader(kind.key_type), _reader(kind.item_type)
        return _unless_null(lambda pairs: {_key_text(key(k)): item(v) for k, v in pairs})
    if pa.types.is_struct(kind):
        readers = {field.name: _reader(field.type) for field in kind}
        return _unless_null(lambda value: {name: read(value[name]) for name, read in readers.items()})
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _reader(kind.value_type)
        return _unless_null(lambda values: [item(value) for value in values])
    return _unless_null(int) if pa.types.is_decimal(kind) else lambda value: value


def _unless_null(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _key_text(key: object) -> str:
    return key if isinstance(key, str) else json.dumps(strict(key), ensure_ascii=False)


def figures(
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures; made if missing.")] = Path(),
    comparison: Annotated[
        str | None, typer.Option("--comparison", help="Comparison id, or a unique prefix; default: the newest.")
    ] = None,
    picture_format: Annotated[
        Literal["svg", "pdf", "png"], typer.Option("--format", help="Format of the pictures.")
    ] = "svg",
    as_json: JsonOption = False,
) -> None:
    """Draw a comparison's arms with their intervals, what the gate chose from, and the board of all environments."""
    made = reporting.draw_figures(open_store(store), output, comparison=comparison, picture_format=picture_format)
    files = [str(file) for file in made]
    print_result(as_json, {"files": files}, *files)


def report(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[REFINEMENT|COMPARISON|RUN|DATASET]",
            help="Id of a comparison, refinement, run or dataset, or a unique prefix; default: the newest comparison.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; default: reports/ID.html of the store.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Render at most so many steps; 0 for none.")] = 1_600,
    env: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file that shows what was done; it opens without a network or a server.

    Needs the extra `plots`. Pictures of steps are rendered in an exact replay, where the environment can be rendered.
    """
    format_of(output, {".html": "HTML", ".htm": "HTML"}, default="HTML")
    opened, home = open_store(store), simulation.Named.of(env)
    with progress_bars() as bars:
        written = reporting.write_report(opened, subject, out=output, pictures=pictures, env_id=home, report=bars)
    about = f"{written.labels} labels, {written.episodes} episodes, {written.pictures} pictures"
    print_result(as_json, vars(written), f"{about}, {written.bytes / 1e6:.1f} MB", str(written.path))


def review(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Annotation run id, or a unique prefix; default: all of the dataset."),
    ] = None,
    queue: Annotated[
        Literal["disagreements", "stratified", "gold", "rules"],
        typer.Option(
            "--queue",
            help="What to show: contradicted labels first; labels of all kinds in turn; states for a gold set; rules.",
        ),
    ] = "disagreements",
    limit: Annotated[int, typer.Option("--limit", min=1, max=2_000, help="Show at most so many items.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random choices.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File: .html, or .jsonl or .txt for gold; default: in the store."),
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Render at most so many steps; 0 for none.")] = 900,
    dataset: DatasetOption = None,
    env: TrustOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write a page on which a person accepts, corrects or rejects labels or rules, or makes a gold set.

    It opens without a network or a server and keeps the answers in the browser; the file that it saves goes into
    `trajnote annotations import`. Needs the extra `plots`.
    """
    opened, home = open_store(store), simulation.Named.of(env)
    prepared = labelling.prepare_queue(opened, run, order=queue, dataset=dataset, limit=limit, seed=seed)
    with progress_bars() as bars:
        written = reporting.write_review(opened, prepared, out=output, pictures=pictures, env_id=home, report=bars)
    about = f"{written.items} items of {written.dataset_id}, {written.pictures} pictures"
    print_result(as_json, vars(written), f"{written.queue_id}: {about}", *written.problems, str(written.path))


def watch(
    store: StoreOption = DEFAULT_STORE,
    once: Annotated[bool, typer.Option("--once", help="Print once and stop.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two updates.")] = 2.0,
    budget: Annotated[float | None, typer.Option(min=0, help="Budget in dollars to compare the spending with.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is under way: runs, requests, batches, dollars, labels per minute, candidates, the gate.

    The catalog is read only briefly, so that other commands are not blocked. Ctrl-C ends it.
    """
    opened = open_store(store)
    if as_json:
        status = reporting.look(opened)
        print_json(vars(status) | {"in_flight_usd": status.in_flight_usd})
    elif once:
        Console().print(reporting.draw(reporting.look(opened), budget))
    else:
        try:
            reporting.watch(opened, Console(), every_s=every, budget_usd=budget)
        except KeyboardInterrupt:
            return
