"""The manual as data: its pages with their blocks, and what is generated for them.

`python tests/readme.py --write` writes the file tree into `docs/house.md`, the commands into `docs/commands.md`, and
what tables mean into `docs/tables.md`.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import yaml
from pydantic import BaseModel
from typer.main import get_command

from annotate.cards import (
    Action,
    Card,
    EffectClaim,
    Event,
    LawClaim,
    RangeClaim,
    RateClaim,
    RewardClaim,
    TerminationClaim,
)
from annotate.cards.cards import Component
from flows import cli
from storage.catalog import described_tables

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "docs" / "house.md"
COMMANDS_PAGE = ROOT / "docs" / "commands.md"
CARDS_PAGE = ROOT / "docs" / "cards.md"
TABLES_PAGE = ROOT / "docs" / "tables.md"
APP: Any = get_command(cli.make_app())  # Typer brings a click of its own
ROOMS = {
    "storage": "everything on disk; imports nothing above it",
    "annotate": "what a language model says about a trajectory",
    "refine": "a better policy, from files alone",
    "flows": "when and where things run: environments, the gate's episodes, the command line",
}
FILES = {
    "annotate/cards/*.toml": "environment cards: names, units, meanings, and claims that a machine checks",
    "annotate/prompting/*.md": "the words of a request, as templates; their hash is the prompt's version",
    "storage/catalog/migrations/*.sql": "the tables, step by step; a change is a new file at the end",
    "benchmarks/*.md": "how to run them; the results are pages of the manual",
    "benchmarks/*.toml": "the baselines of the board",
    "benchmarks/cards/*.toml": "cards of environments that only benchmarks play",
}
OTHERS = {
    "examples/": "rollouts, baselines and recorded answers; README.md says how each was made",
    "docs/": "the manual: one idea per page; `make docs` builds it",
    "tests/": "flat: test_<room>_<module>.py; test_docs.py runs the blocks of every page",
    "pyproject.toml": "dependencies with bounds, extras, and the settings of every tool",
    "trajnote.py": "the command; it leaves a project's own `storage`, `flows`, ... their names",
    "prefect.yaml": "deploys the nightly flow to a work pool",
    "constraints.txt": "exact versions of all packages, which make installs; `make constraints` renews them",
    "mkdocs.yml": "the manual as a site, and the order of its pages",
    "Makefile": "demo, check, test, lint, docs, constraints, clean",
    "CHANGELOG.md": "what a user notices",
    "LICENSE": "Apache-2.0",
    ".ci/run": "what continuous integration calls: make test",
}
_COMMENT_AT = 36
_OWN_ENTRIES = {".py", ".pyi", ".pyc"}
_SHORTEST = 22  # characters; a shorter beginning of a docstring says too little
_BLOCK = re.compile(r"(?:<!-- (?P<note>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<content>.*?)\n```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    content: str
    note: str  # the HTML comment on the line before, empty without one
    line: int

    @property
    def is_run(self) -> bool:
        return self.language in ("bash", "sql", "toml") and not self.note.startswith("not run")

    @property
    def added(self) -> str:
        """Options that the tests append so that minutes become seconds."""
        return self.note.removeprefix("tests add: ") if self.note.startswith("tests add: ") else ""

    def lines(self) -> list[str]:
        return [line for line in self.content.splitlines() if line.strip()]


@dataclass(frozen=True)
class Page:
    """A page of the manual, by its path in the repository."""

    name: str
    text: str

    @property
    def blocks(self) -> list[Block]:
        return read_blocks(self.text)

    @property
    def prose(self) -> str:
        """The page without its blocks."""
        return _BLOCK.sub("", self.text)

    def follows(self, block: Block, before: Block) -> bool:
        """Whether nothing but empty lines is between two blocks."""
        between = self.text.splitlines()[before.line + len(before.content.splitlines()) + 1 : block.line - 1]
        return not any(line.strip() for line in between if line != "```")


def read_page(name: str) -> Page:
    """A page by its path in the repository."""
    return Page(name, (ROOT / name).read_text())


def read_blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [
        Block(found["language"], found["content"], found["note"] or "", text[: found.start()].count("\n") + 1)
        for found in _BLOCK.finditer(text)
    ]


def _list_pages(contents: object) -> list[Page]:
    """The pages of the manual in the order of its table of contents."""
    if isinstance(contents, str):
        return [read_page(f"docs/{contents}")]
    entries = contents.values() if isinstance(contents, dict) else contents
    return [page for entry in entries for page in _list_pages(entry)]  # type: ignore[attr-defined]


def draw_tree() -> str:
    """The rooms' folders and modules with the beginning of their docstrings, then everything else."""
    lines: list[str] = []
    for room, meaning in ROOMS.items():
        lines += [_entry(f"{room}/", meaning), *_inside(ROOT / room, 1)]
    lines += [_entry("benchmarks/", "one command each; they print ratios of one run"), *_inside(ROOT / "benchmarks", 1)]
    return "\n".join([*lines, *(_entry(name, comment) for name, comment in OTHERS.items())])


def list_commands(command: click.Command = APP, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its full name."""
    children = getattr(command, "commands", {})
    if not children or getattr(command, "invoke_without_command", False):
        yield " ".join(path), command
    for name, child in children.items():
        yield from list_commands(child, (*path, name))


def draw_commands() -> str:
    """The commands as tables under their headings, each with the first paragraph of its help."""
    helps = {name: " ".join((command.help or "").split("\n\n")[0].split()) for name, command in list_commands()}
    lines: list[str] = []
    for heading, words in cli.COMMANDS.items():
        rows = [f"| `{name}` | {text} |" for name, text in helps.items() if name.split()[0] in words]
        lines += [f"## {heading}", "", "| command | what it does |", "|---|---|", *rows, ""]
    return "\n".join(lines).rstrip()


def draw_tables() -> str:
    """The tables and views with their columns, the five that matter first at the beginning."""
    lines: list[str] = []
    for place, table in enumerate(described_tables()):
        lines += {0: ["## First"], 5: ["## All others"]}.get(place, [])
        kind = "view" if table.is_view else "table"
        lines += [f"### {table.name}", f"A {kind}. {table.about}", "| column | what it is |\n|---|---|"]
        lines[-1] += "".join(f"\n| `{column}` | {words} |" for column, words in table.columns.items())
    return "\n\n".join(lines)


def draw_cards() -> str:
    """The keys of a card and of each kind of claim, from the models that read them."""
    parts = {"The card": Card, "components": Component, "actions": Action, "events": Event}
    lines = [f"## {name}\n\n{_draw_keys(model)}" for name, model in parts.items()]
    lines.append("## Kinds of claims\n\nEvery claim has `kind` and `text`, the claim in words.")
    for kind in (EffectClaim, RangeClaim, RateClaim, LawClaim, TerminationClaim, RewardClaim):
        name = get_args(kind.model_fields["kind"].annotation)[0]
        about = "\n".join(line.strip() for line in (kind.__doc__ or "").strip().splitlines())
        lines.append(f"### {name}\n\n{about}\n\n{_draw_keys(kind, leave_out=('kind', 'text'))}")
    return "\n\n".join(lines)


def _draw_keys(model: type[BaseModel], leave_out: tuple[str, ...] = ()) -> str:
    rows = [
        f"| `{name}` | {'needed' if field.is_required() else _show(field.get_default(call_default_factory=True))} "
        f"| {_choices(field.annotation)}{field.description or ''} |"
        for name, field in model.model_fields.items()
        if name not in leave_out
    ]
    return "\n".join(["| key | default | what it is |", "|---|---|---|", *rows])


def _choices(kind: object) -> str:
    return f"{', '.join(map(str, get_args(kind)))}; " if get_origin(kind) is Literal else ""


def _show(default: object) -> str:
    return "" if default in (None, "", (), {}) else f"`{json.dumps(default)}`"


def generated() -> dict[tuple[Path, str], str]:
    """What stands between `<!-- NAME -->` and `<!-- end of NAME -->` of a page, by page and name."""
    return {
        (HOUSE, "tree"): f"```text\n{draw_tree()}\n```",
        (COMMANDS_PAGE, "commands"): f"\n{draw_commands()}",
        (CARDS_PAGE, "cards"): f"\n{draw_cards()}",
        (TABLES_PAGE, "tables"): f"\n{draw_tables()}",
    }


def generate(page: Path, name: str, text: str) -> str:
    """The page with the text of today, whatever is between its two lines, a conflict of a merge too."""
    before, after = page.read_text().split(f"<!-- {name} -->\n", 1)
    return f"{before}<!-- {name} -->\n{text}\n\n<!-- end of {name} -->{after.rsplit(f'<!-- end of {name} -->', 1)[1]}"


def _inside(folder: Path, depth: int) -> list[str]:
    """What a folder holds: its modules, other files by their ending, and its folders in the order of the work."""
    indent = "    " * depth
    modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    lines = [_entry(indent + path.name, _beginning(path)) for path in modules]
    lines += _others(folder, indent, "")
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not (path / "__init__.py").exists()):
        lines += _others(inner, indent, f"{inner.name}/")
    for inner in sorted((path.parent for path in folder.glob("*/__init__.py")), key=_position):
        lines += [_entry(f"{indent}{inner.name}/", _beginning(inner / "__init__.py")), *_inside(inner, depth + 1)]
    return lines


def _others(folder: Path, indent: str, prefix: str) -> list[str]:
    """Files that are no modules, by their ending: what they are for, or their names."""
    endings: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.*")):
        if path.suffix not in _OWN_ENTRIES:
            endings.setdefault(path.suffix, []).append(path.stem)
    place = folder.relative_to(ROOT).as_posix()
    meanings = {ending: FILES.get(f"{place}/*{ending}", ", ".join(names)) for ending, names in endings.items()}
    return [_entry(f"{indent}{prefix}*{ending}", meaning) for ending, meaning in meanings.items()]


def _position(folder: Path) -> tuple[int, str]:
    """Where a folder stands among its neighbours: a lower layer of the import contracts comes first."""
    name = ".".join(folder.relative_to(ROOT).parts)
    return -LAYERS.get(name, 0), name


def _read_layers() -> dict[str, int]:
    """The height of each inner room in its room's contract; 0 is the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = [list(enumerate(contract["layers"])) for contract in contracts if contract["type"] == "layers"]
    return {name.strip(): height for each in layers for height, names in each for name in names.split("|")}


def _beginning(module: Path) -> str:
    """The first words of a module's docstring that say something by themselves."""
    first = module.read_text().split("\n", 1)[0].removeprefix('"""').split('"""')[0].rstrip(".")
    whole = ""
    for part in re.split(r"(?<=:) |(?<=;) |(?<=\.) ", first):
        whole = f"{whole} {part}".strip()
        if len(whole) >= _SHORTEST and not whole.startswith("`"):
            break
    return whole.rstrip(":;.")


def _entry(name: str, comment: str) -> str:
    return f"{name:<{_COMMENT_AT - 1}} {comment}".rstrip()


LAYERS = _read_layers()
MANUAL = _list_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/readme.py --write")
    for (page, name), text in generated().items():
        page.write_text(generate(page, name, text))
