"""The views that people query: steps over the Parquet files, annotations joined to them, and summaries per run.

They are text made from the `datasets` table, the store's absolute path and the files that are there, so they are made
again when one of these changes. A dataset of which a file is damaged (`catalog/integrity.py`) is left out; the others
can be asked. What cannot depend on a dataset is in `summaries.py`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..content_hash import canonical_json, sha256_bytes
from ..schema import Space
from .connection import Connection
from .integrity import inspect_shards, note_shards
from .opinions import opinion_views, same_action
from .rule_views import RuledDataset, rule_view
from .summaries import SUMMARIES

MAX_NAMED_COMPONENTS = 512
"""A dataset with more components than this has them only as `observation[i]`."""

_STEP_TYPES = {
    "observation": "DOUBLE[]",
    "action": "BIGINT",
    "action_vector": "DOUBLE[]",
    "action_name": "VARCHAR",
    "reward": "DOUBLE",
    "terminated": "BOOLEAN",
    "truncated": "BOOLEAN",
    "policy_output": "FLOAT[]",
    "seed": "BIGINT",
}
_KEY_TYPES = {"dataset_id": "VARCHAR", "episode_id": "BIGINT", "step": "INTEGER"}
_NOTE_TYPES = {
    "annotation_id": "VARCHAR",
    "run_id": "VARCHAR",
    "request_id": "VARCHAR",
    **_KEY_TYPES,
    "critical": "BOOLEAN",
    "suggested_action": "DOUBLE[]",
    "suggested_label": "VARCHAR",
    "implicit_reward": "DOUBLE",
    "confidence": "DOUBLE",
    "rationale": "VARCHAR",
    "model": "VARCHAR",
    "prompt_version": "VARCHAR",
    "created_at": "TIMESTAMPTZ",
}
_CREATE = "CREATE OR REPLACE VIEW "
_JOINED_TYPES = {"agrees": "BOOLEAN", "return_": "DOUBLE", "length": "INTEGER"}


@dataclass(frozen=True)
class _Dataset:
    """What a view needs to know of one dataset."""

    dataset_id: str
    files: list[Path]
    observation_space: Space
    action_space: Space
    component_names: list[str]
    action_names: list[str]


class ViewState(NamedTuple):
    """How the views stand."""

    left_out: Mapping[str, str]  # datasets that no view can show now, and what is wrong with each
    views: _Views
    is_current: bool  # whether the catalog's views are those, and it knows all that was found out about the files

    @property
    def temporary_script(self) -> str:
        """The script for one connection alone, where the catalog cannot be written."""
        return self.views.script().replace(_CREATE, "CREATE OR REPLACE TEMP VIEW ")


def look_at_views(con: Connection, rollouts: Path) -> ViewState:
    """Whether the views fit the datasets that are registered, their files, and the place where the store lies now.

    Args:
        con: a connection of the catalog.
        rollouts: the absolute folder with one folder per dataset.
    """
    damaged, news = inspect_shards(con, rollouts)
    views = _read(con, rollouts, damaged)
    found = con.execute("SELECT comment FROM duckdb_views() WHERE view_name = 'steps' AND NOT internal").fetchone()
    return ViewState(damaged, views, not news and found is not None and found[0] == views.mark())


def refresh_views(con: Connection, rollouts: Path) -> Mapping[str, str]:
    """Make all views again.

    Args:
        con: a connection of `Catalog.write`.
        rollouts: the absolute folder with one folder per dataset.

    Returns:
        The datasets that no view can show now, and what is wrong with each.
    """
    damaged, news = inspect_shards(con, rollouts)
    note_shards(con, news)
    views = _read(con, rollouts, damaged)
    con.execute(views.script())
    con.execute(f"COMMENT ON VIEW steps IS {_text(views.mark())}")
    return damaged


def component_columns(names: Sequence[str]) -> list[str]:
    """The columns of `annotated_steps` that hold an observation's components, in their order.

    A name becomes an SQL identifier; one that is a column of the view already gets the prefix `obs_`.
    """
    taken = {*_NOTE_TYPES, *_STEP_TYPES, *_JOINED_TYPES}
    columns: list[str] = []
    for name in names[:MAX_NAMED_COMPONENTS] if len(names) <= MAX_NAMED_COMPONENTS else []:
        plain = re.sub(r"\W+", "_", name)
        column = f"obs_{plain}" if plain.lower() in taken or not re.match(r"[^\W\d]", plain) else plain
        while column.lower() in taken:
            column += "_"
        taken.add(column.lower())
        columns.append(column)
    return columns


@dataclass(frozen=True)
class _Views:
    """What all views are made of."""

    before: Sequence[str]  # statements
    ruled: Sequence[RuledDataset]

    def script(self) -> str:
        """The statements that make them."""
        return ";\n".join([*self.before, rule_view(self.ruled), *SUMMARIES])

    def mark(self) -> str:
        """What tells whether they are those that would be made now.

        Every command needs it, so that of a dataset's rules only the first is written as SQL, which takes a while.
        """
        first = [dataset._replace(rules=dataset.rules[:1]) for dataset in self.ruled]
        rules = [(dataset.dataset_id, *rule) for dataset in self.ruled for rule in dataset.rules]
        script = ";\n".join([*self.before, rule_view(first), *SUMMARIES, canonical_json(rules)])
        return f"made from {sha256_bytes(script.encode())}"


def _read(con: Connection, rollouts: Path, damaged: Container[str]) -> _Views:
    everything = _datasets(con, rollouts)
    datasets = [dataset for dataset in everything if dataset.dataset_id not in damaged]
    return _Views(
        [
            _view("steps", [_no_rows(_KEY_TYPES | _STEP_TYPES), *map(_steps_of, datasets)]),
            _view(
                "annotated_steps",
                [_no_rows(_NOTE_TYPES | _STEP_TYPES | _JOINED_TYPES), *map(_annotated_steps_of, datasets)],
            ),
            *opinion_views([(dataset.dataset_id, dataset.action_space) for dataset in everything]),
        ],
        _ruled(con, datasets),
    )


def _datasets(con: Connection, rollouts: Path) -> list[_Dataset]:
    rows = con.execute(
        """SELECT dataset_id, observation_space, action_space, component_names, action_names, shards
           FROM datasets
           JOIN (SELECT dataset_id, list(DISTINCT shard ORDER BY shard) AS shards FROM episodes GROUP BY ALL)
           USING (dataset_id)
           ORDER BY created_at, dataset_id"""
    ).fetchall()
    return [
        _Dataset(
            dataset_id=dataset_id,
            files=[rollouts / dataset_id / shard for shard in shards],
            observation_space=Space.model_validate_json(observation_space),
            action_space=Space.model_validate_json(action_space),
            component_names=component_names,
            action_names=action_names,
        )
        for dataset_id, observation_space, action_space, component_names, action_names, shards in rows
    ]


def _ruled(con: Connection, datasets: Sequence[_Dataset]) -> list[RuledDataset]:
    """The datasets that have rules."""
    rows = con.execute("SELECT dataset_id, rule_id, predicate FROM rules ORDER BY rule_id").fetchall()
    return [
        RuledDataset(d.dataset_id, d.action_space, component_columns(d.component_names), rules)
        for d in datasets
        if (rules := [(rule_id, predicate) for name, rule_id, predicate in rows if name == d.dataset_id])
    ]


def _steps_of(dataset: _Dataset) -> str:
    names = ", ".join(f"{value} AS {name}" for name, value in _step_columns(dataset).items())
    keys = f"{_text(dataset.dataset_id)} AS dataset_id, episode_id, step"
    return f"SELECT {keys}, {names} FROM {_files_of(dataset)} AS logged"


def _step_columns(dataset: _Dataset) -> dict[str, str]:
    """SQL of each column of a step, from a row of the files that is called `logged`."""
    actions = dataset.action_space
    if actions.is_discrete:
        names = ", ".join(map(_text, dataset.action_names))
        action, name = "logged.action", f"[{names}][logged.action - {actions.start} + 1]"
        vector = "CASE WHEN logged.action IS NOT NULL THEN [logged.action::DOUBLE] END"
    else:
        action, name, vector = "NULL::BIGINT", "NULL::VARCHAR", "logged.action::DOUBLE[]"
    plain = {name: f"logged.{name}" for name in ("reward", "terminated", "truncated")}
    return {
        "observation": "logged.observation::DOUBLE[]",
        "action": action,
        "action_vector": vector,
        "action_name": name,
        **plain,
        "policy_output": "logged.policy_output::FLOAT[]",
        "seed": "logged.seed",
    }


def _files_of(dataset: _Dataset) -> str:
    return f"read_parquet([{', '.join(_text(str(path)) for path in dataset.files)}])"


def _annotated_steps_of(dataset: _Dataset) -> str:
    """Values are made of the rows that have an annotation only: they are computed above the join, not below it."""
    notes = ", ".join(f"notes.{name}" for name in _NOTE_TYPES)
    columns = _step_columns(dataset)
    steps = ", ".join(f"{value} AS {name}" for name, value in columns.items())
    components = "".join(
        f",\n    logged.observation[{place}]::DOUBLE AS {_identifier(column)}"
        for place, column in enumerate(component_columns(dataset.component_names), 1)
    )
    agreement = same_action(dataset.action_space, "notes.suggested_action", f"({columns['action_vector']})")
    return f"""SELECT {notes},
    {steps},
    {agreement} AS agrees, episodes.return_, episodes.length{components}
FROM annotations AS notes
JOIN {_files_of(dataset)} AS logged USING (episode_id, step)
JOIN episodes USING (dataset_id, episode_id)
WHERE notes.dataset_id = {_text(dataset.dataset_id)}"""


def _view(name: str, selects: Sequence[str]) -> str:
    return f"{_CREATE}{name} AS\n" + "\nUNION ALL BY NAME\n".join(selects)


def _no_rows(types: dict[str, str]) -> str:
    """What gives a view its columns while there is no dataset."""
    return "SELECT " + ", ".join(f"NULL::{kind} AS {name}" for name, kind in types.items()) + " WHERE false"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
