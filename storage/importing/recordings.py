"""Recordings as tables of whole episodes in the steps schema; a file is read piece by piece.

Parquet, JSON lines and CSV here, HDF5 in `hdf5.py`. Nothing is checked beyond what reading needs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError

from ..disk import parse_json, read_file
from ..errors import BadInput
from ..schema import Frozen, ManifestDraft, Space
from .cells import Columns, EpisodeNames, check_names, list_names, make_reader, map_columns, read_cells, spelled_columns
from .episode_ends import add_final_observation
from .pieces import RowFile, number_episodes, whole_episodes
from .row_validation import DERIVED, OPTIONAL, REQUIRED, ImportReport
from .text_rows import text_kind

MANIFEST_KEY = "trajnote"
"""Metadata key of the manifest in an exported file."""
SIDECAR = ".manifest.json"
"""A text file's manifest is in a file of the same name with this suffix."""


class About(Frozen):
    """What is known of a recording besides its rows; fields as in the manifest, None if unknown."""

    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = Field(default_factory=dict)
    observation_space: Space | None = None
    action_space: Space | None = None
    flattened_from: str | None = None
    component_names: tuple[str, ...] | None = None
    action_names: tuple[str, ...] | None = None
    policy: str | None = None
    policy_sha256: str | None = None
    policy_file_sha256: str | None = None
    policy_mode: Literal["greedy", "sampled"] | None = None
    policy_output: Literal["logits", "q_values", "mean"] | None = None
    seed: int | None = None
    max_steps: int | None = None
    versions: Mapping[str, str] = Field(default_factory=dict)
    environment_code: Mapping[str, str] = Field(default_factory=dict)

    def but(self, **given: Any) -> About:
        """A copy in which the values given replace its own."""
        return self.model_copy(update={name: value for name, value in given.items() if value})


@dataclass(frozen=True)
class Recording:
    """Episodes that can be read repeatedly."""

    tables: Callable[[ImportReport], Iterator[pa.Table]]  # whole episodes in ascending order; counts go to the report
    about: About = field(default_factory=About)
    exactly: bool = True  # whether rounding to the space's dtype counts as a change; not for decimal text
    is_export: bool = False  # whether it carries the manifest of an exported dataset


@contextmanager
def open_rows(path: Path, columns: Columns | None = None) -> Generator[Recording]:
    """A Parquet, JSON lines or CSV file.

    Args:
        path: the file.
        columns: meaning of a column -> its names, where they are not those of the steps schema.

    Raises:
        BadInput: if it cannot be read.
    """
    with RowFile(path) as file:
        spelled = columns or spelled_columns(file.columns)
        check_names(spelled, file.columns)
        names = {name: list_names(spelled, name) for name in ("observation", "action")}
        is_export = columns is None and _has_notes(path, file)
        about = _read_about(path, file).but(
            component_names=None if is_export else _tuple(names["observation"]),
            action_names=None if is_export else _tuple(names["action"]),
        )
        yield Recording(
            lambda report: _pieces(file, spelled, report), about, exactly=text_kind(path) is None, is_export=is_export
        )


def parse_about(text: str | bytes, where: str) -> About:
    """Read the manifest that an export wrote.

    Raises:
        BadInput: if it is not a manifest.
    """
    try:
        found = parse_json(text, f"The manifest in {where}", "Export the dataset again.")
        told = ManifestDraft.model_validate(
            {name: value for name, value in found.items() if name in ManifestDraft.model_fields}
        )
    except (AttributeError, ValidationError) as error:
        raise BadInput(f"The text in {where} is not a manifest.", "Export the dataset again.") from error
    return About(**{name: getattr(told, name) for name in About.model_fields})


def sidecar(path: Path) -> Path:
    """Where the manifest of an exported text file is."""
    return path.with_name(path.name + SIDECAR)


def _has_notes(path: Path, file: RowFile) -> bool:
    return MANIFEST_KEY.encode() in file.notes or sidecar(path).is_file()


def _read_about(path: Path, file: RowFile) -> About:
    if notes := file.notes.get(MANIFEST_KEY.encode()):
        return parse_about(notes, str(path))
    if sidecar(path).is_file():
        return parse_about(read_file(sidecar(path)), str(sidecar(path)))
    return About()


def _pieces(file: RowFile, columns: Columns, report: ImportReport) -> Iterator[pa.Table]:
    """Whole episodes; files in the steps schema already have final rows."""
    names = EpisodeNames()
    is_plain = bool(columns)
    columns = columns or {name: [name] for name in (*REQUIRED, *OPTIONAL, "next_observation") if name in file.columns}
    has_ids = "episode_id" in columns
    is_ordered = not has_ids or _is_ordered(file, columns)
    batches = (map_columns(batch.table, columns, make_reader(batch.place, names)) for batch in file.batches())
    tables = batches if is_ordered else iter([pa.concat_tables(batches)])
    if not has_ids and is_plain:
        tables = number_episodes(tables)
    pieces = whole_episodes(tables) if is_ordered else tables
    for piece in pieces:
        if is_plain or "next_observation" in columns:
            yield add_final_observation(_sorted(piece), report)
        else:
            report.finals += len(set(piece["episode_id"].to_pylist()))
            yield piece
    _report_file(file, columns, names, report)


def _report_file(file: RowFile, columns: Columns, names: EpisodeNames, report: ImportReport) -> None:
    used = {name for group in columns.values() for name in group}
    report.rows = file.rows
    report.leave_out("columns", (name for name in file.columns if name not in used and name not in DERIVED))
    for sentence in (*file.findings, *names.sentences()):
        report.decide(sentence)


def _is_ordered(file: RowFile, columns: Columns) -> bool:
    """Whether the rows of each episode lie together, in ascending order."""
    names, last = EpisodeNames(), None
    name = columns["episode_id"][0]
    for batch in file.batches([name]):
        column = read_cells(batch.table[name], name, "episode_id", place=batch.place, names=names)
        if column.null_count or not batch.table.num_rows:
            return False
        values = np.asarray(column)
        if (values[1:] < values[:-1]).any() or (last is not None and values[0] < last):
            return False
        last = values[-1]
    return True


def _sorted(table: pa.Table) -> pa.Table:
    """Rows by episode, and by step where they have one."""
    keys = [table[name] for name in ("step", "episode_id") if name in table.column_names]
    if any(not pa.types.is_integer(key.type) or key.null_count for key in keys):
        raise BadInput("The columns 'episode_id' and 'step' have to be whole numbers in every row.")
    return table.take(pa.array(np.lexsort([np.asarray(key) for key in keys])))


def _tuple(names: list[str] | None) -> tuple[str, ...] | None:
    return tuple(names) if names else None
