"""The manual is true: its blocks run in order, what they name exists, its outputs come, its links lead somewhere.

Blocks whose note says `not run` are only parsed. Options in a note `tests add: ...` make minutes into seconds.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import pkgutil
import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from readme import APP, MANUAL, ROOT, Block, Page, generate, generated, list_commands, read_page

from storage.datasets.reader import read_manifest
from storage.store import Store

README = read_page("README.md")
OWN_STORE = {"docs/cookbook.md", "docs/gold.md"}  # test_docs_cookbook.py asks the questions of the first
EVERY_PAGE = [README, *MANUAL, read_page("benchmarks/README.md"), read_page("examples/README.md")]
SHELL = [(page, block) for page in EVERY_PAGE for block in page.blocks if block.language == "bash"]
PYTHON = [(page, block) for page in EVERY_PAGE for block in page.blocks if block.language == "python"]
OTHER_PROGRAMS = ("export", "prefect", "pip", "createdb")  # test_flows_schedule.py runs those of prefect
Run = Callable[[list[str]], str]


COMMANDS = dict(list_commands())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the examples beside it, as on a fresh checkout."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for name in ("TRAJNOTE_STORE", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.slow
def test_the_blocks_of_the_manual_run_in_order_and_print_what_it_says(folder: Path, run: Run) -> None:
    for page in MANUAL:
        if page.name not in OWN_STORE:
            _play_page(page, run)
    assert (folder / "labels.jsonl").is_file()


@pytest.mark.slow
def test_the_page_on_gold_sets_prints_what_it_says(folder: Path, run: Run) -> None:
    _play_page(read_page("docs/gold.md"), run)
    assert (folder / "states.txt").is_file()


@pytest.mark.slow
def test_the_blocks_of_the_readme_run(folder: Path, run: Run) -> None:
    _play_page(README, run)
    assert (folder / "taxi.toml").is_file()


def test_the_manual_asks_at_least_eight_questions_in_sql() -> None:
    assert len({block.content for page in MANUAL for block in page.blocks if block.language == "sql"}) >= 8


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), SHELL, ids=[f"{page.name}-{block.line}" for page, block in SHELL])
def test_every_command_and_option_of_a_block_exists(page: Page, block: Block) -> None:
    for line in block.lines():
        _check_line(shlex.split(line))


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{page.name}-{block.line}" for page, block in PYTHON])
def test_what_a_block_of_python_imports_of_the_rooms_exists(page: Page, block: Block) -> None:
    rooms = ("storage", "annotate", "refine", "flows")
    for node in ast.walk(ast.parse(block.content)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in rooms:
            for name in node.names:
                assert hasattr(importlib.import_module(node.module), name.name)


@pytest.mark.slow
@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: page.name)
def test_what_the_prose_names_exists(page: Page) -> None:
    spans = re.findall(r"`([^`\n]+)`", page.prose)
    options = {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
    assert options - _known_options() == set()
    for span in spans:
        _check_span(span)


def test_every_table_and_view_that_the_manual_names_exists(store: Store) -> None:
    named = {name for page in MANUAL for name in re.findall(r"\b(?:tables?|views?) `(\w+)`", page.prose)} - {"artifact"}
    with store.catalog.read() as con:
        known = {name for (name,) in con.execute("SELECT table_name FROM information_schema.tables").fetchall()}
    assert len(named) > 25
    assert named - known == set()


@pytest.mark.slow
@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: page.name)
def test_every_link_and_picture_leads_somewhere(page: Page) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.prose) + re.findall(r'src="([^"]+)"', page.prose):
        if not target.startswith("https://"):
            _check_link(page, target)


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, *MANUAL], ids=lambda page: page.name)
def test_lines_of_prose_are_short(page: Page) -> None:
    prose = re.sub(r"<!-- board: begin -->.*<!-- board: end -->", "", page.prose, flags=re.S)  # a program writes it
    long = [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert long == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) < 10_000


def test_every_page_is_in_the_contents_of_the_manual() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page.name for page in MANUAL} == pages


def test_every_room_has_a_page_with_its_doors() -> None:
    for room in ("storage", "annotate", "refine", "flows"):
        assert f"<!-- doors of {room} -->" in read_page(f"docs/api/{room}.md").text


def test_every_command_and_every_option_has_help() -> None:
    for name, command in COMMANDS.items():
        assert command.help, f"trajnote {name} has no help"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"trajnote {name}: {parameter.name} has no help"


def test_every_command_can_answer_in_json() -> None:
    for name, command in COMMANDS.items():
        assert any("--json" in parameter.opts for parameter in command.params), f"trajnote {name} has no --json"


def test_what_is_generated_for_the_manual_is_fresh() -> None:
    for (page, name), text in generated().items():
        assert page.read_text() == generate(page, name, text), f"mend {page.name}: python tests/readme.py --write"


@pytest.mark.slow
@pytest.mark.usefixtures("brief_distillation")
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
        "refine": ["--dataset", "cartpole", "--betas", "0.1", "--snapshots", "30", *small],
        "evaluate": ["random", "--env", "CartPole-v1", "--episodes", "10", "--workers", "1"],
        "replay": ["--dataset", "two", "--episode", "1"],
        "export": ["two.csv", "--dataset", "two", "--format", "csv"],
        "sql": ["SELECT 1 AS one, 0.5 AS half"],
        "figures": ["--output", "pictures"],
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


@pytest.mark.slow
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


def _play_page(page: Page, run: Run) -> None:
    """Run a page's blocks, and compare what is printed with the block of text that follows at once."""
    printed, before = "", None
    for block in page.blocks:
        if block.is_run:
            try:
                printed = _play(block, run)
            except BaseException as error:
                error.add_note(f"{page.name}, line {block.line}")
                raise
        elif block.language == "text" and not block.note and before is not None and page.follows(block, before):
            assert _trimmed(printed) == block.content, f"{page.name}, line {block.line}"
        before = block if block.is_run else None


def _play(block: Block, run: Run) -> str:
    if block.language == "sql":
        return run(["sql", block.content])
    if block.language == "toml":
        Path("trajnote.toml").write_text(block.content)
        return ""
    return "".join(run([*shlex.split(line)[1:], *shlex.split(block.added)]) for line in block.lines())


def _trimmed(printed: str) -> str:
    return "\n".join(line.rstrip() for line in printed.rstrip().splitlines())


def _check_line(words: list[str]) -> None:
    """That a line of a shell block names what exists; nothing is run."""
    if words[0] == "make":
        assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in words[1:])
    elif words[0] == "python":
        _check_program(words[1:])
    elif words[0] == "trajnote":
        _check_arguments(words[1:])
    else:
        assert words[0] in OTHER_PROGRAMS


def _check_program(words: list[str]) -> None:
    """That a module or script of Python exists, and knows its options."""
    if words[0] == "-m":
        found = importlib.util.find_spec(words[1])
        assert found is not None
        assert found.origin is not None
        path, words = Path(found.origin), words[1:]
    else:
        path = ROOT / words[0]
    folder = path.parent if path.name == "__init__.py" else None
    text = "".join(each.read_text() for each in (folder.glob("*.py") if folder else [path]))
    for word in words[1:]:
        if word.startswith("--"):
            assert word.removeprefix("--").split("=")[0].replace("-", "_") in text.replace("-", "_")


def _check_arguments(words: list[str]) -> None:
    command: Any = APP
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("trajnote", list(words), resilient_parsing=False).close()


@cache
def _known_options() -> set[str]:
    """Those of the commands, of the benchmarks and of the trainer of baselines."""
    known = {option for command in COMMANDS.values() for each in command.params for option in each.opts}
    sources = [*(ROOT / "benchmarks").rglob("*.py"), ROOT / "flows" / "policies" / "train_baseline.py"]
    words = {word for path in sources for word in re.findall(r"[a-z][a-z_-]+", path.read_text())}
    return known | {"--help", "--logdir"} | {f"--{word.strip('-').replace('_', '-')}" for word in words}


def _check_span(span: str) -> None:
    """That a command, a file, a module or a program in the prose exists."""
    words = span.split()
    if words[0] == "trajnote" and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
        assert words[1] in {full.split()[0] for full in COMMANDS}, span
    elif words[0] == "python" and len(words) > 1:
        _check_program(words[1:])
    elif words[0] == "make" and len(words) == 2:
        _check_line(words)
    elif re.fullmatch(r"(storage|annotate|refine|flows|benchmarks|examples|tests|docs)/[\w./-]*", span):
        assert (ROOT / span).exists(), span
    elif re.fullmatch(r"(storage|annotate|refine|flows)\.[\w.]+", span):
        pkgutil.resolve_name(span)


def _check_link(page: Page, target: str) -> None:
    path, _, anchor = target.partition("#")
    linked = (ROOT / page.name).parent / path if path else ROOT / page.name
    assert linked.exists(), target
    if anchor:
        headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.M)
        assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_every_test_that_a_promise_names_exists() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs" / "promises.md").read_text())
    assert len(named) > 60
    missing = [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert not missing
