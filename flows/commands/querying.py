"""`sql`, `figures`, `store` and `card`: asking what is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import DEFAULT_STORE, JsonOption, StoreOption
from .output import print_json, print_lines, print_table

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

store_app = typer.Typer(name="store", help="Look after the store's files.", no_args_is_help=True)
card_app = typer.Typer(name="card", help="Environment cards: what numbers and actions mean.", no_args_is_help=True)


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
    app.add_typer(store_app)
    app.add_typer(card_app)


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


@store_app.command("verify")
def store_verify(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Hash every file again and compare it with the catalog; what is damaged is named."""
    from storage.errors import DamagedStore
    from storage.store import Store
    from storage.verify import verify_store

    damages = verify_store(Store.open(store))
    if as_json:
        print_json({"damaged": len(damages), "damages": [str(damage) for damage in damages]})
    else:
        print_lines(*(str(damage) for damage in damages))
    if damages:
        raise DamagedStore(f"{len(damages)} things in {store} are damaged.", "See the list above.")
    if not as_json:
        print_lines(f"{store}: every file is what was written.")


@store_app.command("gc")
def store_gc(
    store: StoreOption = DEFAULT_STORE,
    keep: Annotated[int, typer.Option("--keep", min=0, help="So many of the newest of each kind stay.")] = 10,
    pin: Annotated[
        list[str] | None, typer.Option("--pin", help="Policy, dataset or report that stays, too; repeatable.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is shown; without it nothing is.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the store could do without, and delete it only with --delete.

    That is refined policies, datasets without annotations, reports, and leftovers of killed commands. What a policy in
    force, an annotation or anything kept leads back to stays. Annotations and raw replies always stay.
    """
    from storage.garbage import delete_garbage, find_garbage
    from storage.store import Store

    opened = Store.open(store)
    found = find_garbage(opened, keep, pin or ())
    freed = delete_garbage(opened, found) if delete else 0
    rows = [{"kind": g.kind, "name": g.name, "bytes": g.bytes, "why": g.why} for g in found]
    if as_json:
        print_json({"deleted": delete, "bytes": sum(g.bytes for g in found), "garbage": rows})
        return
    print_table(f"{len(rows)} things that {store} could do without", rows)
    print_lines(f"deleted, {freed} bytes" if delete else "nothing was deleted; --delete does it")


@store_app.command("list")
def store_list(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the store's datasets."""
    from dataclasses import asdict

    from storage.datasets import list_datasets
    from storage.store import Store

    rows = [asdict(summary) for summary in list_datasets(Store.open(store))]
    if as_json:
        print_json({"store": str(store), "datasets": rows})
    else:
        print_table(f"datasets of {store}", rows)


@card_app.command("list")
def card_list(as_json: JsonOption = False) -> None:
    """List the packaged cards."""
    from annotate.cards import load_card, packaged_cards

    cards = [load_card(path) for path in packaged_cards()]
    rows = [
        {
            "env_id": card.env_id,
            "env_kwargs": dict(card.env_kwargs),
            "title": card.title,
            "components": len(card.components),
            "actions": len(card.actions),
            "claims": len(card.claims),
        }
        for card in cards
    ]
    if as_json:
        print_json({"cards": rows})
    else:
        print_table(f"{len(rows)} packaged cards", [_told(row) for row in rows])


def _told(card: Mapping[str, Any]) -> dict[str, object]:
    """A card's row with the arguments of its environment beside the id, for they are rare."""
    arguments = "".join(f" {name}={value}" for name, value in card["env_kwargs"].items())
    rest = {name: value for name, value in card.items() if name not in ("env_id", "env_kwargs")}
    return {"env_id": card["env_id"] + arguments, **rest}


@card_app.command("show")
def card_show(
    card: Annotated[str, typer.Argument(help="Gymnasium id, or path of a TOML card.")],
    env_kwargs: Annotated[str | None, typer.Option(help="Arguments of gymnasium.make, as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an annotator is told of an environment."""
    from annotate.cards import load_card

    from ..environments import parse_env_kwargs

    found = load_card(card, parse_env_kwargs(env_kwargs))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print_lines(found.title, f"goal: {found.goal}", f"termination: {found.termination}", f"reward: {found.reward}")
    print_table("components", [{"name": c.name, "unit": c.unit, "meaning": c.meaning} for c in found.components])
    print_table("actions", [{"name": a.name, "unit": a.unit, "meaning": a.meaning} for a in found.actions])


@card_app.command("new")
def card_new(
    env_id: Annotated[str, typer.Argument(help="Gymnasium id, or module:EnvId.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: named after the id.")] = None,
    env_kwargs: Annotated[str | None, typer.Option(help="Arguments of gymnasium.make, as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draft a card from the environment's spaces and docstring; what only a person can know is marked TODO."""
    from ..carding.draft import card_path, write_draft
    from ..environments import parse_env_kwargs

    path = output or card_path(env_id, Path())
    write_draft(env_id, parse_env_kwargs(env_kwargs), path)
    if as_json:
        print_json({"env_id": env_id, "path": str(path)})
    else:
        print_lines(f"{path}: fill in what says TODO, then check it with `trajnote card check {path}`")


@card_app.command("check")
def card_check(
    card: Annotated[str, typer.Argument(help="Gymnasium id, or path of a TOML card.")],
    env_kwargs: Annotated[str | None, typer.Option(help="Arguments of gymnasium.make, as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Try every claim of a card in the environment itself: signs, units, bounds, rewards, terminations."""
    from annotate.cards import load_card
    from storage.errors import BadInput

    from ..carding.probe import probe_card
    from ..environments import parse_env_kwargs

    findings = probe_card(load_card(card, parse_env_kwargs(env_kwargs)))
    rows = [{"held": f.held, "claim": f.claim.text, "evidence": f.evidence} for f in findings]
    if as_json:
        print_json({"held": sum(f.held for f in findings), "claims": len(findings), "findings": rows})
    else:
        print_table(f"claims of {card}", rows)
    if failed := [finding.claim.text for finding in findings if not finding.held]:
        raise BadInput(
            f"{len(failed)} of {len(findings)} claims do not hold: {'; '.join(failed)}.", "Correct the card."
        )
