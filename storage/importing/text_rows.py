"""CSV and JSON lines as a temporary Parquet file, since types are known only at the end. Errors name the line.

Separators (comma, semicolon, tab, bar), decimal commas, blanks around values and gzip or zstd are detected.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa

from ..disk import MAX_BYTES, UnreadableError, check_depth, decode_json
from ..errors import BadInput

TEXT = (".jsonl", ".ndjson", ".csv", ".tsv")
PACKED = (".gz", ".zst")
_SEPARATORS = ",;\t|"
ALWAYS_UNPACKED = 2**30  # unpacked bytes that are always allowed; above, a ratio that tables do not reach
_RATIO = 200
CHUNK = 2**20
_LEVELS = 16  # nesting of lists and objects in a line
_COMMA = r"^[-+]?\d*,?\d+(?:[eE][-+]?\d+)?$"
_POINT = r"^[-+]?[\d.]*\.[\d,]+(?:[eE][-+]?\d+)?$"
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
_FINITE = "Numbers have to be finite."
_UTF8 = "Save it as UTF-8."


def text_kind(path: Path) -> str | None:
    """The suffix that tells the format, without that of a compression; None if it is not a text file."""
    ending = Path(path.stem).suffix if path.suffix in PACKED else path.suffix
    return ending if ending in TEXT else None


class TextRows:
    """A text file of rows.

    Args:
        path: CSV or JSON lines, packed or not.
        folder: for temporary files.

    Raises:
        BadInput: with the line and column that cannot be read.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._is_csv = text_kind(path) in (".csv", ".tsv")
        self._plain = _unpacked(path, folder) if path.suffix in PACKED else path
        self._separator = ","
        self.notes: list[str] = []  # detected format, as sentences
        self.parquet = folder / "rows.parquet"
        (self._read_csv if self._is_csv else self._read_json)()

    def place(self, row: int) -> str:
        """A row's place: file and line."""
        if self._is_csv:
            return f"{self._path}, line {next(itertools.islice(self._records(), row + 1, None))[0]}"
        with self._plain.open("rb") as file:
            lines = (number for number, line in enumerate(file, start=1) if line.strip())
            return f"{self._path}, line {next(itertools.islice(lines, row, None))}"

    def _read_csv(self) -> None:
        names = self._header()
        comma = self._separator != "," and self._has_decimal_commas()
        if comma:
            self.notes.append("numbers are read with decimal commas: 0,5 is one half")
        try:
            rows = pl.scan_csv(
                self._plain,
                separator=self._separator,
                new_columns=names,
                infer_schema_length=None,
                decimal_comma=comma,
            )
            rows.filter(~pl.all_horizontal(pl.all().is_null())).sink_parquet(self.parquet)
        except pl.exceptions.PolarsError:
            self._check_records(len(names))
            raise
        self._settle_types(comma)
        if pl.scan_parquet(self.parquet).select(pl.col(names[-1]).is_null().any()).collect().item():
            self._check_records(len(names))  # a row that is too short has no value in the last columns

    def _header(self) -> list[str]:
        """The names of the columns; the separator is the most frequent one of the first line."""
        with self._plain.open("rb") as file:
            line = file.readline(CHUNK)
        if line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise BadInput(f"{self._path} is written in UTF-16.", _UTF8)
        text = _decode(line.removeprefix(b"\xef\xbb\xbf"), f"{self._path}, line 1")
        self._separator = max(_SEPARATORS, key=text.count)
        names = [name.strip() for name in next(csv.reader([text], delimiter=self._separator), [])]
        if twice := sorted(name for name, count in Counter(names).items() if name and count > 1):
            raise BadInput(f"{self._path}, line 1: the column {twice[0]!r} occurs twice.", "Rename one of them.")
        if self._separator != ",":
            self.notes.append(f"columns are separated by {self._separator!r}")
        return [name or f"unnamed column {number}" for number, name in enumerate(names, start=1)]

    def _has_decimal_commas(self) -> bool:
        return any(
            _DECIMAL_COMMA.fullmatch(cell.strip())
            for _, row in itertools.islice(self._records(), 1, 100)
            for cell in row
        )

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """The line on which each record ends, and its cells; the header comes first, empty lines are skipped."""
        with self._plain.open(encoding="utf-8-sig", newline="", errors="replace") as file:
            reader = csv.reader(file, delimiter=self._separator)
            for cells in reader:
                if any(cells):
                    yield reader.line_num, cells

    def _settle_types(self, comma: bool) -> None:
        """Numbers and flags between blanks or quotes become numbers and flags."""
        rows = pl.scan_parquet(self.parquet)
        kinds = dict(rows.collect_schema())
        casts: list[pl.Expr] = []
        for name in (name for name, kind in kinds.items() if kind == pl.Int128):
            kind = pl.Float64 if _fails(rows, pl.col(name), pl.UInt64) else pl.UInt64
            casts.append(pl.col(name).cast(kind))
        for name in (name for name, kind in kinds.items() if kind == pl.String):
            if comma:
                self._refuse_points(rows, name)
            cell = _bare(name, comma)
            found = [kind for kind in (pl.Int64, pl.Float64) if not _fails(rows, cell, kind)]
            if found and rows.select(cell.is_not_null().any()).collect().item():
                casts.append(cell.cast(found[0]).alias(name))
        if casts:
            settled = self.parquet.with_name("settled.parquet")
            rows.with_columns(casts).sink_parquet(settled)
            settled.replace(self.parquet)

    def _refuse_points(self, rows: pl.LazyFrame, name: str) -> None:
        """Beside decimal commas, 1.234 is ambiguous: it may have a thousands separator."""
        cells = rows.select(pl.col(name).str.strip_chars()).collect().to_series()
        points = cells.str.contains(_POINT).fill_null(value=False)
        if points.any() and (cells.is_null() | points | cells.str.contains(_COMMA) | (cells == "")).all():
            row = int(points.arg_true()[0])
            raise BadInput(
                f"{self.place(row)}, column {name!r}: {cells[row]!r} has a point; other numbers of the file have a "
                "decimal comma.",
                "Write all of them with a point.",
            )

    def _check_records(self, width: int) -> None:
        for line, cells in self._records():
            if len(cells) != width:
                raise BadInput(
                    f"{self._path}, line {line}: {len(cells)} values; the header has {width} columns.",
                    f"They are separated by {self._separator!r}.",
                )
        with self._plain.open("rb") as file:
            for number, line in enumerate(file, start=1):
                _decode(line, f"{self._path}, line {number}")

    def _read_json(self) -> None:
        self._check_levels()
        try:
            pl.scan_ndjson(self._plain, infer_schema_length=None).sink_parquet(self.parquet)
        except (pl.exceptions.PolarsError, pa.ArrowException):
            kinds: dict[str, str] = {}
            with self._plain.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        _check_line(line, f"{self._path}, line {number}", kinds)
            raise

    def _check_levels(self) -> None:
        """Refuse deep nesting: a reader's time grows exponentially with it."""
        with self._plain.open("rb") as file:
            for number in itertools.count(1):
                if not (line := file.readline(MAX_BYTES + 1)):
                    return
                if len(line) > MAX_BYTES or line.count(b"[") + line.count(b"{") > _LEVELS:
                    try:
                        check_depth(decode_json(line), _LEVELS)
                    except UnreadableError as error:
                        raise BadInput(
                            f"{self._path}, line {number}: {error}.", "Each line has to be a JSON object."
                        ) from error


def _check_line(line: bytes, place: str, kinds: dict[str, str]) -> None:
    def refuse(text: str) -> None:
        raise BadInput(f"{place}, column {line.decode().find(text) + 1}: {text} is not a JSON number.", _FINITE)

    try:
        row = json.loads(_decode(line.rstrip(), place), parse_constant=refuse)
    except json.JSONDecodeError as error:
        torn = " The line ends too early." if error.pos >= len(line.rstrip()) or not line.endswith(b"\n") else ""
        raise BadInput(f"{place}, column {error.colno}: not JSON ({error.msg}).{torn}") from error
    except RecursionError as error:
        raise BadInput(f"{place}: nested too deeply.") from error
    if not isinstance(row, dict):
        raise BadInput(f"{place}: {_kind(row)}; each line has to be a JSON object.")
    for name, value in row.items():
        kind = _kind(value)
        if value is not None and (before := kinds.setdefault(name, kind)) != kind:
            raise BadInput(f"{place}, column {name!r}: {kind}; the lines before have {before}.")


def _kind(value: object) -> str:
    """The type of a JSON value, in words."""
    if isinstance(value, bool):
        return "true or false"
    kinds = {"a number": int | float, "a text": str, "a list": list, "an object": dict}
    return next((words for words, kind in kinds.items() if isinstance(value, kind)), "nothing")


def _bare(name: str, comma: bool) -> pl.Expr:
    """Cell texts without blanks around them; null where nothing is left."""
    cell = pl.col(name).str.strip_chars()
    cell = pl.when(cell != "").then(cell)
    return (
        pl.when(cell.str.contains(_COMMA)).then(cell.str.replace(",", ".", literal=True)).otherwise(cell)
        if comma
        else cell
    )


def _fails(rows: pl.LazyFrame, cell: pl.Expr, kind: type[pl.DataType]) -> bool:
    return rows.select((cell.is_not_null() & cell.cast(kind, strict=False).is_null()).any()).collect().item()


def _decode(line: bytes, place: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{place}, byte {error.start + 1}: not UTF-8.", _UTF8) from error


def _unpacked(path: Path, folder: Path) -> Path:
    """Decompress a file.

    Raises:
        BadInput: if it is damaged, or larger than a table that compresses so well can be.
    """
    allowed = max(ALWAYS_UNPACKED, _RATIO * path.stat().st_size)
    target = folder / path.stem
    try:
        with _open_packed(path) as packed, target.open("wb") as file:
            while chunk := packed.read(CHUNK):
                if file.tell() > allowed:
                    raise BadInput(
                        f"{path} decompresses to more than {allowed:,} bytes.", "Decompress it yourself first."
                    )
                file.write(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowException) as error:
        raise BadInput(f"{path} cannot be decompressed: {error}.") from error
    return target


def _open_packed(path: Path) -> IO[bytes] | pa.CompressedInputStream:
    return gzip.open(path) if path.suffix == ".gz" else pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
