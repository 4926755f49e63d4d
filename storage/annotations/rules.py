"""Lists of corrective rules as rows of the catalog, and their coverage, agreement and conflicts in a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import NamedTuple

from ..catalog import (
    Connection,
    Row,
    StoredList,
    StoredRule,
    component_columns,
    count_decisions_of,
    insert_rows,
    refresh_views,
    rows_of,
    same_action,
    scan_steps,
)
from ..datasets import pick, read_manifest, resolve_dataset
from ..errors import BadInput
from ..formulas import FormulaReader, Term
from ..schema import Manifest, content_id
from ..store import Store
from .annotations import from_row, refused_ids, rows_of_runs


@dataclass(frozen=True)
class Rule:
    """What should be done in all states that meet a condition."""

    rule_id: str
    run_id: str
    request_id: str | None
    dataset_id: str
    position: int  # in the annotator's list: of several rules of one list that match a step, the first one decides
    predicate: str  # canonical, see `formulas.py`
    suggested_action: tuple[float | None, ...]  # None: this dimension stays as it was logged, or has a formula
    suggested_label: str
    confidence: float | None  # in [0, 1]
    rationale: str | None
    model: str
    prompt_version: str | None
    formulas: tuple[str | None, ...] | None = None  # canonical, for each dimension; None without any
    critical: bool | None = None  # whether the return depends most on the states that it speaks of


@dataclass(frozen=True)
class RuleList:
    """The rules of one reply or one import, in their order, with the terms that they use."""

    list_id: str  # of the request, or else of the run
    run_id: str
    request_id: str | None
    dataset_id: str
    model: str
    prompt_version: str | None
    rules: tuple[Rule, ...]
    terms: tuple[Term, ...] = ()
    assessment: str | None = None
    potential: str | None = None  # an expression for how good a state is
    parent_id: str | None = None  # the list that this one was made from

    @property
    def content(self) -> dict[str, object]:
        """What decides where it says what, as JSON has it: terms, conditions and actions."""
        return {
            "terms": [[term.name, term.expression] for term in self.terms],
            "rules": [[rule.predicate, rule.suggested_action, rule.formulas] for rule in self.rules],
        }

    @property
    def has_formulas(self) -> bool:
        """Whether an action of its rules is computed from the state."""
        return any(rule.formulas is not None for rule in self.rules)


_RULE = tuple(field.name for field in fields(Rule))
_LIST = tuple(field.name for field in fields(RuleList) if field.name not in ("rules", "terms"))


def formula_reader(manifest: Manifest) -> FormulaReader:
    """Reads expressions about a dataset: its components are called as in `annotated_steps`."""
    return FormulaReader.of(component_columns(manifest.component_names), ())


def check_rule_list(listed: RuleList, manifest: Manifest) -> FormulaReader:
    """Check that every stored expression of a list is allowed.

    Returns:
        What reads them.

    Raises:
        BadInput: quoting what is not.
    """
    reader = FormulaReader.of(component_columns(manifest.component_names), listed.terms, is_canonical=True)
    for rule in listed.rules:
        reader.predicate(rule.predicate, is_canonical=True)
        for formula in filter(None, rule.formulas or ()):
            reader.formula(formula, is_canonical=True)
    if listed.potential is not None:
        reader.formula(listed.potential, is_canonical=True)
    return reader


def insert_rule_lists(con: Connection, store: Store, lists: Sequence[RuleList]) -> int:
    """Insert lists of rules and make the views again; what is there already is left unchanged.

    Returns:
        How many rules were new.

    Raises:
        BadInput: if an expression is not allowed, or a number is out of its range; nothing is inserted.
    """
    if not lists:
        return 0
    for listed in lists:
        check_rule_list(listed, read_manifest(store, listed.dataset_id))
    insert_rows(con, "rule_lists", [{name: getattr(listed, name) for name in _LIST} for listed in lists])
    insert_rows(con, "terms", [row for listed in lists for row in _term_rows(listed)])
    inserted = insert_rows(con, "rules", [vars(rule) for listed in lists for rule in listed.rules])
    if inserted:
        refresh_views(con, store.rollouts_dir)
    return inserted


def _term_rows(listed: RuleList) -> Sequence[Mapping[str, object]]:
    own = {"list_id": listed.list_id, "run_id": listed.run_id, "dataset_id": listed.dataset_id}
    return [
        {"term_id": content_id("v_", [listed.run_id, listed.list_id, term.name]), "position": position}
        | own
        | term._asdict()
        for position, term in enumerate(listed.terms)
    ]


class Decisions(NamedTuple):
    """What a rule does in its dataset."""

    steps: int  # where it decides
    valued: int  # of them, those where all its formulas have a value


def count_decisions(con: Connection, listed: RuleList, manifest: Manifest) -> list[Decisions]:
    """Count what each rule of a list decides in its dataset, as the views do; the list need not be stored.

    Raises:
        BadInput: if an expression is not allowed.
    """
    reader = check_rule_list(listed, manifest)
    if not listed.rules:
        return []
    rules = [StoredRule(r.rule_id, r.predicate, r.suggested_action, r.formulas) for r in listed.rules]
    stored = StoredList(manifest.dataset_id, manifest.action_space, reader.columns, listed.terms, rules)
    counted = {place: Decisions(*counts) for place, *counts in con.execute(count_decisions_of(stored)).fetchall()}
    return [counted.get(place, Decisions(0, 0)) for place in range(len(rules))]


def varies(con: Connection, listed: RuleList, manifest: Manifest) -> bool:
    """Whether the potential of a list has more than one value in its dataset."""
    reader = check_rule_list(listed, manifest)
    potential = reader.formula(listed.potential or "0", is_canonical=True)
    scan = scan_steps(manifest.dataset_id, reader, [potential])
    values = f'SELECT {potential.sql} AS value FROM ({scan}) WHERE "acted in"'
    rows = con.execute(f"SELECT DISTINCT value FROM ({values}) WHERE isfinite(value) LIMIT 2")
    return len(rows.fetchall()) > 1


def load_rule_lists(store: Store, dataset_id: str, run_ids: Sequence[str] | None = None) -> list[RuleList]:
    """The lists of rules of a dataset, run by run; lists without a rule are left out.

    `run_ids` are those of the runs wanted, or their beginnings; None: all.

    Raises:
        BadInput: if there is no such run.
    """
    with store.catalog.read():
        order = "run_id, request_id, position, rule_id"
        rows = rows_of_runs(store, "rules", ", ".join(_RULE), dataset_id, run_ids, order=order)
        heads = rows_of_runs(store, "rule_lists", ", ".join(_LIST), dataset_id, run_ids, order="run_id, list_id")
        columns = "run_id, list_id, name, expression, meaning"
        terms = rows_of_runs(store, "terms", columns, dataset_id, run_ids, order="run_id, list_id, position")
    own = {key: tuple(Term(*row[2:]) for row in found) for key, found in groupby(terms, key=lambda row: row[:2])}
    named = {(row[1], row[0]): dict(zip(_LIST, row, strict=True)) for row in heads}
    grouped = groupby((from_row(Rule, row) for row in rows), key=lambda r: (r.run_id, r.request_id or r.run_id))
    return [RuleList(**named[key], rules=tuple(rules), terms=own.get(key, ())) for key, rules in grouped]


def trusted_rules(store: Store, lists: Sequence[RuleList]) -> list[RuleList]:
    """Lists without the rules that reviewers have refused; an empty list is left out."""
    refused = refused_ids(store, "rule_id")
    kept = [replace(each, rules=tuple(rule for rule in each.rules if rule.rule_id not in refused)) for each in lists]
    return [listed for listed in kept if listed.rules]


class Study(NamedTuple):
    """What a run that studied a dataset has written."""

    assessment: str
    terms: Sequence[Term]


def find_study(store: Store, run_id: str) -> Study | None:
    """The study of a run, its newest one; None if it has none yet."""
    question = "SELECT list_id, assessment FROM rule_lists WHERE run_id = ? ORDER BY created_at DESC, list_id LIMIT 1"
    for list_id, assessment in store.select(question, [run_id]):
        terms = store.select(
            "SELECT name, expression, meaning FROM terms WHERE run_id = ? AND list_id = ? ORDER BY position",
            [run_id, list_id],
        )
        return Study(assessment or "", [Term(*row) for row in terms])
    return None


def find_rule_list(store: Store, name: str) -> RuleList:
    """A list of rules by its id, or the beginning of one; the newest of lists that have the same id.

    Raises:
        BadInput: if there is none, or several fit.
    """
    with store.catalog.read() as con:
        found = con.execute("SELECT list_id, run_id, dataset_id FROM rule_lists ORDER BY created_at, run_id").fetchall()
        newest = {list_id: (run_id, dataset_id) for list_id, run_id, dataset_id in found}
        wanted = pick(name, sorted(newest), "rule list")
        run_id, dataset_id = newest[wanted]
        lists = [listed for listed in load_rule_lists(store, dataset_id, [run_id]) if listed.list_id == wanted]
    if not lists:
        raise BadInput(f"The list of rules {wanted} has no rule.")
    return lists[0]


_RULES = """
WITH matched AS MATERIALIZED (
    SELECT rule_id, episode_id, step, suggested_action, agrees, decides FROM ruled_steps
    WHERE dataset_id = $dataset_id AND list_contains($run_ids, run_id)
), counted AS (
    SELECT rule_id, count(*) AS steps, count(*) FILTER (decides) AS decides,
        count(*) FILTER (decides AND suggested_action IS NULL) AS without_value,
        avg(agrees::DOUBLE) FILTER (decides) AS agrees_with_logged
    FROM matched GROUP BY rule_id
), compared AS (
    SELECT rule_id, count(*) AS labels, avg(({agree})::DOUBLE) AS agrees_with_labels
    FROM matched JOIN (SELECT episode_id, step, suggested_action FROM annotations WHERE dataset_id = $dataset_id
                       AND suggested_action IS NOT NULL) AS notes USING (episode_id, step)
    WHERE decides GROUP BY rule_id
)
SELECT run_id, rule_id, position, predicate, suggested_label, critical, confidence, coalesce(steps, 0) AS steps,
    coalesce(steps, 0) / (SELECT sum(length) FROM episodes WHERE dataset_id = $dataset_id) AS coverage,
    coalesce(decides, 0) AS decides, coalesce(without_value, 0) AS without_value,
    agrees_with_logged, coalesce(labels, 0) AS labels, agrees_with_labels, model,
    rationale
FROM rules LEFT JOIN counted USING (rule_id) LEFT JOIN compared USING (rule_id)
WHERE dataset_id = $dataset_id AND list_contains($run_ids, run_id)
ORDER BY run_id, request_id, position, rule_id
"""
_CONFLICTS = """
WITH matched AS MATERIALIZED (
    SELECT rule_id, run_id, request_id, position, episode_id, step, suggested_action, suggested_label FROM ruled_steps
    WHERE dataset_id = $dataset_id AND list_contains($run_ids, run_id)
)
SELECT one.rule_id, one.suggested_label, other.rule_id AS other_rule_id, other.suggested_label AS other_label,
    count(*) AS steps,
    CASE WHEN (one.run_id, one.request_id) IS NOT DISTINCT FROM (other.run_id, other.request_id)
        THEN one.rule_id END AS decides
FROM matched AS one JOIN matched AS other USING (episode_id, step)
WHERE (one.run_id, coalesce(one.request_id, ''), one.position, one.rule_id)
    < (other.run_id, coalesce(other.request_id, ''), other.position, other.rule_id)
    AND one.suggested_action <> other.suggested_action
GROUP BY ALL ORDER BY steps DESC, one.rule_id, other_rule_id
"""
_COVERED = """
SELECT count(DISTINCT (episode_id, step)) AS steps FROM ruled_steps
WHERE dataset_id = $dataset_id AND list_contains($run_ids, run_id)
"""


@dataclass(frozen=True)
class RuleSummary:
    """What the rules of some runs do in a dataset."""

    covered: int  # steps that at least one rule matches
    steps: int  # in all
    rules: Sequence[Row]  # in their order; `decides` counts the steps whose label they give
    conflicts: Sequence[Row]  # pairs that match the same steps with other actions, and who decides there


def summarise_rules(store: Store, dataset_id: str, run_ids: Sequence[str]) -> RuleSummary:
    """Coverage, agreement and conflicts of the rules of some runs in a dataset.

    Returns:
        Agreement with the logged action and with labels of single steps is over the steps where a rule decides. Two
        rules of one list never both decide; of two lists both do, and `decides` is null.
    """
    manifest = read_manifest(store, dataset_id)
    agree = same_action(manifest.action_space, "notes.suggested_action", "matched.suggested_action")
    asked = {"dataset_id": dataset_id, "run_ids": list(run_ids)}
    with store.catalog.read() as con:
        covered = con.execute(_COVERED, asked).fetchall()[0][0]
        rules = rows_of(con.execute(_RULES.format(agree=agree), asked))
        conflicts = rows_of(con.execute(_CONFLICTS, asked))
    return RuleSummary(covered, manifest.steps, rules, conflicts)


def resolve_ruled_dataset(store: Store, name: str | None = None) -> str:
    """As `resolve_dataset`, but without a name the newest dataset that has rules, if any has.

    What a refinement has collected since has none of its own.
    """
    found = store.select(
        """SELECT dataset_id FROM datasets WHERE dataset_id IN (SELECT dataset_id FROM rules)
           ORDER BY created_at DESC, dataset_id DESC LIMIT 1"""
    )
    return resolve_dataset(store, name or (found[0][0] if found else None))
