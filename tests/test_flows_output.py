"""Tables keep to the terminal: short cells are never broken, and rows too wide for it stand one under the other."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows import cli
from flows.commands.output import format_cell, print_json, print_lines, print_table, progress_bars
from flows.refinement.comparison import ArmResult
from flows.refinement.present import arm_row
from refine.evaluation.gate import Interval

ARMS = ("baseline", "labels", "no_labels", "shuffled", "random")


@pytest.mark.parametrize("mean", [-987.6, 240.5, 3124.4])
def test_the_table_of_arms_fits_eighty_columns_with_intervals_unbroken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mean: float
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    returns = Interval(mean, mean - 10, mean + 10, 100)
    arms = [ArmResult(arm, 288, 3, 3, returns, returns) for arm in ARMS]
    rows = [arm_row(arm) for arm in arms]
    print_table("arms", rows)
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    interval = str(rows[0]["greedy [95%]"])
    assert [line.count(interval) for line in printed if interval in line] == [2] * 5


def test_rows_that_are_too_wide_stand_one_under_the_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    print_table("2 rows", [{f"column_{n}": f"value {row} of {n}" for n in range(6)} for row in (1, 2)])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["2 rows", "1", "column_0  value 1 of 0"]
    assert lines.index("2") == 8


def test_numbers_are_aligned_to_the_right_and_prose_is_wrapped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    print_table("rows", [{"n": 5, "why": "a reason of many words " * 4}, {"n": 1000, "why": "none"}])
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("   5  a reason")
    assert any(line.startswith("1000  none") for line in lines)
    assert max(map(len, lines)) <= 60


def test_cells_are_short_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("1 row", [{"said": "[red]stop[/red]"}])
    assert "[red]stop[/red]" in capsys.readouterr().out
    assert format_cell(None) == ""
    assert format_cell(0.123456789) == "0.1235"
    assert format_cell(float("nan")) == "nan"
    assert format_cell([1.0, 0.3333333]) == "1, 0.3333"
    assert format_cell([("illegal", 2), ("late", 1)]) == "illegal: 2, late: 1"
    assert format_cell(datetime(2026, 1, 2, 3, 4, 5, 678, UTC)) == "2026-01-02 03:04:05"


def test_lines_and_json_are_whole_when_they_go_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines("word " * 60)
    print_json({"text": "word " * 60, "when": datetime(2026, 1, 2, tzinfo=UTC)})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert printed[0] == "word " * 60


def test_nothing_is_said_of_progress_before_there_is_any(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars():
        pass
    assert capsys.readouterr().err == ""
    with progress_bars() as report:
        report("collect", 3, 3)
    assert "collect" in capsys.readouterr().err


EVERYTHING = """SELECT 1 AS a, 2 AS a, 'nan'::DOUBLE AS x, MAP {1: [NULL, 'inf'::DOUBLE]} AS m, {'k': INTERVAL 1 DAY}
AS s, 100000000000000000000::HUGEINT AS n, true AS t, 'y, z' AS w"""


@pytest.mark.slow
def test_an_answer_of_every_kind_is_printed_and_written(
    empty_store: Path, tmp_path: Path, run: Callable[[list[str]], str]
) -> None:
    ask = ["sql", EVERYTHING, "--store", str(empty_store)]
    row = {
        "a": 1, "a_1": 2, "x": "NaN", "m": {"1": [None, "Infinity"]}, "s": {"k": "1 day"},
        "n": 100000000000000000000, "t": True, "w": "y, z",
    }  # fmt: skip
    assert json.loads(run([*ask, "--json"])) == {"columns": list(row), "rows": [row]}
    assert json.loads(run([*ask, "--format", "json"])) == row
    assert list(csv.reader(run([*ask, "--format", "csv"]).splitlines())) == [
        list(row),
        ["1", "2", "nan", '{"1": [null, "Infinity"]}', '{"k": "1 day"}', "100000000000000000000", "true", "y, z"],
    ]
    assert "k: 1 day" in run(ask)
    for name in ("rows.parquet", "rows.csv", "rows.jsonl"):
        run([*ask, "--output", str(tmp_path / name)])
    assert pq.read_table(tmp_path / "rows.parquet").column_names == list(row)
    assert next(csv.reader((tmp_path / "rows.csv").read_text().splitlines())) == list(row)
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row


@pytest.mark.slow
def test_a_long_answer_is_printed_in_part_and_says_how_many_more_there_are(
    empty_store: Path, run: Callable[[list[str]], str]
) -> None:
    said = run(["sql", "SELECT range AS n FROM range(1234)", "--store", str(empty_store), "--max-rows", "3"])
    assert said.startswith("1234 rows")
    assert "and 1231 more rows; --max-rows and --output show more" in said


@pytest.mark.slow
def test_nothing_that_is_printed_steers_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    steering = "\x1b[31mred\x1b]0;title\x07"
    print_lines(steering)
    print_table(steering, [{steering: steering}])
    print_table(steering, [{f"{steering} {n}": steering for n in range(6)}])
    (tmp_path / "rows.jsonl").write_text(json.dumps({steering: 0}) + "\n")
    monkeypatch.setattr(
        "sys.argv", ["trajnote", "import", str(tmp_path / "rows.jsonl"), "--store", str(tmp_path / "s")]
    )
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr()
    assert "⟨U+001B⟩[31mred" in said.out
    assert "known: ⟨U+001B⟩[31mred" in said.err
    assert "\x1b]" not in said.out + said.err
    assert "\x07" not in said.out + said.err


def test_too_little_memory_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: str) -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "make_app", fail)
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 2
    assert capsys.readouterr().err == "error: Not enough memory. Process less at a time, or use a machine with more.\n"
