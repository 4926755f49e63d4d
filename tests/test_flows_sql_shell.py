"""`trajnote sql` without a question: a shell in a terminal, the question from a pipe; what the tables mean."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.catalog import described_tables
from storage.datasets import adopt_dataset
from storage.store import Store

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ROOT = EXAMPLES.parent


class Terminal:
    """The shell in a terminal of its own."""

    def __init__(self, store: Path, state: Path) -> None:
        self._ours, theirs = pty.openpty()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TRAJNOTE_STATE": str(state),
            "TERM": "dumb",
            "COLUMNS": "200",
        }
        command = [sys.executable, "-m", "flows.cli", "sql", "--store", str(store)]
        self.process = subprocess.Popen(
            command, cwd=state, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.until("sql> ")

    def until(self, word: str) -> str:
        said = ""
        while word not in said:
            assert select.select([self._ours], [], [], 30)[0], said
            try:
                said += os.read(self._ours, 65536).decode()
            except OSError:
                return said
        return said

    def interrupt(self, until: str = "sql> ") -> str:
        """A signal that comes before the shell waits for a line is noticed with the next one."""
        self.process.send_signal(signal.SIGINT)
        while not select.select([self._ours], [], [], 1)[0]:
            self.process.send_signal(signal.SIGINT)
        return self.until(until)

    def ask(self, line: str, until: str = "sql> ") -> str:
        os.write(self._ours, line.encode())
        return self.until(until)


@pytest.mark.slow
def test_the_shell_answers_completes_explains_and_remembers(empty_store: Path, tmp_path: Path) -> None:
    shell = Terminal(empty_store, tmp_path)
    tables = shell.ask(".tables\n")
    assert tables.index("\nannotated_steps ") < tables.index("\nleaderboard ") < tables.index("\nepisodes ")
    assert "One row per dataset" in tables
    assert "Did you mean annotations" in shell.ask(".columns anotations\n")
    assert "How sure the annotator is" in shell.ask(".columns annotations\n")
    shell.ask("SELECT 40 + 1\n", until="...> ")
    assert "42" in shell.ask("+ 1 AS answer;\n")
    assert "annotated_steps" in shell.ask("SELECT count(*) FROM annotated_s\t;\n")
    assert "error: A query only reads" in shell.ask("DROP TABLE rules;\n")
    assert "error:" in shell.ask("SELECT nothing;\n")
    assert "There is no command .nonsense" in shell.ask(".nonsense\n")
    shell.ask("SELECT 1\n", until="...> ")
    shell.interrupt()
    shell.ask(".quit\n", until="no more is said")
    assert shell.process.wait(60) == 0
    assert "+ 1 AS answer;" in (tmp_path / "sql_history").read_text()


@pytest.mark.slow
def test_from_a_pipe_the_question_is_what_comes_through_it(
    empty_store: Path, run: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT\n  7 AS seven\n"))
    assert json.loads(run(["sql", "--store", str(empty_store), "--json"]))["rows"] == [{"seven": 7}]


@pytest.mark.slow
def test_every_table_view_and_column_of_the_catalog_says_what_it_is(store: Store) -> None:
    adopt_dataset(store, EXAMPLES / "cartpole" / "rollouts")
    with store.catalog.read() as con:
        tables = con.execute(
            """SELECT table_name, comment FROM duckdb_tables() WHERE NOT internal
               UNION ALL SELECT view_name, comment FROM duckdb_views() WHERE NOT internal"""
        ).fetchall()
        columns = con.execute(
            "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal ORDER BY column_index"
        ).fetchall()
    assert dict(tables) == {each.name: each.about for each in described_tables()}
    assert [(table, column) for table, column, comment in columns if not comment] == []
    for each in described_tables():
        own = {column: comment for table, column, comment in columns if table == each.name}
        assert dict(each.columns) == {column: own[column] for column in list(own)[: len(each.columns)]}
        assert each.name == "annotated_steps" or list(own) == list(each.columns)


def test_the_five_tables_that_matter_first_come_first() -> None:
    first = [each.name for each in described_tables()[:5]]
    assert first == ["datasets", "steps", "annotated_steps", "annotations", "leaderboard"]
    for each in described_tables():
        for words in (each.about, *each.columns.values()):
            assert words.endswith("."), (each.name, words)
