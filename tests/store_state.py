"""Copies of a store, and everything in one but the times of the clock, so that two of them can be compared."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.ledger.runs import append_responses, iterate_responses, read_frames
from storage.store import Store

TIMELY = (("datasets", "manifest_sha256"), ("view_marks", "made_from"))  # of when, and of where, a store was made


def lend(template: Path) -> Path:
    """A copy of a store in a folder of its own, always at the same place, so that its views are made only once."""
    kept, folder = template.with_name("kept"), template.with_name("lent")
    lent = folder / template.name
    if not kept.exists():
        Store.open(shutil.copytree(template, lent))
        lent.rename(kept)
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(kept, lent)


def ask(store: Store, sql: str, *values: object) -> list[Any]:
    """The rows that answer a question to the catalog."""
    with store.catalog.read() as con:
        return con.execute(sql, list(values)).fetchall()


def append_response(store: Store, run_id: str, record: Mapping[str, Any]) -> tuple[str, int]:
    """Put one raw reply on the disk; where it lies: the file and the line."""
    return append_responses(store, run_id, [record])[0]


def raw_reply(store: Store, request_id: str) -> dict[str, Any]:
    """The newest raw reply to a request, where the catalog says that it is."""
    with store.catalog.read() as con:
        ((file, line),) = con.execute(
            "SELECT file, line FROM responses WHERE request_id = ? ORDER BY received_at DESC, response_id DESC LIMIT 1",
            [request_id],
        ).fetchall()
    record = read_frames(store.root / file).lines[line - 1]
    assert record is not None
    return json.loads(record)


def state_of(root: Path) -> dict[str, Any]:
    """All rows of all tables, all files by their hash, manifests and raw replies without their times."""
    store = Store.open(root)
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {
        "tables": tables_of(store),
        "files": {name: _content(path) for name, path in files.items() if _is_plain(name)},
        "replies": {run.name: _replies(store, run.name) for run in sorted((root / "responses").iterdir())},
    }


def tables_of(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    with store.catalog.read() as con:
        columns: dict[str, list[str]] = {}
        for table, column, kind in con.execute(
            "SELECT table_name, column_name, data_type FROM duckdb_columns() JOIN duckdb_tables() USING (table_name)"
            " ORDER BY table_name, column_index"
        ).fetchall():
            if not kind.startswith("TIMESTAMP") and (table, column) not in TIMELY:
                columns.setdefault(table, []).append(column)
        return {
            table: con.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY ALL").fetchall()
            for table, names in columns.items()
        }


def counts_of(store: Store) -> dict[str, int]:
    return {table: len(rows) for table, rows in tables_of(store).items()}


def _is_plain(name: str) -> bool:
    """Not the catalog and the replies, which are compared by their rows, nor what a night remembers of files' times."""
    return not name.startswith(("catalog.duckdb", "responses/")) and not name.endswith("/memory.json")


def _content(path: Path) -> Any:
    if path.name == "manifest.json":
        return json.loads(path.read_text()) | {"created_at": ""}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _replies(store: Store, run_id: str) -> list[dict[str, Any]]:
    return [stored.record | {"received_at": ""} for stored in iterate_responses(store, run_id)]
