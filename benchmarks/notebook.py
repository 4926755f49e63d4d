"""Rows of a benchmark as JSON lines, by which an interrupted run goes on. What a row says is the benchmark's affair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Notebook:
    """Rows on disk, one JSON object a line; a torn last line is what an interruption leaves, and is dropped."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows: dict[str, Row] = {}
        for line in path.read_text().splitlines() if path is not None and path.is_file() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.rows[row["key"]] = row

    def add(self, row: Row) -> None:
        """Keep a row, in memory and on disk."""
        self.rows[row["key"]] = row
        if self._path is not None:
            torn = self._path.is_file() and not self._path.read_bytes().endswith(b"\n")
            with self._path.open("a") as file:
                file.write("\n" * torn + json.dumps(row) + "\n")
