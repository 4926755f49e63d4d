"""The views that people query: steps over the Parquet files, annotations joined to them, opinions, rules and summaries.

They are text made from the `datasets` table, the store's absolute path and the files that are there, so they are made
again when one of these changes. A dataset of which a file is damaged (`integrity.py`) is left out; the others can be
asked. Views whose text cannot depend on a dataset are the files `views/*.sql`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..content_hash import canonical_json, sha256_bytes
from ..expressions import sql_name, sql_text
from ..schema import Space
from .connection import Connection
from .integrity import inspect_shards, note_shards
from .rule_views import rule_views
from .view_columns import JOINED_TYPES, KEY_TYPES, NOTE_TYPES, STEP_TYPES, component_columns, same_action

_CREATE = "CREATE OR REPLACE VIEW "
_VOTED_TYPES = {**KEY_TYPES, "majority_action": "DOUBLE[]", "majority_label": "VARCHAR"}
_TALLY_TYPES = _VOTED_TYPES | {"opinions": "BIGINT", "majority_share": "DOUBLE", "agreement": "DOUBLE"}
_VOTE_TYPES = {"annotation_id": "VARCHAR", "opinion": "VARCHAR", **_VOTED_TYPES, "with_majority": "BOOLEAN"}
_PAIR_TYPES = {
    **KEY_TYPES,
    "annotation_id": "VARCHAR",
    "run_id": "VARCHAR",
    "model": "VARCHAR",
    "confidence": "DOUBLE",
    "opinion": "VARCHAR",
    "other_id": "VARCHAR",
    "other_run_id": "VARCHAR",
    "other_model": "VARCHAR",
    "other_opinion": "VARCHAR",
    "agree": "BOOLEAN",
}
_OPINION = "coalesce({0}.request_id, {0}.annotation_id)"  # a reply that two runs share is one opinion
_SUMMARIES = (
    *("label_agreement", "current_label_replays", "current_reviews", "refused_opinions"),
    *("spending", "label_quality", "annotator_scores", "leaderboard"),
)
_FOLDER = Path(__file__).parent / "views"


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
    is_current: bool  # whether the catalog's views are those, and it knows all that was found out about the files
    temporary_script: str  # makes them for one connection alone, where the catalog cannot be written and they are not


def look_at_views(con: Connection, rollouts: Path) -> ViewState:
    """Whether the views fit the datasets that are registered, their files, and the place where the store lies now.

    Nothing is made for that: the comment of the view `steps` says what the views were made from.

    Args:
        con: a connection of the catalog.
        rollouts: the absolute folder with one folder per dataset.
    """
    damaged, news, datasets = inspect_shards(con, rollouts)
    comment, rules, _ = _marks(con)
    if not news and comment == _mark(rollouts, datasets, damaged, rules):
        return ViewState(damaged, True, "")
    script = ";\n".join([*_from_datasets(con, rollouts, damaged), *map(_read_view, _SUMMARIES)])
    return ViewState(damaged, False, script.replace(_CREATE, "CREATE OR REPLACE TEMP VIEW "))


def refresh_views(con: Connection, rollouts: Path) -> Mapping[str, str]:
    """Make the views again; the summaries, whose text is always the same, only if other code made them.

    Args:
        con: a connection of `Catalog.write`.
        rollouts: the absolute folder with one folder per dataset.

    Returns:
        The datasets that no view can show now, and what is wrong with each.
    """
    damaged, news, datasets = inspect_shards(con, rollouts)
    note_shards(con, news)
    _, rules, summaries = _marks(con)
    script = _from_datasets(con, rollouts, damaged)
    script.append(f"COMMENT ON VIEW steps IS {sql_text(_mark(rollouts, datasets, damaged, rules))}")
    if summaries != _made_by():  # DuckDB works out a view whenever it is asked, so those that stand see the new ones
        script += [*map(_read_view, _SUMMARIES), f"COMMENT ON VIEW {_SUMMARIES[-1]} IS {sql_text(_made_by())}"]
    con.execute(";\n".join(script))
    return damaged


def _marks(con: Connection) -> tuple[str | None, str | None, str | None]:
    """What the views were made from, a hash of all rules, and the code that made the summaries."""
    ((comment, rules, summaries),) = con.execute(
        f"""SELECT any_value(comment) FILTER (view_name = 'steps'),
               (SELECT md5(concat_ws(';',
                   (SELECT string_agg(concat_ws(' ', rule_id, predicate, suggested_action::VARCHAR,
                       formulas::VARCHAR), ';' ORDER BY rule_id) FROM rules),
                   (SELECT string_agg(concat_ws(' ', term_id, name, expression), ';' ORDER BY term_id) FROM terms)))),
               any_value(comment) FILTER (view_name = '{_SUMMARIES[-1]}')
           FROM duckdb_views() WHERE NOT internal
        """
    ).fetchall()
    return comment, rules, summaries


def _mark(rollouts: Path, datasets: Sequence[tuple[str, str]], damaged: Container[str], rules: str | None) -> str:
    """What tells whether the views are those that would be made now."""
    shown = [(name, manifest_sha256, name in damaged) for name, manifest_sha256 in datasets]
    made_from = canonical_json([_made_by(), str(rollouts), shown, rules])
    return f"made from {sha256_bytes(made_from.encode())}"


@cache
def _made_by() -> str:
    """A hash of what writes the views and the tables below them: modules and `.sql` files."""
    here, root = Path(__file__).parent, Path(__file__).parents[1]
    code = [here / f"{name}.py" for name in ("views", "rule_views", "view_columns", "migrations")]
    code += [root / "expressions.py", root / "formulas.py"]
    code += [*sorted(_FOLDER.glob("*.sql")), *sorted((here / "migrations").glob("*.sql"))]
    return sha256_bytes(b"".join(path.read_bytes() for path in code))


def _from_datasets(con: Connection, rollouts: Path, damaged: Container[str]) -> list[str]:
    """The statements that make all views but the summaries, in an order in which each finds what it needs."""
    everything = _datasets(con, rollouts)
    datasets = [dataset for dataset in everything if dataset.dataset_id not in damaged]
    noted = _no_rows(NOTE_TYPES | STEP_TYPES | JOINED_TYPES)
    return [
        _view("steps", [_no_rows(KEY_TYPES | STEP_TYPES), *map(_steps_of, datasets)]),
        _view("annotated_steps", [noted, *map(_annotated_steps_of, datasets)]),
        *_opinion_views([(dataset.dataset_id, dataset.action_space) for dataset in everything]),
        *rule_views(con, [(d.dataset_id, d.action_space, d.component_names) for d in datasets]),
    ]


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


def _steps_of(dataset: _Dataset) -> str:
    names = ", ".join(f"{value} AS {name}" for name, value in _step_columns(dataset).items())
    keys = f"{sql_text(dataset.dataset_id)} AS dataset_id, episode_id, step"
    return f"SELECT {keys}, {names} FROM {_files_of(dataset)} AS logged"


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


def _files_of(dataset: _Dataset) -> str:
    return f"read_parquet([{', '.join(sql_text(str(path)) for path in dataset.files)}])"


def _annotated_steps_of(dataset: _Dataset) -> str:
    """Values are made of the rows that have an annotation only: they are computed above the join, not below it."""
    notes = ", ".join(f"notes.{name}" for name in NOTE_TYPES)
    columns = _step_columns(dataset)
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
JOIN {_files_of(dataset)} AS logged USING (episode_id, step)
JOIN episodes USING (dataset_id, episode_id)
WHERE notes.dataset_id = {sql_text(dataset.dataset_id)}"""


def _opinion_views(spaces: Sequence[tuple[str, Space]]) -> list[str]:
    """Statements that make the views of opinions, in an order in which each finds what it needs.

    - `opinion_pairs`: each two suggestions for one step, in both orders, and whether they agree.
    - `tallies`: per step how many opinions there are, the suggestion of most (ties: higher summed confidence) or the
      median of each number, the share of opinions that agree with it, and the share of pairs that agree, which is null
      for a single opinion.
    - `majorities`: that suggestion alone.
    - `majority_votes`: per suggestion whether it agrees with that.
    - `label_agreement`: one row per annotated step, which is what people query.

    Args:
        spaces: id and action space of every dataset.
    """
    pairs = [_no_rows(_PAIR_TYPES), *(_pairs(name, space) for name, space in spaces)]
    tallies = [_no_rows(_TALLY_TYPES), *((_count if s.is_discrete else _measure)(name, s) for name, s in spaces)]
    votes = [_no_rows(_VOTE_TYPES)]
    votes += [_votes(name, space) for name, space in spaces]
    return [
        _view("opinion_pairs", pairs),
        _view("tallies", tallies),
        _read_view("majorities"),
        _view("majority_votes", votes),
    ]


def _pairs(dataset_id: str, space: Space) -> str:
    agree = same_action(space, "one.suggested_action", "other.suggested_action")
    return f"""SELECT dataset_id, episode_id, step, one.annotation_id, one.run_id, one.model, one.confidence,
    {_OPINION.format("one")} AS opinion, other.annotation_id AS other_id, other.run_id AS other_run_id,
    other.model AS other_model, {_OPINION.format("other")} AS other_opinion, {agree} AS agree
FROM annotations AS one JOIN annotations AS other USING (dataset_id, episode_id, step)
WHERE dataset_id = {sql_text(dataset_id)} AND {_OPINION.format("one")} <> {_OPINION.format("other")}
    AND one.suggested_action IS NOT NULL AND other.suggested_action IS NOT NULL"""


def _count(dataset_id: str, space: Space) -> str:
    """Tallies of discrete actions: votes are counted, so no opinion is compared with another one."""
    return f"""SELECT {sql_text(dataset_id)} AS dataset_id, episode_id, step, [best.said] AS majority_action,
    best.label AS majority_label, opinions::BIGINT AS opinions, most / opinions AS majority_share,
    pairs / nullif(opinions * (opinions - 1), 0) AS agreement
FROM (
    SELECT episode_id, step, sum(votes) AS opinions, max(votes) AS most, sum(votes * (votes - 1)) AS pairs,
        arg_max({{said: said, label: label}}, (votes, confidence, -said)) AS best
    FROM (
        SELECT episode_id, step, said, any_value(label) AS label, count(*) AS votes, sum(confidence) AS confidence
        FROM (
            SELECT episode_id, step, suggested_action[1] AS said, hash({_OPINION.format("annotations")}) AS opinion,
                any_value(suggested_label) AS label, any_value(coalesce(confidence, 1)) AS confidence
            FROM annotations WHERE dataset_id = {sql_text(dataset_id)} AND suggested_action IS NOT NULL
            GROUP BY episode_id, step, suggested_action[1], opinion
        ) GROUP BY episode_id, step, said
    ) GROUP BY episode_id, step
)"""


def _measure(dataset_id: str, space: Space) -> str:
    """Tallies of continuous actions: medians, and what lies within the tolerance of the median or of each other."""
    opinion, own = _OPINION.format("annotations"), f"WHERE dataset_id = {sql_text(dataset_id)}"
    medians = ", ".join(f"median(suggested_action[{place}])" for place in range(1, space.size + 1))
    agree = same_action(space, "suggested_action", "majority_action")
    return f"""SELECT {sql_text(dataset_id)} AS dataset_id, episode_id, step, majority_action,
    NULL::VARCHAR AS majority_label, opinions, majority_share, agreement
FROM (
    SELECT episode_id, step, any_value(majority_action) AS majority_action, count(*) AS opinions,
        avg(({agree})::DOUBLE) AS majority_share
    FROM (SELECT DISTINCT ON (episode_id, step, {opinion}) * FROM annotations
          {own} AND suggested_action IS NOT NULL) AS suggested
    JOIN (SELECT episode_id, step, [{medians}] AS majority_action
          FROM (SELECT DISTINCT ON (episode_id, step, {opinion}) * FROM annotations
                {own} AND suggested_action IS NOT NULL)
          GROUP BY episode_id, step) AS middle USING (episode_id, step)
    GROUP BY episode_id, step
) LEFT JOIN (
    SELECT episode_id, step, avg(agree::DOUBLE) AS agreement
    FROM (SELECT DISTINCT episode_id, step, opinion, other_opinion, agree FROM opinion_pairs {own})
    GROUP BY episode_id, step
) USING (episode_id, step)"""


def _votes(dataset_id: str, space: Space) -> str:
    agree = same_action(space, "annotations.suggested_action", "majorities.majority_action")
    opinion = _OPINION.format("annotations")
    return f"""SELECT annotations.annotation_id, {opinion} AS opinion, dataset_id, episode_id, step, majority_action,
    majority_label, {agree} AS with_majority
FROM annotations JOIN majorities USING (dataset_id, episode_id, step)
WHERE dataset_id = {sql_text(dataset_id)} AND suggested_action IS NOT NULL"""


def _read_view(name: str) -> str:
    return _view(name, [(_FOLDER / f"{name}.sql").read_text()])


def _view(name: str, selects: Sequence[str]) -> str:
    return f"{_CREATE}{name} AS\n" + "\nUNION ALL BY NAME\n".join(selects)


def _no_rows(types: Mapping[str, str]) -> str:
    """What gives a view its columns while there is no dataset."""
    return "SELECT " + ", ".join(f"NULL::{kind} AS {name}" for name, kind in types.items()) + " WHERE false"
