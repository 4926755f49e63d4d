"""Conditions of rules: what is allowed means what it says, and nothing else gets through."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from soak import full_or

from storage.errors import BadInput
from storage.expressions import (
    FUNCTIONS,
    MAX_DEPTH,
    MAX_LENGTH,
    Expression,
    number_sql,
    read_expression,
    read_formula,
    read_predicate,
    sql_name,
)

COLUMNS = ("x", "y", "left_leg", "step", "previous.x")
EXTREMES = [0.0, -0.0, 1.0, -1.5, 0.1, 1e300, -1e300, 5e-324, float("inf"), float("-inf"), float("nan"), None]
TOKEN = re.compile(
    r'"(?:x|y|left_leg|step|previous\.x)"|\d[\d.]*(?:e[+-]?\d+)?|AND|OR|NOT|CASE|WHEN|THEN|ELSE|END|'
    r"'nan'|::DOUBLE|isnan|pow|" + "|".join(FUNCTIONS) + r"|<>|<=|>=|[-+*/%<>=(),]|\s+"
)


@pytest.fixture(scope="module")
def table() -> duckdb.DuckDBPyConnection:
    """Every pair of extreme numbers in x and y, in a connection that reaches nothing else; `read` as they are read."""
    con = duckdb.connect(":memory:", config={"enable_external_access": "false"})
    con.execute('CREATE TABLE numbers (x DOUBLE, y DOUBLE, left_leg DOUBLE, step DOUBLE, "previous.x" DOUBLE)')
    columns = ", ".join(f"{number_sql(sql_name(name))} AS {sql_name(name)}" for name in COLUMNS)
    con.execute(f"CREATE VIEW read AS SELECT {columns} FROM numbers")
    pairs = [(x, y, float(i % 2), i, y) for i, (x, y) in enumerate((x, y) for x in EXTREMES for y in EXTREMES)]
    con.executemany("INSERT INTO numbers VALUES (?, ?, ?, ?, ?)", pairs)
    return con


def read(text: str) -> Expression:
    return read_predicate(text, COLUMNS)


def read_or_problem(text: str, reader: Callable[..., Expression] = read_predicate) -> tuple[Expression | None, str]:
    try:
        return reader(text, COLUMNS), ""
    except BadInput as refused:
        return None, refused.problem


def check_lawful(found: Expression, table: duckdb.DuckDBPyConnection) -> None:
    """Nothing but the words of this little language is in the SQL, and both engines say the same in every row."""
    assert TOKEN.sub("", found.sql) == ""
    assert found.columns <= set(COLUMNS)
    assert read_expression(found.text, COLUMNS, is_canonical=True).sql in found.sql
    columns = table.execute("SELECT * FROM numbers ORDER BY step").fetchnumpy()
    values = {name: np.ma.filled(column.astype(np.float64), np.nan) for name, column in columns.items()}
    computed = np.broadcast_to(found.compute(values), len(values["step"]))
    answers = [answer for (answer,) in table.execute(f"SELECT {found.sql} FROM read ORDER BY step").fetchall()]
    if found.is_condition:
        assert answers == computed.tolist()
    else:
        np.testing.assert_allclose(np.array(answers, np.float64), computed, rtol=1e-9, atol=1e-9)


MEANINGS = {
    "x < 0.1 AND left_leg = 1": lambda x, y, leg, step: (x < 0.1) & (leg == 1),
    "NOT (x IN (1, -2) OR y > 0)": lambda x, y, leg, step: ~(np.isin(x, [1, -2]) | (y > 0)),
    "abs(x - y) * 2 BETWEEN 1 AND 1e1": lambda x, y, leg, step: (abs(x - y) * 2 >= 1) & (abs(x - y) * 2 <= 10),
    "x - y - 1 > 0": lambda x, y, leg, step: x - y - 1 > 0,
    "x - (y - 1) > 0": lambda x, y, leg, step: x - (y - 1) > 0,
    "x / (y * 2) > .5": lambda x, y, leg, step: x / (y * 2) > 0.5,
    "-x + -1 < y OR x = 1 AND y = 1": lambda x, y, leg, step: (-x - 1 < y) | ((x == 1) & (y == 1)),
    "X != 1 AnD step % 3 = 1": lambda x, y, leg, step: (x != 1) & (step % 3 == 1),
    "sqrt(x) < 1 OR x < -1": lambda x, y, leg, step: ((x >= 0) & (np.sqrt(abs(x)) < 1)) | (x < -1),
    "least(x, y, 0.5) >= greatest(-1, -y)": lambda x, y, leg, step: (
        np.minimum(np.minimum(x, y), 0.5) >= np.maximum(-1, -y)
    ),
    "atan2(y, x) > cos(0) - sin(x) AND sign(y) = 1": lambda x, y, leg, step: (
        (np.arctan2(y, x) > 1 - np.sin(x)) & (np.sign(y) == 1)
    ),
    "floor(x) + ceil(y) + round(x) = 2": lambda x, y, leg, step: np.floor(x) + np.ceil(y) + np.round(x) == 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("text", MEANINGS)
def test_an_allowed_condition_means_what_it_says(text: str, table: duckdb.DuckDBPyConnection) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(-3, 4, (2, 200)) + rng.choice([0.0, 0.25], (2, 200))
    leg, step = rng.integers(0, 2, 200).astype(float), np.arange(200)
    with np.errstate(all="ignore"):
        expected = MEANINGS[text](x, y, leg, step)
    found = read(text)
    con = duckdb.connect(":memory:")
    con.execute("CREATE TABLE t (x DOUBLE, y DOUBLE, left_leg DOUBLE, step DOUBLE)")
    con.executemany(
        "INSERT INTO t VALUES (?, ?, ?, ?)", [list(row) for row in zip(x, y, leg, step.tolist(), strict=True)]
    )
    answers = [answer for (answer,) in con.execute(f"SELECT {found.sql} FROM t ORDER BY step").fetchall()]
    assert answers == expected.tolist()
    assert any(answers)
    assert not all(answers)
    check_lawful(found, table)


def test_equal_conditions_have_one_text() -> None:
    texts = {read(text).text for text in ("x<1 and Y>=2", "((X) < 1.0) AND (y >= 2)", '"x" < 1e0 AND "y" >= +2')}
    assert texts == {"x < 1 AND y >= 2"}


def test_a_column_that_is_a_word_of_sql_stays_quoted() -> None:
    found = read_predicate('"end" > 1 AND "two words" < 1', ["end", "two words"])
    assert found.text == '"end" > 1 AND "two words" < 1'
    assert read_predicate(found.text, ["end", "two words"]) == found


REASONS = {
    "x > (SELECT 1)": "a query inside an expression is not allowed: `(SELECT 1)`",
    "x IN (SELECT y FROM secrets)": "a query inside an expression",
    "EXISTS (SELECT 1)": "a query inside an expression",
    "x < 1; DROP TABLE steps": "a second statement (;)",
    "x < 1 -- all of it": "a comment (--)",
    "x < 1 /* so */": "a comment (/*)",
    "x < '1'": "a string (')",
    "x::INTEGER > 1": "a cast is not allowed: `::INTEGER`",
    "CAST(x AS INTEGER) > 1": "a cast is not allowed: `CAST(x AS INTEGER)`",
    "TRY_CAST(x AS INTEGER) > 1": "a cast",
    "read_csv(x) > 1": "the function `read_csv` is not allowed",
    "getenv(x) > 1": "the function `getenv` is not allowed",
    "random() < x": "the function `random` is not allowed",
    "main.abs(x) < 1": "this form of a function",
    "main.steps.x < 1": "there is no column `main.steps.x`",
    "z < 1": "there is no column `z`",
    "x // 2 > 1": "the operator `//` is not allowed",
    "x << 2 > 1": "the operator `<<` is not allowed",
    "x LIKE y": "not allowed",
    "x IS NULL": "not allowed",
    "x IS DISTINCT FROM y": "this comparison is not allowed",
    "x[1] > 1": "not allowed",
    "COLUMNS(*) > 1": "a star is not allowed",
    "* > 1": "a star is not allowed",
    "x > $1": "more than an expression",
    "x > ?": "more than an expression",
    "count(*) OVER () > x": "a window function is not allowed",
    "abs(x) FILTER (WHERE y > 1) > 1": "this form of a function",
    "abs(DISTINCT x) > 1": "this form of a function",
    "x < 1 FROM steps": "more than an expression",
    "x < 1 UNION SELECT true": "more than an expression",
    "x < 1 LIMIT 1": "more than an expression",
    "x < 1 ORDER BY 1": "more than an expression",
    "DISTINCT x < 1": "more than an expression",
    "x < 1, y < 1": "more than an expression",
    "x < 1 AS z": "more than an expression",
    "x) < (1": "no expression",
    "1 < x < 2": "no expression",
    "x <": "no expression",
    "": "no expression",
    "x": "is a number, not a condition",
    "x + 1": "is a number, not a condition",
    "x AND y < 1": "is a number where a condition is needed",
    "CASE WHEN x THEN 1 END > 1": "is a number where a condition is needed",
    "CASE WHEN x > 1 THEN 'a' END > 1": "a string",
    "CASE WHEN x > 1 THEN (SELECT 1) END > 1": "a query inside an expression",
    "-x ** 2 > 1": "has two readings",
    "-3 ** 2 > x": "has two readings",
    "clip(x, 1) > 1": "clip of 2 numbers",
    "exp(x, y) > 1": "exp of 2 numbers",
    "pow(x, 2) > 1": "the function `pow` is not allowed",
    "previous.z > 1": "there is no column `previous.z`",
    "previous > 1": "there is no column `previous`",
    "next.x > 1": "there is no column `next.x`",
    "1 < 2": "reads no column",
    "true": "anything but a number",
    "x < NULL": "anything but a number",
    "x < 1e999": "a number of this size",
    "abs() < x": "abs of 0 numbers",
    "abs(x, y) < 1": "abs of 2 numbers",
    "least(x) < 1": "least of 1 numbers",
    "x < 1\x0b": "the character '\\x0b'",
    "x < 1 -- so\nx": "a comment (--)",
    "x ** 2 ** 3 > 1": "has two readings",
    "x < １": "the character '\\uff11'",
    "x\u202e < 1": "the character '\\u202e'",
    "x < E'\\x41'": "a string",
    "{x: 1} > 1": "not allowed",
    "[x] > [1]": "not allowed",
    "(x, y) < (1, 2)": "the function `row` is not allowed",
    "x COLLATE nocase < y": "a collation is not allowed",
    "x BETWEEN 1 AND (SELECT 2)": "a query inside an expression",
    "current_user > x": "there is no column",
    "INTERVAL 1 DAY > x": "not allowed",
    "DATE > x": "there is no column",
    "getvariable(x) > 1": "the function `getvariable`",
    "query_table(x) > 1": "the function `query_table`",
    "x < ALL (SELECT 1)": "a query inside an expression",
    "(FROM steps) > x": "a query inside an expression",
    "list_transform(x, y -> y + 1) > 1": "not allowed",
    "x -> y": "not allowed",
    "error(x) > 1": "the function `error`",
    "pg_sleep(x) > 1": "the function `pg_sleep`",
    "x @> y": "not allowed",
    "TABLE steps": "no expression",
    "SELECT 1": "no expression",
    "INSTALL httpfs": "more than an expression",
    "LOAD httpfs": "more than an expression",
    "PRAGMA version": "more than an expression",
    "x < 1 WINDOW w AS ()": "more than an expression",
    "x < 1 INTO y": "no expression",
    "GROUPING(x) > 1": "not allowed",
    "x OPERATOR(main.+) y > 1": "",
    "DEFAULT < x": "",
    "EXTRACT(year FROM x) > 1": "",
    "POSITION(x IN y) > 1": "",
    "SUBSTRING(x FROM 1) > y": "",
    "TRIM(x) > y": "",
    "COALESCE(x, 1) > 1": "",
    "NULLIF(x, 1) > 1": "",
    "IF(x > 1, y, 1) > 1": "",
    "x NOTNULL": "",
    "x SIMILAR TO y": "",
    "x ~ y": "",
    "NOT x": "is a number where a condition is needed",
    "#1 < 2": "",
    "x.*": "",
    "EXCLUDE (x)": "",
    "abs(x := 1) > 1": "",
    "UNNEST(x) > 1": "",
    "ROW(x) > 1": "",
    "MAP {x: y} > 1": "",
    "x < 1 HAVING x > 1": "",
    "x < 1 QUALIFY x > 1": "",
    "x < 1 USING SAMPLE 1": "",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", REASONS)
def test_what_is_not_allowed_is_refused_with_its_reason(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        read(text)
    assert REASONS[text] in refused.value.problem
    assert "The columns are x, y, left_leg, step; previous.NAME is a component one step earlier." in refused.value.hint
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 800


HOSTILE_FUNCTIONS = """
read_csv read_csv_auto read_parquet parquet_scan read_json read_text read_blob glob sniff_csv parquet_metadata
parquet_schema sqlite_scan postgres_scan mysql_scan iceberg_scan delta_scan arrow_scan pandas_scan python_map_function
seq_scan query query_table duckdb_secrets duckdb_settings duckdb_functions which_secret getenv getvariable
current_setting current_database current_schema current_user session_user txid_current version pragma_version
checkpoint force_checkpoint load_extension write_log setseed random uuid gen_random_uuid nextval currval now today
current_timestamp current_date get_current_timestamp epoch age make_date strftime date_part to_timestamp error
repeat range generate_series unnest list_value list_transform list_reduce list_aggregate array_agg struct_pack
row map json_extract from_json to_json regexp_replace regexp_matches printf format chr ascii concat length encode
decode base64 md5 sha256 hash bit_count count sum avg median quantile mode first last arg_max stddev histogram
string_agg lag lead row_number rank ntile first_value coalesce ifnull nullif if pow power log log2 log10 tan pi
trunc even factorial gamma isnan isfinite try typeof cast combine finalize
"""
HOSTILE_FORMS = """
{f}(x) + 1|1 + {f}(x)|CASE WHEN x > 1 THEN {f}(x) END|clip({f}(x), 0, 1)|x * {f}(x)|abs({f}(x))|({f}(x)) ** 2|-{f}(x)
""".strip().split("|")
HOSTILE_FORMULAS = [HOSTILE_FORMS[n % len(HOSTILE_FORMS)].format(f=f) for n, f in enumerate(HOSTILE_FUNCTIONS.split())]


def test_no_function_but_the_few_of_the_list_is_reached_from_any_place_in_a_formula() -> None:
    for text in HOSTILE_FORMULAS:
        _, problem = read_or_problem(text, read_formula)
        assert problem.count("\n") == 0, text
        assert re.search(r"is not allowed|is no expression|number where a condition", problem), text


def test_there_are_two_hundred_hostile_expressions() -> None:
    """The conditions above are refused as formulas too: what makes them hostile stands in a part of them."""
    only_conditions = ("is a number, not a condition", "reads no column")
    for text, reason in REASONS.items():
        assert read_or_problem(text, read_formula)[1] or reason.startswith(only_conditions), text
    assert len(REASONS) + len(HOSTILE_FORMULAS) >= 200


@pytest.mark.parametrize(
    "text",
    ["- " * 200 + "x < 1", "+" * 400 + "x < 1", "NOT " * 100 + "(x < 1)", "abs(" * 80 + "x" + ")" * 80],
)
def test_what_is_nested_deeply_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"nested|a comment|no expression"):
        read(text + ("" if "<" in text else " < 1"))


def test_what_is_long_is_refused_and_what_is_just_short_enough_is_read(table: duckdb.DuckDBPyConnection) -> None:
    text = "x<1" + " and x<1" * ((MAX_LENGTH - 3) // 8)
    assert len(text) <= MAX_LENGTH
    check_lawful(read(text), table)
    with pytest.raises(BadInput, match=f"has {len(text) + 8} characters; {MAX_LENGTH} are allowed"):
        read(text + " and x<1")


def number_text(rng: random.Random, depth: int) -> str:
    """A number of the grammar, with or without the brackets that its signs would need."""
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(["x", "Y", "step", "previous.x", "1", "0.1", "-2", "1e-3", "3.", "1_0"])
    one, other, third = (number_text(rng, depth - 1) for _ in range(3))
    condition = f"{one} {rng.choice(['<', '>='])} {other}"
    forms = [f"({one} {rng.choice('+-*/%')} {other})", f"{one} {rng.choice('+-*/%')} {other}", f"- {one}"]
    forms += [f"({one}) ** {rng.choice(['2', '0.5', '-1', other])}", f"({condition}) * {third}"]
    forms += [f"CASE WHEN {condition} THEN {third} WHEN {third} > 0 THEN {one} ELSE {other} END"]
    forms += [f"CASE WHEN {condition} THEN {third} END", f"{rng.choice(['least', 'MAX'])}({one}, {other}, {third})"]
    forms += [f"clip({one}, {other}, {third})", f"atan2({one}, {other})"]
    return rng.choice([*forms, *(f"{rng.choice(ONE_NUMBER)}({one})" for _ in range(4))])


ONE_NUMBER = ("abs", "SQRT", "sin", "cos", "floor", "ceil", "round", "exp", "ln", "asin", "acos", "sign")


def condition_text(rng: random.Random, depth: int = 2) -> str:
    """A condition of the grammar."""
    if depth == 0 or rng.random() < 0.4:
        one, other, third = (number_text(rng, 2) for _ in range(3))
        sign = rng.choice(["<", ">", "=", "<>", "<=", ">=", "!=", "=="])
        return rng.choice(
            [f"{one} {sign} {other}", f"{one} NOT BETWEEN {other} AND {third}", f"{one} in ({other}, {third})"]
        )
    one, other = condition_text(rng, depth - 1), condition_text(rng, depth - 1)
    word = rng.choice(["AND", "or"])
    return rng.choice([f"{one} {word} {other}", f"({one} {word} {other})", f"NOT ({one})", f"NOT {one}"])


@pytest.mark.slow
@settings(max_examples=full_or(300, 75), deadline=None)
@given(seed=st.integers(0, 2**32), is_condition=st.booleans())
def test_sql_and_numpy_give_the_same_for_whatever_the_grammar_builds(
    seed: int, is_condition: bool, table: duckdb.DuckDBPyConnection
) -> None:
    rng = random.Random(seed)
    text = condition_text(rng) if is_condition else number_text(rng, 3)
    found, problem = read_or_problem(text, read_predicate if is_condition else read_formula)
    if found is None:
        assert re.search(r"characters;|reads no column|nested|a comment|two readings|a number of this size", problem)
        return
    check_lawful(found, table)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x + 2 * y - 1", [-1, 1, 10]),
        ("-(x ** 2) / 2", [-2, 0, -4.5]),
        ("(-x) ^ 2", [4, 0, 9]),
        ("x % 3", [-2, 0, 0]),
        ("max(abs(x), y) - min(x, 1)", [4, 1, 3]),
        ("round(x / 4)", [-1, 0, 1]),
        ("atan2(sin(x), cos(x))", [-2, 0, 3]),
        ("clip(x, -1, y)", [-1, 0, 3]),
        ("clip(ln(x), -1, 1)", [np.nan, -1, 1]),
        ("1 / x", [-0.5, np.inf, 1 / 3]),
        ("256 * (x > 1) + NOT (x > 1)", None),
        ("256 * (x > 1) + (NOT x > 1)", [1, 1, 256]),
        ("CASE WHEN x > 1 THEN y WHEN x < 0 THEN -y END", [-1, np.nan, 4]),
        ("acos(x) > -1", [0, 1, 0]),
        ("sign(ln(x)) * exp(0)", [np.nan, -1, 1]),
    ],
)
def test_a_formula_is_computed_element_by_element(text: str, expected: list[float] | None) -> None:
    found, problem = read_or_problem(text, read_formula)
    if found is None or expected is None:
        assert expected is None
        assert "no expression" in problem or "number where a condition" in problem
        return
    computed = found.compute({"x": np.array([-2.0, 0.0, 3.0]), "y": np.array([1.0, 1.0, 4.0])})
    np.testing.assert_allclose(computed, expected)
    assert computed.dtype == np.float64


def test_what_has_no_value_meets_no_comparison_but_its_negation() -> None:
    """Two-valued, so that both engines can keep to it: a comparison with what has no value is false."""
    values = {"x": np.array([np.nan])}
    texts = ["x > 1", "x <> 1", "x BETWEEN 0 AND 1", "x IN (1, 2)", "NOT x > 1"]
    assert [bool(read(text).compute(values)[0]) for text in texts] == [False] * 4 + [True]


def test_an_expression_whose_parts_repeat_each_other_too_often_is_refused() -> None:
    """`sign` repeats its number in SQL, which doubles the text with every level."""
    with pytest.raises(BadInput, match="repeat each other too often"):
        read_formula("sign(" * 20 + "x" + ")" * 20, COLUMNS)


WORDS = st.sampled_from(
    [*"xyz()*,.;'\"$?<>=[]{}:", "--", "/*", "SELECT", "FROM", "steps", "AND", "OR", "NOT", "IN", "BETWEEN", "CASE",
     "WHEN", "END", "read_csv", "getenv", "abs", "1", "0.5", "::INT", "::", "->", "UNION", "WHERE", "NULL", "lambda"]
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=full_or(400, 100), deadline=None)
@given(text=st.one_of(st.lists(WORDS, max_size=14).map(" ".join), st.text(max_size=40)))
@example(text="x" * 1001)
@example(text="\ud800")
@example(text='"')
@example(text='x < 1"')
def test_no_text_crashes_and_what_gets_through_is_lawful(text: str, table: duckdb.DuckDBPyConnection) -> None:
    found, problem = read_or_problem(text)
    assert problem.isprintable()
    if found is not None:
        check_lawful(found, table)


def test_reading_touches_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a function that would read a file while a query is planned is only looked at."""
    monkeypatch.chdir(tmp_path)
    trap = tmp_path / "trap.csv"
    trap.write_text("x\n1\n")
    before = trap.stat().st_atime_ns
    for text in ('"trap.csv" > 1', "x IN (SELECT x FROM trap)", 'x IN (FROM "trap.csv")', "glob(x) > 1"):
        with pytest.raises(BadInput):
            read(text)
    assert trap.stat().st_atime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["trap.csv"]


def test_depth_counts_operators_not_brackets() -> None:
    assert read("(" * 200 + "x < 1" + ")" * 200).text == "x < 1"
    deep = "x" + " + 1" * (MAX_DEPTH - 2)
    assert read(f"{deep} < 1").text == f"{deep} < 1"
    with pytest.raises(BadInput, match=f"more than {MAX_DEPTH} levels deep"):
        read(f"{deep} + 1 < 1")
