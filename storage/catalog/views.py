"""The views that people query: steps over the Parquet files, annotations joined to them, opinions, rules and summaries.

They are text made from the `datasets` table, the store's absolute path and the files that are there; one whose text has
changed is made again. A dataset of which a file is damaged (`tables.py`) is left out; the others can be asked. Views
whose text cannot depend on a dataset are the files `views/*.sql`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..schema import Space, sql_name, sql_text
from .connection import Connection
from .rule_views import WITHOUT_RULES, rule_views
from .tables import (
    JOINED_TYPES,
    KEY_TYPES,
    NOTE_COLUMNS,
    STEP_TYPES,
    Inspection,
    comment_on,
    component_columns,
    look_at_views,
    made_by,
    mark_of,
    note_shards,
    same_action,
)

_CREATE, _CREATE_MACRO = "CREATE OR REPLACE VIEW ", "CREATE OR REPLACE MACRO "
_OPINION = "coalesce({0}.request_id, {0}.annotation_id)"  # a reply that two runs share is one opinion
_SMALL = 100_000
"""Rows that a dataset has at most to be read together with its likes, in one scan: many datasets are small ones."""
_SUMMARIES = (
    *("critical_steps", "label_agreement", "current_label_replays", "current_reviews", "refused_opinions"),
    *("spending", "label_quality", "annotator_scores", "leaderboard"),
)
_FOLDER = Path(__file__).parent / "views"


@dataclass(frozen=True)
class _Dataset:
    """What a view needs to know of one dataset."""

    dataset_id: str
    files: list[Path]
    action_space: Space
    component_names: list[str]
    action_names: list[str]
    actions: str  # the action space as the catalog writes it
    kind: str  # equal for datasets whose files have the same columns, which mean the same


class _Scan(NamedTuple):
    """Datasets of one kind that are read in one scan; a large one is alone."""

    like: _Dataset  # any of them
    dataset_id: str  # SQL of it, from a row of the files that is called `logged`
    name: str  # of the macro that reads them, so that no view changes with the list of files
    files: str  # SQL of the table of all their rows


class _LabelGroup(NamedTuple):
    """The labels of all datasets with one action space."""

    space: Space
    own: str  # SQL of which labels these are
    dataset_id: str  # SQL of the column
    keys: str  # what a step is named by among them


_NO_LABELS = _LabelGroup(
    Space(kind="discrete", dtype="int64", size=1), "false", "dataset_id", "dataset_id, episode_id, step"
)
"""What gives a view of labels its columns while there is no dataset."""


def temporary_views(con: Connection, rollouts: Path, found: Inspection) -> str:
    """Statements that make the views for one connection alone, where they do not fit and cannot be written."""
    script = ";\n".join(_views(con, _datasets(con, rollouts, found), found.damaged).values())
    for start in (_CREATE, _CREATE_MACRO):
        script = script.replace(start, start.replace("REPLACE", "REPLACE TEMP"))
    return script


def refresh_views(con: Connection, rollouts: Path) -> Mapping[str, str]:
    """Make those views again whose text has changed; all of them, and the comments of tables, if other code made them.

    DuckDB works out a view whenever it is asked, so those that stand see the new ones.

    Args:
        con: a connection of `Catalog.write`.
        rollouts: the absolute folder with one folder per dataset.

    Returns:
        The datasets that no view can show now, and what is wrong with each.
    """
    state = look_at_views(con, rollouts)
    found = state.found
    note_shards(con, found.news)
    datasets = _datasets(con, rollouts, found)
    views = _views(con, datasets, found.damaged)
    marks = {name: mark_of(made_by(), sql) for name, sql in views.items()}
    marks |= {"tables": made_by(), "all": state.now}
    changed = {name: mark for name, mark in marks.items() if state.marks.get(name) != mark}
    made = [sql for name, sql in views.items() if name in changed]
    comments = comment_on(None if "tables" in changed else changed, _components(datasets, found.damaged))
    noted = ", ".join(f"({sql_text(name)}, {sql_text(mark)})" for name, mark in changed.items())
    written = [f"INSERT OR REPLACE INTO view_marks VALUES {noted}"] if changed else []
    plain = ("PRAGMA disable_optimizer", "PRAGMA enable_optimizer")  # it has nothing to do here, and takes its time
    con.execute(";\n".join([plain[0], *made, *comments, *written, plain[1]]))
    return found.damaged


def _views(con: Connection, everything: Sequence[_Dataset], damaged: Container[str]) -> dict[str, str]:
    """The statement that makes each view, and each macro below them, by its name, each after what it needs."""
    datasets = [dataset for dataset in everything if dataset.dataset_id not in damaged]
    scans = _scan_together(datasets)
    noted = _no_rows(STEP_TYPES | JOINED_TYPES, NOTE_COLUMNS, "annotations")
    statements = [
        _view("steps", [_no_rows(KEY_TYPES | STEP_TYPES), *map(_steps_of, scans)]),
        _view("annotated_steps", [noted, *map(_annotated_steps_of, scans)]),
        *_opinion_views(_label_groups(everything) or [_NO_LABELS]),
        *_rule_views(con, datasets),
        *map(_read_view, _SUMMARIES),
    ]
    macros = {scan.name: f"{_CREATE_MACRO}{scan.name}() AS TABLE SELECT * FROM {scan.files}" for scan in scans}
    return macros | {sql.removeprefix(_CREATE).split(" ", 1)[0]: sql for sql in statements}


def _rule_views(con: Connection, datasets: Sequence[_Dataset]) -> Sequence[str]:
    if con.execute("SELECT 1 FROM rules LIMIT 1").fetchone() is None:
        return WITHOUT_RULES
    return rule_views(con, [(d.dataset_id, d.action_space, d.component_names) for d in datasets])


def _components(everything: Sequence[_Dataset], damaged: Container[str]) -> list[str]:
    """The columns of `annotated_steps` that hold components of observations."""
    named = {tuple(dataset.component_names) for dataset in everything if dataset.dataset_id not in damaged}
    return sorted({column for names in named for column in component_columns(names)})


def _datasets(con: Connection, rollouts: Path, found: Inspection) -> list[_Dataset]:
    rows = con.execute(
        """SELECT dataset_id, action_space, component_names, action_names,
               to_json([observation_space::VARCHAR, action_space::VARCHAR, component_names::VARCHAR,
                   action_names::VARCHAR, policy_output, if(steps + episodes > ?, dataset_id, '')])
           FROM datasets ORDER BY created_at, dataset_id""",
        [_SMALL],
    ).fetchall()
    space = cache(Space.model_validate_json)
    return [
        _Dataset(
            dataset_id=dataset_id,
            files=[rollouts / dataset_id / shard for shard in found.shards.get(dataset_id, ())],
            action_space=space(action_space),
            component_names=component_names,
            action_names=action_names,
            actions=action_space,
            kind=kind,
        )
        for dataset_id, action_space, component_names, action_names, kind in rows
    ]


def _scan_together(datasets: Sequence[_Dataset]) -> list[_Scan]:
    """One scan for all small datasets of a kind, so that what a question costs does not grow with what it is not about.

    Their rows are told apart by the folder of the file; DuckDB opens no file that a condition on the dataset rules out.
    """
    scans: list[_Scan] = []
    for alike in _grouped(datasets, lambda dataset: dataset.kind):
        name = f"logged_{mark_of(alike[0].kind)[:12]}"
        if len(alike) == 1:
            scans.append(_Scan(alike[0], sql_text(alike[0].dataset_id), name, f"read_parquet([{_paths(alike)}])"))
            continue
        files = f"read_parquet([{_paths(alike)}], filename = true)"
        scans.append(_Scan(alike[0], "split_part(logged.filename, '/', -2)", name, files))
    return scans


def _label_groups(datasets: Sequence[_Dataset]) -> list[_LabelGroup]:
    """One part of a view for all datasets with one action space; one that is alone needs no join, and no key."""
    groups: list[_LabelGroup] = []
    for alike in _grouped(datasets, lambda dataset: dataset.actions):
        space, one = alike[0].action_space, sql_text(alike[0].dataset_id)
        if len(alike) == 1:
            groups.append(_LabelGroup(space, f"dataset_id = {one}", one, "episode_id, step"))
            continue
        actions = sql_text(alike[0].actions)
        own = f"dataset_id IN (SELECT dataset_id FROM datasets WHERE action_space::VARCHAR = {actions})"
        groups.append(_LabelGroup(space, own, "dataset_id", "dataset_id, episode_id, step"))
    return groups


def _grouped(datasets: Sequence[_Dataset], key: Callable[[_Dataset], str]) -> list[list[_Dataset]]:
    groups: dict[str, list[_Dataset]] = {}
    for dataset in datasets:
        groups.setdefault(key(dataset), []).append(dataset)
    return list(groups.values())


def _steps_of(scan: _Scan) -> str:
    names = ", ".join(f"{value} AS {name}" for name, value in _step_columns(scan.like).items())
    return f"SELECT {scan.dataset_id} AS dataset_id, episode_id, step, {names} FROM {scan.name}() AS logged"


def _step_columns(dataset: _Dataset) -> dict[str, str]:
    """SQL of each column of a step, from a row of the files that is called `logged`."""
    actions = dataset.action_space
    if actions.is_discrete:
        names = ", ".join(map(sql_text, dataset.action_names))
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


def _paths(datasets: Sequence[_Dataset]) -> str:
    return ", ".join(sql_text(str(path)) for dataset in datasets for path in dataset.files)


def _annotated_steps_of(scan: _Scan) -> str:
    """Values are made of the rows that have an annotation only: they are computed above the join, not below it."""
    notes = ", ".join(f"notes.{name}" for name in NOTE_COLUMNS)
    dataset, columns = scan.like, _step_columns(scan.like)
    steps = ", ".join(f"{value} AS {name}" for name, value in columns.items())
    components = "".join(
        f",\n    logged.observation[{place}]::DOUBLE AS {sql_name(column)}"
        for place, column in enumerate(component_columns(dataset.component_names), 1)
    )
    agreement = same_action(dataset.action_space, "notes.suggested_action", f"({columns['action_vector']})")
    return f"""SELECT {notes},
    {steps},
    {agreement} AS agrees, episodes.return_, episodes.length{components}
FROM annotations AS notes
JOIN {scan.name}() AS logged
    ON notes.dataset_id = {scan.dataset_id} AND notes.episode_id = logged.episode_id AND notes.step = logged.step
JOIN episodes ON episodes.dataset_id = notes.dataset_id AND episodes.episode_id = notes.episode_id"""


def _opinion_views(groups: Sequence[_LabelGroup]) -> list[str]:
    """Statements that make the views of opinions, in an order in which each finds what it needs.

    - `opinion_pairs`: each two suggestions for one step, in both orders, and whether they agree.
    - `tallies`: per step how many opinions there are, the suggestion of most (ties: higher summed confidence) or the
      median of each number, the share of opinions that agree with it, and the share of pairs that agree, which is null
      for a single opinion.
    - `majorities`: that suggestion alone.
    - `majority_votes`: per suggestion whether it agrees with that.
    - `label_agreement`: one row per annotated step, which is what people query.

    Args:
        groups: the labels of all datasets, by action space.
    """
    return [
        _view("opinion_pairs", [_pairs(labels) for labels in groups]),
        _view("tallies", [(_count if labels.space.is_discrete else _measure)(labels) for labels in groups]),
        _read_view("majorities"),
        _view("majority_votes", [_votes(labels) for labels in groups]),
    ]


def _pairs(group: _LabelGroup) -> str:
    agree = same_action(group.space, "one.suggested_action", "other.suggested_action")
    return f"""SELECT dataset_id, episode_id, step, one.annotation_id, one.run_id, one.model, one.confidence,
    {_OPINION.format("one")} AS opinion, other.annotation_id AS other_id, other.run_id AS other_run_id,
    other.model AS other_model, {_OPINION.format("other")} AS other_opinion, {agree} AS agree
FROM annotations AS one JOIN annotations AS other USING (dataset_id, episode_id, step)
WHERE {group.own} AND {_OPINION.format("one")} <> {_OPINION.format("other")}
    AND one.suggested_action IS NOT NULL AND other.suggested_action IS NOT NULL"""


def _count(group: _LabelGroup) -> str:
    """Tallies of discrete actions: votes are counted, so no opinion is compared with another one."""
    return f"""SELECT {group.dataset_id} AS dataset_id, episode_id, step, [best.number] AS majority_action,
    best.label AS majority_label, opinions::BIGINT AS opinions, most / opinions AS majority_share,
    pairs / nullif(opinions * (opinions - 1), 0) AS agreement
FROM (
    SELECT {group.keys}, sum(votes) AS opinions, max(votes) AS most, sum(votes * (votes - 1)) AS pairs,
        arg_max({{number: number, label: label}}, (votes, confidence, -number)) AS best
    FROM (
        SELECT {group.keys}, number, any_value(label) AS label, count(*) AS votes, sum(confidence) AS confidence
        FROM (
            SELECT {group.keys}, suggested_action[1] AS number, hash({_OPINION.format("annotations")}) AS opinion,
                any_value(suggested_label) AS label, any_value(coalesce(confidence, 1)) AS confidence
            FROM annotations WHERE {group.own} AND suggested_action IS NOT NULL
            GROUP BY {group.keys}, suggested_action[1], opinion
        ) GROUP BY {group.keys}, number
    ) GROUP BY {group.keys}
)"""


def _measure(group: _LabelGroup) -> str:
    """Tallies of continuous actions: medians, and what lies within the tolerance of the median or of each other."""
    opinion, own, keys, space = _OPINION.format("annotations"), f"WHERE {group.own}", group.keys, group.space
    medians = ", ".join(f"median(suggested_action[{place}])" for place in range(1, space.size + 1))
    agree = same_action(space, "suggested_action", "majority_action")
    return f"""SELECT {group.dataset_id} AS dataset_id, episode_id, step, majority_action,
    NULL::VARCHAR AS majority_label, opinions, majority_share, agreement
FROM (
    SELECT {keys}, any_value(majority_action) AS majority_action, count(*) AS opinions,
        avg(({agree})::DOUBLE) AS majority_share
    FROM (SELECT DISTINCT ON ({keys}, {opinion}) * FROM annotations
          {own} AND suggested_action IS NOT NULL) AS suggested
    JOIN (SELECT {keys}, [{medians}] AS majority_action
          FROM (SELECT DISTINCT ON ({keys}, {opinion}) * FROM annotations
                {own} AND suggested_action IS NOT NULL)
          GROUP BY {keys}) AS middle USING ({keys})
    GROUP BY {keys}
) LEFT JOIN (
    SELECT {keys}, avg(agree::DOUBLE) AS agreement
    FROM (SELECT DISTINCT {keys}, opinion, other_opinion, agree FROM opinion_pairs {own})
    GROUP BY {keys}
) USING ({keys})"""


def _votes(group: _LabelGroup) -> str:
    agree = same_action(group.space, "annotations.suggested_action", "majorities.majority_action")
    opinion = _OPINION.format("annotations")
    return f"""SELECT annotations.annotation_id, {opinion} AS opinion, dataset_id, episode_id, step, majority_action,
    majority_label, {agree} AS with_majority
FROM annotations JOIN majorities USING (dataset_id, episode_id, step)
WHERE {group.own} AND suggested_action IS NOT NULL"""


@cache
def _read_view(name: str) -> str:
    return _view(name, [(_FOLDER / f"{name}.sql").read_text()])


def _view(name: str, selects: Sequence[str]) -> str:
    return f"{_CREATE}{name} AS\n" + "\nUNION ALL BY NAME\n".join(selects)


def _no_rows(types: Mapping[str, str], columns: Sequence[str] = (), table: str = "(SELECT 1)") -> str:
    """What gives a view its columns while there is no dataset: some of a table, and others of these types."""
    selected = [*columns, *(f"NULL::{kind} AS {name}" for name, kind in types.items())]
    return f"SELECT {', '.join(selected)} FROM {table} WHERE false"
