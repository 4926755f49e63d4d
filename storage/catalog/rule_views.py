"""The views of rules: `ruled_steps`, each rule beside each step that it matches, and `rule_labels`, what is decided.

A list of rules is read from its beginning, and the first rule that matches a step decides there. Its action is a number
for each dimension, a formula, or what was logged; numbers are cut to the bounds, and where a formula has no value, the
step has no label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        con: a connection to the catalog.
        datasets: id, action space and component names of each that can be shown.
    """
    shown = {name: (space, tuple(component_columns(names))) for name, space, names in datasets}
    queries = [query for stored in _stored_lists(con, shown) if (query := _ListQuery.of(stored)).read]
    return [_ruled_steps(queries), _rule_labels(queries)]


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
    """The SQL of one list: what is computed for each step, in layers, each of which may use those below it.

    The column "rule" is the place of a rule in the list, "value 0", ... are what it says in each dimension, and "has
    value" is whether all its formulas have one. All numbers of a rule are one branch, so that a step is looked at once
    and not once for each dimension.
    """

    dataset_id: str
    action_space: Space
    read: list[tuple[StoredRule, _ReadRule]]  # those that are allowed, in their order
    steps: str  # a query with the terms as columns, and what was logged

    @classmethod
    def of(cls, stored: StoredList) -> _ListQuery:
        reader = _allowed_terms(stored)
        read = [(rule, found) for rule in stored.rules if (found := _read(rule, reader)) is not None]
        expressions = [e for _, parts in read for e in (parts.predicate, *parts.formulas) if e is not None]
        steps = scan_steps(stored.dataset_id, reader, expressions)
        return cls(stored.dataset_id, stored.action_space, read, steps)

    @property
    def matched(self) -> str:
        """A query with one row for each rule that matches a step; "first" is the place of the one that decides."""
        places = range(len(self.read))
        matches = {f"rule {n}": f'"acted in" AND {parts.predicate.sql}' for n, (_, parts) in enumerate(self.read)}
        branches = [f'WHEN "rule {n}" THEN {n}' for n in places]
        entries = ", ".join(f"CASE {branch} END" for branch in branches)
        placed = {"first": f"CASE {' '.join(branches)} END", "rule": f"unnest([{entries}])"}
        scan = _layer(_layer(self.steps, matches), placed)
        return self._with_values(f'SELECT * FROM ({scan}) WHERE "rule" IS NOT NULL')

    @property
    def decided(self) -> str:
        """A query with one row for each step, where "rule" is null if none decides.

        A formula is computed in the steps where its rule decides, and nowhere else.
        """
        conditions = " ".join(f"WHEN {parts.predicate.sql} THEN {n}" for n, (_, parts) in enumerate(self.read))
        rule = f'CASE WHEN NOT "acted in" THEN NULL {conditions} END'
        return self._with_values(_layer(self.steps, {"rule": rule}))

    def _with_values(self, scan: str) -> str:
        branches = " ".join(f"WHEN {n} THEN {self._numbers(*one)}" for n, one in enumerate(self.read))
        scan = _layer(scan, {"values": f'CASE "rule" {branches} END'})
        values = {f"value {m}": f'"values"."{m}"' for m in range(self.action_space.size)}
        scan = _layer(scan, values)
        undefined = [f'{self._is_computed(m)} AND NOT isfinite("value {m}")' for m in self._computed]
        has_value = ['"rule" IS NOT NULL', *(f"NOT ({condition})" for condition in undefined)]
        return _layer(scan, {"has value": " AND ".join(has_value)})

    def _numbers(self, rule: StoredRule, parts: _ReadRule) -> str:
        """SQL of what a rule says in each dimension, before it is cut; what was logged where it says nothing."""
        formulas = parts.formulas or [None] * self.action_space.size
        numbers = [
            formula.sql if formula else f'"the vector"[{m + 1}]' if number is None else f"{number!r}::DOUBLE"
            for m, (number, formula) in enumerate(zip(rule.suggested_action, formulas, strict=True))
        ]
        return "{" + ", ".join(f"'{m}': {sql}" for m, sql in enumerate(numbers)) + "}"

    def select(self, query: str, *, decides: str) -> str:
        """What a view shows of a query's rows; no action where a formula has no value."""
        numbers = {m: sql_name(f"value {m}") for m in range(self.action_space.size)}
        numbers |= {
            m: f"CASE WHEN {self._is_computed(m)} THEN {_cut(numbers[m], self.action_space, m)} ELSE {numbers[m]} END"
            for m in self._computed
        }
        ids = ", ".join(sql_text(rule.rule_id) for rule, _ in self.read)
        agrees = same_action(self.action_space, "suggested_action", "action_vector")
        return f"""SELECT *, {agrees} AS agrees FROM (
SELECT {sql_text(self.dataset_id)} AS dataset_id, episode_id, "at step" AS step, [{ids}]["rule" + 1] AS rule_id,
    CASE WHEN "has value" THEN [{", ".join(numbers.values())}] END AS suggested_action, {decides} AS decides,
    "the observation" AS observation, "the action" AS action, "the vector" AS action_vector, "the name" AS action_name,
    "the reward" AS reward
FROM (
{query}
))"""

    def _is_computed(self, place: int) -> str:
        """SQL of whether a rule has a formula in a dimension."""
        if len(self._computed[place]) == len(self.read):
            return "true"
        return f'"rule" IN ({", ".join(map(str, self._computed[place]))})'

    @property
    def _computed(self) -> dict[int, list[int]]:
        """The places of the rules that have a formula, by dimension."""
        found: dict[int, list[int]] = {}
        for n, (_, parts) in enumerate(self.read):
            for m, formula in enumerate(parts.formulas):
                if formula is not None:
                    found.setdefault(m, []).append(n)
        return found


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
            scan = _layer(scan, {name: term.sql})
    return scan


def _layer(scan: str, columns: Mapping[str, str]) -> str:
    """A query over a query, that has some columns more."""
    written = ", ".join(f"{sql} AS {sql_name(name)}" for name, sql in columns.items())
    return f"SELECT *, {written} FROM (\n{scan}\n)"


def _cut(sql: str, space: Space, place: int) -> str:
    """SQL of a number that is cut to the bounds of its dimension."""
    low, high = (bounds[place] if bounds else None for bounds in (space.low, space.high))
    raised = sql if low is None or low == float("-inf") else f"greatest({sql}, {low!r}::DOUBLE)"
    return raised if high is None or high == float("inf") else f"least({raised}, {high!r}::DOUBLE)"


def count_decisions_of(stored: StoredList) -> str:
    """A query for the place of each rule that decides somewhere, the steps, and those of them where it has a value.

    A last row has no place: the rows where nothing decides. A condition would leave them out, but DuckDB would look
    for the rule that decides twice.

    Args:
        stored: at least one rule; each is allowed.
    """
    query = _ListQuery.of(stored)
    return f"""SELECT "rule", count(*), count(*) FILTER (WHERE "has value") FROM (
{query.decided}
) GROUP BY 1"""


_NOTHING = """SELECT NULL::VARCHAR AS dataset_id, NULL::BIGINT AS episode_id, NULL::INTEGER AS step,
    NULL::VARCHAR AS rule_id, NULL::DOUBLE[] AS suggested_action, NULL::BOOLEAN AS decides,
    NULL::DOUBLE[] AS observation, NULL::BIGINT AS action, NULL::DOUBLE[] AS action_vector,
    NULL::VARCHAR AS action_name, NULL::DOUBLE AS reward, NULL::BOOLEAN AS agrees WHERE false"""


def _ruled_steps(queries: Sequence[_ListQuery]) -> str:
    """Each rule beside each step that it matches.

    `suggested_action` is complete: where a rule leaves a dimension open, it is the logged one; it is null where a
    formula has no value. `decides` says whether the rule is the first of its list that matches the step.
    """
    return _joined("ruled_steps", [query.select(query.matched, decides='"rule" = "first"') for query in queries])


def _rule_labels(queries: Sequence[_ListQuery]) -> str:
    """One row per list and step where a rule decides and says something: what a refinement imitates.

    Unnesting drops the steps without an action, where a condition would be computed a second time.
    """
    there = {"is there": 'unnest(CASE WHEN "has value" THEN [true] END)'}
    selects = [query.select(_layer(query.decided, there), decides="true") for query in queries]
    return _joined("rule_labels", selects)


def _joined(name: str, selects: Sequence[str]) -> str:
    """A view of matches beside all that is known of their rules."""
    matched = " UNION ALL BY NAME\n".join([_NOTHING, *selects])
    return f"""{_CREATE}{name} AS
SELECT rules.* EXCLUDE (suggested_action, created_at), matched.* EXCLUDE (dataset_id, rule_id)
FROM (
{matched}
) AS matched JOIN rules USING (dataset_id, rule_id)"""


WITHOUT_RULES = (_ruled_steps(()), _rule_labels(()))
"""The views of rules in a catalog without any, as `rule_views` makes them."""
