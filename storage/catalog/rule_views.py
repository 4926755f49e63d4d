"""The views of rules: `ruled_steps`, each rule beside each step that it matches, and `rule_labels`, what is decided.

A list of rules is read from its beginning, and the first rule that matches a step decides there. Its action is a number
for each dimension, a formula, or what was logged; numbers are cut to the bounds, and where a formula has no value, the
step has no label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from ..errors import BadInput
from ..expressions import PREVIOUS, Expression, number_sql
from ..formulas import STEP, FormulaReader, Term
from ..schema import Space, sql_name, sql_text
from .connection import Connection
from .tables import component_columns, same_action

_CREATE = "CREATE OR REPLACE VIEW "
_LOGGED = "observation, action, action_vector, action_name, reward"


class StoredRule(NamedTuple):
    """What a view needs to know of a rule."""

    rule_id: str
    predicate: str
    suggested_action: Sequence[float | None]
    formulas: Sequence[str | None] | None


@dataclass(frozen=True)
class StoredList:
    """A list of rules of one dataset."""

    dataset_id: str
    action_space: Space
    columns: tuple[str, ...]  # of the observation's components, see `component_columns`
    terms: Sequence[Term]
    rules: Sequence[StoredRule]


def rule_views(con: Connection, datasets: Sequence[tuple[str, Space, Sequence[str]]]) -> list[str]:
    """Statements that make the views of rules.

    What is not allowed any more, in a catalog that was changed another way, matches nothing.

    Args:
        con: a connection of the catalog.
        datasets: id, action space and component names of each that can be shown.
    """
    shown = {name: (space, tuple(component_columns(names))) for name, space, names in datasets}
    queries = [query for stored in _stored_lists(con, shown) if (query := _ListQuery.of(stored)).rules]
    return [_ruled_steps(queries), _rule_labels(queries), _CRITICAL_STEPS]


def _stored_lists(con: Connection, shown: dict[str, tuple[Space, tuple[str, ...]]]) -> Iterator[StoredList]:
    found = con.execute("SELECT run_id, list_id, name, expression FROM terms ORDER BY run_id, list_id, position")
    grouped = groupby(found.fetchall(), key=lambda row: row[:2])
    terms = {key: [Term(*row[2:]) for row in rows] for key, rows in grouped}
    rows = con.execute(
        """SELECT dataset_id, run_id, coalesce(request_id, run_id), rule_id, predicate, suggested_action, formulas
           FROM rules ORDER BY run_id, request_id, position, rule_id"""
    ).fetchall()
    for (dataset_id, run_id, list_id), rules in groupby(rows, key=lambda row: row[:3]):
        if dataset_id in shown:
            own = terms.get((run_id, list_id), [])
            yield StoredList(dataset_id, *shown[dataset_id], own, [StoredRule(*row[3:]) for row in rules])


class _ListQuery(NamedTuple):
    """The SQL of one list: what is computed for each step, in layers, each of which may use those below it."""

    dataset_id: str
    action_space: Space
    rules: list[str]  # ids, in their order
    read: list[tuple[StoredRule, _ReadRule]]  # the same rules
    steps: str  # a query with the terms as columns, and what was logged

    @classmethod
    def of(cls, stored: StoredList) -> _ListQuery:
        reader = _allowed_terms(stored)
        read = [(rule, found) for rule in stored.rules if (found := _read(rule, reader)) is not None]
        steps = scan_steps(stored.dataset_id, reader, [e for _, parts in read for e in parts.all])
        return cls(stored.dataset_id, stored.action_space, [rule.rule_id for rule, _ in read], read, steps)

    @property
    def matched(self) -> str:
        """A query with the columns "rule N", "action N" for each rule, and what was logged."""
        read = self.read
        formulas = {f"formula {n}.{m}": e.sql for n, (_, p) in enumerate(read) for m, e in enumerate(p.formulas) if e}
        layers = [
            _layer({f"rule {n}": f'"acted in" AND {parts.predicate.sql}' for n, (_, parts) in enumerate(read)}),
            _layer(formulas),
            _layer({f"action {n}": _action(rule, n, self.action_space) for n, (rule, _) in enumerate(read)}),
        ]
        scan = self.steps
        for layer in filter(None, layers):
            scan = layer.format(scan)
        return scan

    @property
    def decided(self) -> str:
        """A query with the place of the rule that decides as the column "first", "value 0", ... of its action.

        "has value" is whether all its formulas have one. A formula is computed in the steps where its rule decides,
        and nowhere else: all numbers of a rule are one branch, so that a step is looked at once and not once for each
        dimension.
        """
        conditions = " ".join(f"WHEN {parts.predicate.sql} THEN {n}" for n, (_, parts) in enumerate(self.read))
        branches = " ".join(f"WHEN {n} THEN {self._numbers(*one)}" for n, one in enumerate(self.read))
        scan = _layer({"first": f'CASE WHEN NOT "acted in" THEN NULL {conditions} END'}).format(self.steps)
        scan = _layer({"values": f'CASE "first" {branches} END'}).format(scan)
        values = {f"value {m}": f'"values"."{m}"' for m in range(self.action_space.size)}
        scan = _layer(values).format(scan)
        return _layer({"has value": self._has_value}).format(scan)

    def _numbers(self, rule: StoredRule, parts: _ReadRule) -> str:
        """SQL of what a rule says in each dimension, before it is cut; what was logged where it says nothing."""
        formulas = parts.formulas or [None] * self.action_space.size
        said = [
            formula.sql if formula else _said(number, m)
            for m, (number, formula) in enumerate(zip(rule.suggested_action, formulas, strict=True))
        ]
        return "{" + ", ".join(f"'{m}': {sql}" for m, sql in enumerate(said)) + "}"

    @property
    def _has_value(self) -> str:
        undefined = [f'{self._is_computed(m)} AND NOT isfinite("value {m}")' for m in self._computed]
        return " AND ".join(['"first" IS NOT NULL', *(f"NOT ({condition})" for condition in undefined)])

    @property
    def action(self) -> str:
        """SQL of the action of the rule that decides, where it has one."""
        numbers = {m: sql_name(f"value {m}") for m in range(self.action_space.size)}
        numbers |= {
            m: f"CASE WHEN {self._is_computed(m)} THEN {_cut(numbers[m], self.action_space, m)} ELSE {numbers[m]} END"
            for m in self._computed
        }
        return f"[{', '.join(numbers.values())}]"

    def _is_computed(self, place: int) -> str:
        """SQL of whether the rule that decides has a formula in a dimension."""
        if len(self._computed[place]) == len(self.read):
            return "true"
        return f'"first" IN ({", ".join(map(str, self._computed[place]))})'

    @property
    def _computed(self) -> dict[int, list[int]]:
        """The places of the rules that have a formula, by dimension."""
        found: dict[int, list[int]] = {}
        for n, (_, parts) in enumerate(self.read):
            for m, formula in enumerate(parts.formulas):
                if formula is not None:
                    found.setdefault(m, []).append(n)
        return found


def _said(number: float | None, place: int) -> str:
    """SQL of a number of a rule without a formula there: what was logged where it says none."""
    return f'"the vector"[{place + 1}]' if number is None else f"{number!r}::DOUBLE"


def _allowed_terms(stored: StoredList) -> FormulaReader:
    reader = FormulaReader(stored.columns, {})
    for term in stored.terms:
        try:
            reader = reader.with_term(term, is_canonical=True)
        except BadInput:
            continue
    return reader


class _ReadRule(NamedTuple):
    """The expressions of a rule."""

    predicate: Expression
    formulas: Sequence[Expression | None]

    @property
    def all(self) -> list[Expression]:
        """Those that are there."""
        return [self.predicate, *filter(None, self.formulas)]


def _read(rule: StoredRule, reader: FormulaReader) -> _ReadRule | None:
    """The expressions of a rule; None if one is not allowed."""
    try:
        formulas = [reader.formula(text, is_canonical=True) if text else None for text in rule.formulas or ()]
        return _ReadRule(reader.predicate(rule.predicate, is_canonical=True), formulas)
    except BadInput:
        return None


def scan_steps(dataset_id: str, reader: FormulaReader, expressions: Sequence[Expression]) -> str:
    """A query for the rows of a dataset, with what some expressions read as columns: components and terms.

    "acted in" is false in the final rows, which nothing may be said of. They stay: rows that are left out would make
    DuckDB compute everything above by way of an index of the others, which takes longer than to compute them, too.

    Args:
        dataset_id: the dataset.
        reader: of a list of rules.
        expressions: of that list.
    """
    needed = reader.needs(expressions)
    named = {column: number_sql(f"observation[{place}]::DOUBLE") for place, column in enumerate(reader.columns, 1)}
    columns = {name: sql for name, sql in named.items() if name in needed}
    columns |= {
        PREVIOUS + name: number_sql(f"lag({sql}) OVER (PARTITION BY episode_id ORDER BY step)")
        for name, sql in named.items()
        if PREVIOUS + name in needed
    }
    written = "".join(f", {sql} AS {sql_name(name)}" for name, sql in columns.items())
    scan = f"""SELECT episode_id, step AS "at step", step::DOUBLE AS "{STEP}", action AS "the action",
    observation AS "the observation", action_vector AS "the vector", action_name AS "the name",
    reward AS "the reward", reward IS NOT NULL AS "acted in"{written}
FROM steps WHERE dataset_id = {sql_text(dataset_id)}"""
    for name, term in reader.terms.items():
        if name in needed:
            scan = _layer({name: term.sql}).format(scan)
    return scan


def _layer(columns: dict[str, str]) -> str:
    """A query over a query, {}, that has some columns more; empty if there are none."""
    if not columns:
        return ""
    written = ", ".join(f"{sql} AS {sql_name(name)}" for name, sql in columns.items())
    return "SELECT *, " + written.replace("{", "{{").replace("}", "}}") + " FROM (\n{}\n)"


def _action(rule: StoredRule, number: int, space: Space) -> str:
    """SQL of a rule's action, DOUBLE[]; null where one of its formulas has no value."""
    formulas = rule.formulas or [None] * len(rule.suggested_action)
    parts: list[str] = []
    undefined: list[str] = []
    for place, (said, formula) in enumerate(zip(rule.suggested_action, formulas, strict=True)):
        if formula is not None:
            column = sql_name(f"formula {number}.{place}")
            parts.append(_cut(column, space, place))
            undefined.append(f"NOT isfinite({column})")
        else:
            parts.append(f'"the vector"[{place + 1}]' if said is None else f"{said!r}::DOUBLE")
    action = f"[{', '.join(parts)}]"
    return f"CASE WHEN {' OR '.join(undefined)} THEN NULL ELSE {action} END" if undefined else action


def _cut(sql: str, space: Space, place: int) -> str:
    """SQL of a number that is cut to the bounds of its dimension."""
    low, high = (bounds[place] if bounds else None for bounds in (space.low, space.high))
    raised = sql if low is None or low == float("-inf") else f"greatest({sql}, {low!r}::DOUBLE)"
    return raised if high is None or high == float("inf") else f"least({raised}, {high!r}::DOUBLE)"


def _with_agreement(query: _ListQuery, select: str) -> str:
    agrees = same_action(query.action_space, "suggested_action", "action_vector")
    return f"SELECT *, {agrees} AS agrees FROM (\n{select}\n)"


def _decided(query: _ListQuery) -> str:
    """The list's steps, with the place of the rule that decides as the column "first"; null where none does."""
    whens = " ".join(f'WHEN "rule {n}" THEN {n}' for n in range(len(query.rules)))
    return f"""SELECT *, CASE {whens} END AS "first" FROM (
{query.matched}
)"""


def count_decisions_of(stored: StoredList) -> str:
    """A query for the place of each rule that decides somewhere, the steps, and those of them where it has a value.

    A last row has no place: the rows where nothing decides. A condition would leave them out, but DuckDB would look
    for the rule that decides twice.

    Args:
        stored: at least one rule; each is allowed.
    """
    query = _ListQuery.of(stored)
    return f"""SELECT "first", count(*), count(*) FILTER (WHERE "has value") FROM (
{query.decided}
) GROUP BY 1"""


_NAMES = (
    '"the observation" AS observation, "the action" AS action, "the vector" AS action_vector, '
    '"the name" AS action_name, "the reward" AS reward'
)
_NOTHING = """SELECT NULL::VARCHAR AS dataset_id, NULL::BIGINT AS episode_id, NULL::INTEGER AS step,
    NULL::VARCHAR AS rule_id, NULL::DOUBLE[] AS suggested_action, NULL::BOOLEAN AS decides,
    NULL::DOUBLE[] AS observation, NULL::BIGINT AS action, NULL::DOUBLE[] AS action_vector,
    NULL::VARCHAR AS action_name, NULL::DOUBLE AS reward, NULL::BOOLEAN AS agrees WHERE false"""


def _ruled_steps(queries: Sequence[_ListQuery]) -> str:
    """Each rule beside each step that it matches.

    `suggested_action` is complete: where a rule leaves a dimension open, it is the logged one; it is null where a
    formula has no value. `decides` says whether the rule is the first of its list that matches the step.
    """
    return _joined("ruled_steps", [_NOTHING, *(_with_agreement(query, _matches(query)) for query in queries)])


def _matches(query: _ListQuery) -> str:
    hits = [
        f"""{{'rule_id': {sql_text(rule)}, 'said': "action {n}", 'decides': "first" = {n}}}"""
        for n, rule in enumerate(query.rules)
    ]
    entries = ", ".join(f'CASE WHEN "rule {n}" THEN {hit} END' for n, hit in enumerate(hits))
    return f"""SELECT {sql_text(query.dataset_id)} AS dataset_id, episode_id, step, hit.rule_id AS rule_id,
    hit.said AS suggested_action, hit.decides AS decides, {_LOGGED}
FROM (SELECT episode_id, "at step" AS step, unnest([{entries}]) AS hit, {_NAMES}
      FROM (
{_decided(query)}
)) WHERE hit IS NOT NULL"""


def _rule_labels(queries: Sequence[_ListQuery]) -> str:
    """One row per list and step where a rule decides and says something: what a refinement imitates."""
    return _joined("rule_labels", [_NOTHING, *(_with_agreement(query, _decisions(query)) for query in queries)])


def _decisions(query: _ListQuery) -> str:
    """Steps with an action; unnesting drops the others, where a condition would be computed a second time."""
    ids = ", ".join(map(sql_text, query.rules))
    return f"""SELECT {sql_text(query.dataset_id)} AS dataset_id, episode_id, "at step" AS step,
    [{ids}]["first" + 1] AS rule_id, {query.action} AS suggested_action, true AS decides, {_NAMES}
FROM (
SELECT *, unnest(CASE WHEN "has value" THEN [true] END) AS "is there" FROM (
{query.decided}
))"""


def _joined(name: str, selects: Sequence[str]) -> str:
    """A view of matches beside all that is known of their rules."""
    matched = " UNION ALL BY NAME\n".join(selects)
    return f"""{_CREATE}{name} AS
SELECT rules.* EXCLUDE (suggested_action, created_at), matched.* EXCLUDE (dataset_id, rule_id)
FROM (
{matched}
) AS matched JOIN rules USING (dataset_id, rule_id)"""


_CRITICAL_STEPS = f"""{_CREATE}critical_steps AS
SELECT dataset_id, episode_id, step, run_id, annotation_id, NULL::VARCHAR AS rule_id, suggested_action, suggested_label,
    confidence, rationale, model
FROM annotations WHERE critical
UNION ALL BY NAME
SELECT dataset_id, episode_id, step, run_id, rule_id, suggested_action, suggested_label, confidence, rationale, model
FROM rule_labels WHERE critical"""
NO_RULES: Sequence[str] = (_ruled_steps(()), _rule_labels(()), _CRITICAL_STEPS)
"""The views where there is no rule."""
