"""Every question of the cookbook is asked, and its answer is the one on the page."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cookbook import build_store, questions
from readme import ROOT


def _columns(answer: str) -> str:
    """The line with the columns, without the widths that the values gave it."""
    return " ".join(answer.splitlines()[1].split())


@pytest.mark.slow
def test_every_question_has_the_answer_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[list[str]], str]
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAJNOTE_STORE", raising=False)
    build_store(tmp_path, run, "--betas", "0.1", "--snapshots", "30")
    for block, answer, varies in questions():
        printed = "\n".join(line.rstrip() for line in run(["sql", block.content]).rstrip().splitlines())
        assert answer is not None, f"line {block.line}: run python tests/cookbook.py"
        if varies:
            assert _columns(printed) == _columns(answer.content), f"line {block.line}"
        else:
            assert printed == answer.content, f"line {block.line}"
    script = _load(ROOT / "docs" / "read_the_catalog.py")
    store = tmp_path / "trajnote-store"
    assert [row[:2] for row in script.mean_confidence(store)] == [("claude", 159), ("claude-haiku-4-5", 142)]
    table = script.labelled_steps(store)
    assert len(table) == 159 + 142
    assert table["observation"].dtype.shape == (4,)


def test_there_are_at_least_fifteen_questions() -> None:
    assert len(questions()) >= 15


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
