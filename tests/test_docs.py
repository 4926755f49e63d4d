"""The manual is true: its blocks run in order, its commands and options exist, its tree is the tree, its outputs come.

Blocks whose note says `not run` are only parsed. Options in a note `tests add: ...` make minutes into seconds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
import pytest
from readme import ROOT, Block, draw_tree, read_blocks, written_tree
from typer.main import get_command

from flows import cli
from storage.datasets.reader import read_manifest
from storage.store import Store

README = (ROOT / "README.md").read_text()
BLOCKS = read_blocks(README)
TAKES_MINUTES = {"demo", "pipeline"}
Run = Callable[[list[str]], str]


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its full name."""
    children = getattr(command, "commands", {})
    if not children or getattr(command, "invoke_without_command", False):
        yield " ".join(path), command
    for name, child in children.items():
        yield from leaves(child, (*path, name))


APP: Any = get_command(cli.make_app())  # Typer brings a click of its own
COMMANDS = dict(leaves(APP))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the examples beside it, as on a fresh checkout."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for name in ("TRAJNOTE_STORE", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_blocks_of_the_readme_run_in_order_and_print_what_it_says(folder: Path, run: Run) -> None:
    printed = ""
    for block in BLOCKS:
        if block.is_run:
            printed = _play(block, run)
        elif block.language == "text" and not block.note and _shows_output(block):
            assert _trimmed(printed) == block.content, f"README.md, line {block.line}"
    assert (folder / "labels.jsonl").is_file()


def test_the_readme_asks_at_least_eight_questions_in_sql() -> None:
    assert len({block.content for block in BLOCKS if block.language == "sql"}) >= 8


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash"], ids=lambda block: f"line-{block.line}")
def test_every_command_and_option_of_the_readme_exists(block: Block) -> None:
    for line in block.lines():
        _check_line(shlex.split(line))


def test_commands_named_in_the_prose_exist() -> None:
    named = set(re.findall(r"`trajnote ([a-z]+(?: [a-z]+)?)", README))
    assert named
    for name in named:
        assert name.split()[0] in {full.split()[0] for full in COMMANDS}, name


def test_every_command_is_in_the_table_of_the_readme() -> None:
    missing = [name for name in COMMANDS if f"| `{name}` |" not in README]
    assert not missing, f"add to the table of commands in README.md: {missing}"


def test_every_command_and_every_option_has_help() -> None:
    for name, command in COMMANDS.items():
        assert command.help, f"trajnote {name} has no help"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"trajnote {name}: {parameter.name} has no help"


def test_every_command_can_answer_in_json() -> None:
    for name, command in COMMANDS.items():
        assert any("--json" in parameter.opts for parameter in command.params), f"trajnote {name} has no --json"


def test_the_tree_of_the_manual_is_the_tree() -> None:
    assert written_tree() == draw_tree(), "mend docs/house.md: python tests/readme.py --write"


def test_the_pictures_of_the_readme_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert {"docs/arms.svg", "docs/candidates.svg"} <= set(pictures)
    for picture in pictures:
        assert (ROOT / picture).stat().st_size > 1000


def test_json_is_one_object_on_the_last_line_of_standard_output(folder: Path, run: Run) -> None:
    small = ["--select", "4", "--accept", "10", "--report", "10", "--draws", "2", "--workers", "1"]
    recorded = ["--provider", "recorded", "--answers", "examples/cartpole/answers.jsonl", "--model", "claude"]
    label = {"dataset_id": "cartpole-v1-f83dbaf4abde", "episode_id": 0, "step": 3, "suggested_action": "push_left"}
    Path("label.jsonl").write_text(json.dumps(label))
    commands = {
        "import": ["examples/cartpole/rollouts"],
        "collect": ["--env", "CartPole-v1", "--policy", "random", "--episodes", "2", "--dataset", "two"],
        "annotate plan": ["--dataset", "cartpole", "--model", "claude"],
        "annotate run": ["--dataset", "cartpole", *recorded],
        "annotate": ["--dataset", "cartpole", *recorded],
        "annotate quality": ["--dataset", "cartpole"],
        "annotations import": ["label.jsonl"],
        "refine": ["--dataset", "cartpole", *small],
        "evaluate": ["random", "--env", "CartPole-v1", "--episodes", "10", "--workers", "1"],
        "replay": ["--dataset", "two", "--episode", "1"],
        "export": ["two.csv", "--dataset", "two", "--format", "csv"],
        "sql": ["SELECT 1 AS one, 0.5 AS half"],
        "figures": ["--out", "pictures"],
        "store list": [],
        "store verify": [],
        "card list": [],
        "card show": ["CartPole-v1"],
        "card new": ["Taxi-v4"],
        "card check": ["MountainCar-v0"],
    }
    for name, words in commands.items():
        told = json.loads(run([*name.split(), *words, "--json"]).splitlines()[-1])
        assert isinstance(told, dict), name
        assert told, name


@pytest.mark.parametrize(
    ("example", "collect"),
    [
        ("cartpole", ["--env", "CartPole-v1", "--mode", "greedy", "--episodes", "20"]),
        ("lunarlander", ["--env", "LunarLander-v3", "--mode", "sampled", "--episodes", "36"]),
    ],
)
def test_the_shipped_rollouts_are_what_their_command_collects(
    folder: Path, run: Run, example: str, collect: list[str]
) -> None:
    shipped = json.loads((ROOT / "examples" / example / "rollouts" / "manifest.json").read_text())
    policy = f"policy:examples/{example}/baseline"
    told = json.loads(run(["collect", *collect, "--policy", policy, "--json"]).splitlines()[-1])
    assert told["dataset_id"] == shipped["dataset_id"]
    made = read_manifest(Store.open(folder / "trajnote-store"), shipped["dataset_id"])
    if dict(made.versions) != shipped["versions"]:
        pytest.skip(f"the packages differ from those of the recording: {shipped['versions']}")
    ours = folder / "trajnote-store" / "rollouts" / made.dataset_id / "steps-00000.parquet"
    theirs = ROOT / "examples" / example / "rollouts" / "steps-00000.parquet"
    rows, shipped_rows = pl.read_parquet(ours), pl.read_parquet(theirs)
    outputs, shipped_outputs = (np.array(each["policy_output"].drop_nulls().to_list()) for each in (rows, shipped_rows))
    assert rows.drop("policy_output").equals(shipped_rows.drop("policy_output"))
    assert np.abs(outputs - shipped_outputs).max() < 1e-5  # a processor's own kernels round logits in their own way
    if np.array_equal(outputs, shipped_outputs):
        assert [shard.sha256 for shard in made.shards] == [shard["sha256"] for shard in shipped["shards"]]


def _play(block: Block, run: Run) -> str:
    if block.language == "sql":
        return run(["sql", block.content])
    if block.language == "toml":
        Path("trajnote.toml").write_text(block.content)
        return ""
    return "".join(run([*shlex.split(line)[1:], *shlex.split(block.added)]) for line in block.lines())


def _shows_output(block: Block) -> bool:
    """Whether a block of text follows the block that printed it, with nothing between them."""
    before = [other for other in BLOCKS if other.line < block.line][-1]
    between = README.splitlines()[before.line + len(before.content.splitlines()) + 1 : block.line - 1]
    return before.is_run and not any(line.strip() for line in between if line != "```")


def _trimmed(printed: str) -> str:
    return "\n".join(line.rstrip() for line in printed.rstrip().splitlines())


def _check_line(words: list[str]) -> None:
    """That a line of a shell block names what exists; nothing is run."""
    if words[0] == "make":
        assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in words[1:])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "trajnote":
        _check_arguments(words[1:])
    else:
        assert words[0] in ("export", "prefect")  # test_flows_schedule.py runs those of prefect


def _check_arguments(words: list[str]) -> None:
    command: Any = APP
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("trajnote", list(words), resilient_parsing=False).close()


def test_the_examples_readme_names_commands_that_exist() -> None:
    blocks = [block for block in read_blocks((ROOT / "examples" / "README.md").read_text()) if block.language == "bash"]
    assert len(blocks) == 5
    for line in (line for block in blocks for line in block.lines()):
        words = shlex.split(line)
        if words[0] == "trajnote":
            _check_arguments(words[1:])
        else:
            assert words[:2] == ["python", "-m"]
            assert (ROOT / (words[2].replace(".", os.sep) + ".py")).is_file()


def test_every_test_that_a_promise_names_exists() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs" / "promises.md").read_text())
    assert len(named) > 60
    missing = [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert not missing
