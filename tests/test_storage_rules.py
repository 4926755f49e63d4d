"""Rules as rows: they label the steps that they match, in one query, and views tell what they do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from toy_datasets import BOX3, make_draft, make_episode, write

from storage import formulas
from storage.annotations.annotations import list_rule_runs
from storage.annotations.rules import (
    Rule,
    RuleList,
    find_rule_list,
    insert_rule_lists,
    load_rule_lists,
    summarise_rules,
)
from storage.catalog import Catalog, insert_rows
from storage.catalog.tables import MIGRATIONS, migrate
from storage.datasets.reader import read_steps
from storage.errors import BadInput
from storage.expressions import read_predicate
from storage.formulas import FormulaReader, Term
from storage.queries.query import run_query
from storage.schema import Space
from storage.store import Store
from storage.upkeep.verify import verify_store

TORQUES = Space(kind="box", dtype="float64", size=2, low=(-1.0, -1.0), high=(1.0, 1.0))


def rule(predicate: str, action: tuple[float | None, ...] = (1.0,), **changes: Any) -> Rule:
    fields: dict[str, Any] = {
        "rule_id": f"u_{changes.get('run_id', 'run')}_{changes.get('position', 0)}",
        "run_id": "run",
        "request_id": None,
        "dataset_id": "d1",
        "position": 0,
        "predicate": predicate,
        "suggested_action": action,
        "suggested_label": "right" if action == (1.0,) else "left",
        "confidence": 0.75,
        "rationale": "so",
        "model": "m",
        "prompt_version": None,
    }
    return Rule(**fields | changes)


def enter(store: Store, *rules: Rule) -> int:
    with store.catalog.write() as con:
        runs = [{"run_id": name, "dataset_id": "d1", "provider": "import"} for name in {r.run_id for r in rules}]
        insert_rows(con, "annotation_runs", runs)
        return insert_rule_lists(con, store, in_lists(rules))


def in_lists(rules: Sequence[Rule], terms: Sequence[Term] = ()) -> list[RuleList]:
    """Rules of one list each by their run and request; all lists have the same terms."""
    grouped: dict[tuple[str, str | None], list[Rule]] = {}
    for each in rules:
        grouped.setdefault((each.run_id, each.request_id), []).append(each)
    return [
        RuleList(request or run, run, request, "d1", "m", None, rules=tuple(own), terms=tuple(terms))
        for (run, request), own in grouped.items()
    ]


@pytest.fixture
def toys(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "store")
    write(store, make_draft(), [make_episode(i, 20) for i in range(4)], shard_bytes=1000)
    return store


@pytest.mark.slow
def test_a_rule_matches_what_its_condition_says_and_nothing_else(toys: Store) -> None:
    rules = [rule("x < 0"), rule("y > 0.5 AND step BETWEEN 3 AND 9", (0.0,), position=1)]
    assert enter(toys, *rules) == 2
    assert enter(toys, *rules) == 0
    (found,) = load_rule_lists(toys, "d1")
    assert list(found.rules) == rules
    steps = read_steps(toys, "d1")
    matches = run_query(toys, "SELECT episode_id, step, position FROM ruled_steps ORDER BY ALL").to_pydict()
    x, y = steps.observation[:, 0], steps.observation[:, 1]
    expected = [~steps.is_final & (x < 0), ~steps.is_final & (y > 0.5) & (steps.step >= 3) & (steps.step <= 9)]
    rows = steps.rows_of(matches["episode_id"], matches["step"])
    for place, wanted in enumerate(expected):
        assert rows[np.array(matches["position"]) == place].tolist() == np.flatnonzero(wanted).tolist()
    assert sum(map(np.sum, expected)) == len(rows) > 20


@pytest.mark.slow
def test_the_view_says_who_decides_and_who_agrees(toys: Store) -> None:
    enter(toys, rule("x < 0"), rule("y < 0", (0.0,), position=1), rule("y < 0", (1.0,), run_id="other"))
    steps = read_steps(toys, "d1")
    x, y, logged = steps.observation[:, 0], steps.observation[:, 1], steps.action
    alive = ~steps.is_final
    found = run_query(
        toys,
        """SELECT run_id, position, count(*)::INTEGER AS n, count(*) FILTER (decides)::INTEGER AS decides,
               count(*) FILTER (agrees)::INTEGER AS agrees FROM ruled_steps GROUP BY ALL ORDER BY ALL""",
    ).to_pylist()
    below, under = alive & (x < 0), alive & (y < 0)
    assert [tuple(row.values()) for row in found] == [
        ("other", 0, under.sum(), under.sum(), (under & (logged == 1)).sum()),
        ("run", 0, below.sum(), below.sum(), (below & (logged == 1)).sum()),
        ("run", 1, under.sum(), (under & ~below).sum(), (under & (logged == 0)).sum()),
    ]


@pytest.mark.slow
def test_coverage_and_conflicts_are_counted(toys: Store) -> None:
    enter(toys, rule("x < 0"), rule("y < 0", (0.0,), position=1), rule("y < 0", (1.0,), run_id="other"))
    with toys.catalog.write() as con:
        steps = read_steps(toys, "d1")
        row = int(np.flatnonzero(~steps.is_final & (steps.observation[:, 0] < 0))[0])
        note = {"annotation_id": "n", "run_id": "run", "dataset_id": "d1", "critical": True, "model": "m"}
        place = {"episode_id": int(steps.episode_id[row]), "step": int(steps.step[row]), "suggested_action": [0.0]}
        insert_rows(con, "annotations", [note | place])
    assert list_rule_runs(toys, "d1") == ["other", "run"]
    found = summarise_rules(toys, "d1", ["run", "other"])
    x, y = (steps.observation[~steps.is_final][:, place] for place in (0, 1))
    assert (found.steps, found.covered) == (80, ((x < 0) | (y < 0)).sum())
    by_id = {told["rule_id"]: told for told in found.rules}
    assert by_id["u_run_0"]["coverage"] == (x < 0).mean()
    assert (by_id["u_run_0"]["labels"], by_id["u_run_0"]["agrees_with_labels"]) == (1, 0.0)
    assert by_id["u_run_1"]["decides"] == ((y < 0) & ~(x < 0)).sum()
    both = ((x < 0) & (y < 0)).sum()
    told = {(c["rule_id"], c["other_rule_id"]): (c["steps"], c["decides"]) for c in found.conflicts}
    assert told == {("u_other_0", "u_run_1"): ((y < 0).sum(), None), ("u_run_0", "u_run_1"): (both, "u_run_0")}
    assert summarise_rules(toys, "d1", ["other"]).conflicts == []


@pytest.mark.slow
def test_a_dimension_that_a_rule_leaves_open_stays_as_it_was_logged(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    draft = make_draft(action_space=TORQUES, action_names=("hip", "knee"))
    actions = np.array([[0.5, -0.5], [0.5, 0.25], [-0.5, 0.24], [0.0, 1.0]])
    write(store, draft, [make_episode(0, 4, actions=actions)])
    enter(store, rule("step < 3", (None, 0.25)))
    found = run_query(store, "SELECT suggested_action, agrees FROM ruled_steps ORDER BY step").to_pylist()
    assert [row["suggested_action"] for row in found] == [[0.5, 0.25], [0.5, 0.25], [-0.5, 0.25]]
    assert [row["agrees"] for row in found] == [False, True, True]


@pytest.mark.slow
def test_columns_are_named_as_in_annotated_steps(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    write(store, make_draft(component_names=("position", "step", "rule_id"), observation_space=BOX3), [make_episode(0)])
    enter(store, rule("position > -9 AND obs_step > -9 AND rule_id > -9 AND step >= 2 AND step / step = 1"))
    assert run_query(store, "SELECT step FROM ruled_steps ORDER BY step").to_pydict() == {"step": [2, 3]}
    with pytest.raises(BadInput, match="there is no column `reward`"):
        enter(store, rule("reward > 1", position=1))
    assert len(load_rule_lists(store, "d1")[0].rules) == 1


@pytest.mark.slow
def test_a_condition_that_got_into_the_catalog_another_way_never_runs(toys: Store) -> None:
    enter(toys, rule("x < 0"))
    with toys.catalog.write() as con:
        con.execute("UPDATE rules SET predicate = 'x IN (SELECT 1 FROM read_csv(''/etc/passwd''))'")
    opened = Store.open(toys.root)
    assert run_query(opened, "SELECT count(*) AS n FROM ruled_steps").to_pylist() == [{"n": 0}]
    assert [str(damage) for damage in verify_store(opened)] == [
        "catalog.duckdb: the list of rules run: the expression has a string ('). Restore it from a backup."
    ]


@pytest.mark.slow
def test_rules_lead_back_to_raw_replies_and_the_views_follow_a_moved_store(toys: Store, tmp_path: Path) -> None:
    enter(toys, rule("x < 0", request_id="r_lost"))
    moved = Store.open(toys.root.rename(tmp_path / "moved"))
    assert run_query(moved, "SELECT count(*) > 0 AS there FROM ruled_steps").to_pylist() == [{"there": True}]
    assert [damage.problem for damage in verify_store(moved)] == ["1 rules of run run have no raw reply"]


@pytest.mark.slow
def test_an_older_catalog_keeps_its_requests(tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    duckdb.connect(str(path)).close()
    number = next(step.version for step in MIGRATIONS if step.name == "corrective rules")
    migrate(Catalog(path), MIGRATIONS[: number - 1])
    with Catalog(path).write() as con:
        old = {"request_id": "r_1", "kind": "mark", "body": {"a": 1}, "state": "failed", "attempts": 3, "error": "no"}
        insert_rows(con, "requests", [old])
        before = con.execute("SELECT * FROM requests").fetchall()
    assert next(step.version for step in migrate(Catalog(path))) == number
    with Catalog(path).write() as con:
        assert con.execute("SELECT * FROM requests").fetchall() == before
        insert_rows(con, "requests", [{"request_id": "r_2", "kind": "rules"}])
        with pytest.raises(BadInput, match="does not fit"):
            insert_rows(con, "requests", [{"request_id": "r_3", "kind": "poem"}])


@pytest.mark.slow
def test_a_store_is_opened_without_reading_its_rules(toys: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(toys, *(rule(f"x > {number}.5", position=number) for number in range(20)))
    read: list[str] = []

    def count(text: str, *rest: Any, **more: Any) -> Any:
        read.append(text)
        return read_predicate(text, *rest, **more)

    monkeypatch.setattr(formulas, "read_predicate", count)
    opened = Store.open(toys.root)
    assert run_query(opened, "SELECT 1 AS one").to_pylist() == [{"one": 1}]
    assert read == []


@pytest.mark.slow
def test_a_rule_that_changed_makes_the_views_again(toys: Store) -> None:
    enter(toys, rule("x > 100.5"), rule("x > 200.5", position=1))
    question = "SELECT count(*) AS steps FROM ruled_steps"
    assert run_query(Store.open(toys.root), question).to_pylist() == [{"steps": 0}]
    with toys.catalog.write() as con:
        con.execute("UPDATE rules SET predicate = 'x > -100.0'")
    assert run_query(Store.open(toys.root), question).to_pylist()[0]["steps"] > 0


ZEROS = np.zeros((30, 2))
TERMS = (
    Term("pull", "x - previous.x"),
    Term("is_low", "y < 0"),
    Term("odd", "1 / (x * is_low)"),
)


@pytest.mark.slow
def test_formulas_are_computed_cut_to_the_bounds_and_say_nothing_where_they_have_no_value(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    write(store, make_draft(action_space=TORQUES, action_names=("hip", "knee")), [make_episode(0, 30, actions=ZEROS)])
    rules = [
        rule("is_low", (None, 0.25), formulas=("odd * 1e-3", None), critical=True),
        rule("pull > 0", (None, None), formulas=("4 * pull", "-ln(x - 1)"), position=1),
    ]
    with store.catalog.write() as con:
        insert_rows(con, "annotation_runs", [{"run_id": "run", "dataset_id": "d1", "provider": "import"}])
        insert_rule_lists(con, store, in_lists(rules, TERMS))
    assert find_rule_list(store, "ru") == in_lists(rules, TERMS)[0]
    steps = read_steps(store, "d1")
    x, y = steps.observation[:-1, 0].astype(np.float64), steps.observation[:-1, 1]
    pull = np.diff(x, prepend=np.nan)
    with np.errstate(all="ignore"):
        first = np.stack([1e-3 / x, np.full(30, 0.25)], axis=1)
        second = np.stack([4 * pull, -np.log(x - 1)], axis=1)
    decides = np.where(y < 0, 0, np.where(pull > 0, 1, -1))
    said = np.where((decides == 0)[:, None], first, second)
    has_value = (decides >= 0) & np.isfinite(said).all(axis=1)
    labels = run_query(store, "SELECT step, position, suggested_action FROM rule_labels ORDER BY step").to_pydict()
    assert labels["step"] == np.flatnonzero(has_value).tolist()
    assert labels["position"] == decides[has_value].tolist()
    np.testing.assert_allclose(np.array(labels["suggested_action"]), np.clip(said[has_value], -1, 1), rtol=1e-9)
    assert 0 < sum(has_value) < sum(decides >= 0)
    critical = run_query(store, "SELECT step FROM critical_steps ORDER BY step").to_pydict()["step"]
    assert critical == np.flatnonzero(has_value & (decides == 0)).tolist()
    found = {row["position"]: row for row in summarise_rules(store, "d1", ["run"]).rules}
    assert found[1]["without_value"] == sum((decides == 1) & ~has_value) > 0
    assert verify_store(store) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        ([Term("a", "b + 1"), Term("b", "x")], "term a: there is no column `b`"),
        ([Term("x", "y")], "Two things are called 'x'"),
        ([Term("step", "y")], "Two things are called 'step'"),
        ([Term("A b", "y")], "a name has small letters"),
        ([Term("a", "a + x")], "term a: there is no column `a`"),
        ([Term("a", "previous.a + x")], "there is no column `previous.a`"),
        ([Term(f"a{n}", "x") for n in range(61)], "more than 60 terms"),
    ],
)
def test_terms_have_names_of_their_own_and_read_earlier_ones_only(terms: list[Term], problem: str) -> None:
    with pytest.raises(BadInput, match=re.escape(problem)):
        FormulaReader.of(["x", "y"], terms)


def test_a_list_of_rules_is_found_by_the_beginning_of_its_id(toys: Store) -> None:
    enter(toys, rule("x < 0"), rule("y < 0", run_id="runner"))
    with pytest.raises(BadInput, match="'ru' is a prefix of 2 rule list names"):
        find_rule_list(toys, "ru")
    with pytest.raises(BadInput, match="There is no rule list 'z'"):
        find_rule_list(toys, "z")
    assert find_rule_list(toys, "runn").list_id == "runner"
