"""What a disk refuses reaches a terminal as one line and an exit code; so does a dataset that had to be left out."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from pathlib import Path

import pytest
from toy_datasets import make_draft, make_episode, write

from flows.cli import main
from storage.store import Store


def test_an_error_of_the_operating_system_is_one_line_and_exit_code_8(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(store.root / "reports"))

    monkeypatch.setattr(Store, "open", fail)
    monkeypatch.setattr(sys, "argv", ["trajnote", "store", "list", "--store", str(store.root)])
    with pytest.raises(SystemExit) as left:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 8
    assert line.startswith(f"error: {store.root / 'reports'} cannot be written: the disk is full (")
    assert line.endswith("then run the same command again: it resumes, and nothing is lost.")


@pytest.mark.parametrize(
    ("error", "line", "exit_code"),
    [
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE), "in", None, "out"), "error: out cannot be written: stale", 8),
        (FileNotFoundError(errno.ENOENT, "No such file", "gone.toml"), "error: gone.toml: No such file", 2),
    ],
)
def test_an_error_that_names_files_is_one_line_about_the_right_one(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    line: str,
    exit_code: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Store, "open", fail)
    monkeypatch.setattr(sys, "argv", ["trajnote", "store", "list", "--store", str(store.root)])
    with pytest.raises(SystemExit) as left:
        main()
    (said,) = capsys.readouterr().err.splitlines()
    assert (said[: len(line)], left.value.code) == (line, exit_code)


@pytest.mark.slow
def test_a_dataset_that_is_left_out_is_a_warning_on_standard_error_and_the_answer_stays_json(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bad", "good"):
        write(store, make_draft(name), [make_episode(0)])
    Path(store.dataset_dir("bad") / "steps-00000.parquet").unlink()
    question = "SELECT dataset_id, count(*) AS n FROM steps GROUP BY ALL"
    monkeypatch.setattr(sys, "argv", ["trajnote", "sql", question, "--json", "--store", str(store.root)])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(SystemExit):
            main()
    said = capsys.readouterr()
    assert said.out.strip() == '{"columns": ["dataset_id", "n"], "rows": [{"dataset_id": "good", "n": 5}]}'
    (line,) = said.err.splitlines()
    assert line.startswith(
        "warning: The dataset bad is left out of the views `steps` and `annotated_steps`: steps-00000"
    )
