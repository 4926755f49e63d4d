"""Every command and option that a message names is one that the command line has."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from flows.cli import FORMER_NAMES, make_app
from flows.commands.options import ImproveOptions, LabelOptions
from flows.labelling import LabelConfig
from flows.refinement import ImproveConfig
from storage.errors import TrajnoteWarning

ROOMS = ("storage", "annotate", "refine", "flows")
ROOT = Path(__file__).parents[1]
HOLE = "HOLE"  # where an f-string has a value


@cache
def root() -> Any:
    return get_command(make_app())


def commands_of(command: Any) -> dict[str, Any]:
    return getattr(command, "commands", {})


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every string of a module, neighbours joined by the parser, with a word in place of each value."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def named_commands(text: str) -> Iterator[str]:
    """What stands in backticks and begins with the program's name."""
    yield from (found for found in re.findall(r"`(trajnote [^`]+)`", text) if "\n" not in found)


def problem_of(line: str) -> str | None:
    """What is wrong with a command line; values are not looked at."""
    words = shlex.split(line.split("|")[0].replace("...", ""))[1:]
    command = root()
    while (below := commands_of(command)) and words and not words[0].startswith("-"):
        if words[0] == HOLE:
            return None
        if words[0] not in below:
            return f"there is no command {words[0]!r}"
        command = below[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    wrong = [
        word for word in words if re.fullmatch(r"--[a-z-]+", word.split("=")[0]) and word.split("=")[0] not in known
    ]
    return f"it has no option {wrong[0]}" if wrong else None


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_every_command_that_a_text_names_exists_with_its_options(room: str) -> None:
    wrong: list[str] = []
    for path in sorted((ROOT / room).rglob("*.py")):
        for line, text in texts(ast.parse(path.read_text())):
            found = [(command, problem_of(command)) for command in named_commands(text)]
            wrong += [f"{path.name}:{line}: `{command}`: {problem}" for command, problem in found if problem]
    assert wrong == []


@pytest.mark.slow
def test_every_option_that_a_text_names_is_one_of_some_command() -> None:
    known = {
        "--help",
        "--version",
        "--ppo",
        *every_option(root()),
        *(former for names in FORMER_NAMES.values() for former in names),
    }  # `--ppo` is one of `python -m flows.policies.train_baseline`
    wrong: list[str] = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for line, text in texts(ast.parse(path.read_text())):
                words = re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])", text)
                wrong += [f"{path.name}:{line}: {word}" for word in words if word not in known]
    assert wrong == []


def every_option(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for below in commands_of(command).values():
        yield from every_option(below)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("trajnote store list --json", None),
        ("trajnote store info", "there is no command 'info'"),
        ("trajnote annotate run --dataset HOLE", None),
        ("trajnote annotate run --datasets HOLE", "it has no option --datasets"),
    ],
)
def test_a_wrong_command_is_seen(line: str, problem: str | None) -> None:
    assert problem_of(line) == problem


MEANINGS = {
    "--base-url": "the server",
    "--budget": "a cap in dollars",
    "--card": "the environment card",
    "--dataset": "the dataset that is made or worked on",
    "--draws": "draws of each placebo",
    "--env": "the environment",
    "--format": "the format of what is written",
    "--limit": "how many are worked on at most",
    "--mode": "how a policy acts",
    "--model": "who answered",
    "--output": "where to write",
    "--policy": "a policy that acts",
    "--promote": "what may be put in force",
    "--replace": "go on where something is replaced",
    "--seed": "the first of the seeds",
    "--store": "the store",
    "--use": "what of the labels is learned from",
}
"""What an option means in each command that has it, where their helps speak of different things."""


def test_an_option_has_one_meaning_in_all_commands() -> None:
    helps: dict[str, set[str]] = {}
    kinds: dict[str, set[tuple[bool, bool]]] = {}
    for option in options_of(root()):
        helps.setdefault(option.opts[0], set()).add(option.help)
        is_number = isinstance(option.default, int | float) or getattr(option, "min", None) is not None
        kinds.setdefault(option.opts[0], set()).add((option.is_flag, is_number))
    assert {name for name, said in helps.items() if len(said) > 1} == set(MEANINGS)
    assert {name for name, found in kinds.items() if len({is_flag for is_flag, _ in found}) > 1} == set()


def test_the_pipeline_takes_what_its_steps_take() -> None:
    steps = {option for step in ("collect", "annotate run", "refine") for option in every_option(find(step))}
    assert steps - set(every_option(find("pipeline"))) == {
        *("--export", "--run"),  # it goes on with the labels of its own run
        *(
            "--rules",
            "--baseline",
            "--track",
            "--estimate",
            "--accept-estimate",
        ),  # what refines a dataset that is there
    }


def find(words: str) -> Any:
    command = root()
    for word in words.split():
        command = commands_of(command)[word]
    return command


def options_of(command: Any) -> Iterator[Any]:
    yield from (each for each in command.params if each.param_type_name == "option")
    for below in commands_of(command).values():
        yield from options_of(below)


def test_what_is_written_goes_to_the_output() -> None:
    words = {option for option in every_option(root()) if re.search("out(put)?$|^--to$|^--file$", option)}
    assert words == {"--output", "--timeout"}


@pytest.mark.parametrize(("command", "names"), FORMER_NAMES.items())
def test_a_former_name_of_an_option_is_the_name_of_today_with_a_warning(command: str, names: dict[str, str]) -> None:
    for former, today in names.items():
        with pytest.warns(TrajnoteWarning, match=f"{former} is now called {today}"):
            said = CliRunner().invoke(make_app(), [*command.split(), former, "x", "--help"])
        assert said.exit_code == 0
        assert f"{today} " in said.output


def test_options_that_are_not_given_say_what_the_models_say() -> None:
    assert LabelOptions().config() == LabelConfig()
    assert ImproveOptions().config() == ImproveConfig()
