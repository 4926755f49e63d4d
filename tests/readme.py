"""The README as data: its blocks with the notes before them, and its file tree as the modules' first lines give it.

`python tests/readme.py` prints the tree, to be pasted into the README when a file has come or gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "storage": "everything on disk; knows nobody above it",
    "annotate": "what a language model says about a trajectory",
    "refine": "a better policy, from files alone",
    "flows": "when and where things run: environments, the gate's episodes, the command line",
}
EXTRAS = {
    "annotate": {
        "cards/*.toml": "environment cards: names, units, meanings, and claims that a machine checks",
        "prompting/*.md": "the words of a request, as templates; their hash is the prompt's version",
    },
}
OTHERS = {
    "examples/": "rollouts, baselines and recorded answers; README.md says how each was made",
    "docs/": "the pictures of this page, a cookbook in SQL, promises with their tests, and how to outgrow one machine",
    "tests/": "flat: test_<room>_<module>.py; test_docs.py runs this page",
    "pyproject.toml": "dependencies with bounds, extras, and the settings of every tool",
    "prefect.yaml": "deploys the nightly flow to a work pool",
    "constraints.txt": "exact versions of all packages, which make installs; `make constraints` renews them",
    "Makefile": "demo, test, lint, constraints, clean",
    "CHANGELOG.md": "what a user notices",
    "LICENSE": "Apache-2.0",
    ".ci/run": "what continuous integration calls: make test",
}
_COMMENT_AT = 31
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


def read_blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [
        Block(found["language"], found["content"], found["note"] or "", text[: found.start()].count("\n") + 1)
        for found in _BLOCK.finditer(text)
    ]


def known_files() -> list[str]:
    """The modules of the rooms and of the benchmarks, by their paths."""
    folders = [ROOT / name for name in (*ROOMS, "benchmarks")]
    return sorted(path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*.py"))


def draw_tree() -> str:
    """The rooms' modules with the beginning of their docstrings, then everything else."""
    files = known_files()
    lines: list[str] = []
    for room, meaning in ROOMS.items():
        lines.append(_entry(f"{room}/", meaning))
        lines += _modules(room, [name for name in files if name.startswith(f"{room}/")])
        lines += [_entry(f"    {name}", comment) for name, comment in EXTRAS.get(room, {}).items()]
    lines.append(_entry("benchmarks/", "one command each; they print ratios of one run"))
    lines += _modules("benchmarks", [name for name in files if name.startswith("benchmarks/")])
    return "\n".join([*lines, *(_entry(name, comment) for name, comment in OTHERS.items())])


def tree_names(tree: str) -> list[str]:
    """The first words of a tree's lines, with their indentation."""
    return [re.match(r"\s*\S+", line)[0] for line in tree.splitlines()]  # type: ignore[index]


def _modules(room: str, files: list[str]) -> list[str]:
    names = [name for name in files if name.endswith(".py") and not name.endswith("__init__.py")]
    lines: list[str] = []
    folder = Path(room)
    for name in sorted((Path(name) for name in names), key=lambda path: (len(path.parts), path)):
        if name.parent != folder:
            folder = name.parent
            lines.append(_entry(f"    {folder.name}/", _beginning(folder / "__init__.py")))
        indent = " " * 4 * (len(name.parts) - 1)
        lines.append(_entry(indent + name.name, _beginning(name)))
    return lines


def _beginning(module: Path) -> str:
    """The first words of a module's docstring that say something by themselves."""
    first = (ROOT / module).read_text().split("\n", 1)[0].removeprefix('"""').split('"""')[0].rstrip(".")
    whole = ""
    for part in re.split(r"(?<=:) |(?<=;) |(?<=\.) ", first):
        whole = f"{whole} {part}".strip()
        if len(whole) >= _SHORTEST and not whole.startswith("`"):
            break
    return whole.rstrip(":;.")


def _entry(name: str, comment: str) -> str:
    return f"{name:<{_COMMENT_AT}}{comment}".rstrip()


if __name__ == "__main__":
    print(draw_tree())
