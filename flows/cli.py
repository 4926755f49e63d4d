"""The command `trajnote`: its commands, and how its errors reach a terminal.

No work is done here; a command's module is imported when its word is given, heavy libraries when it needs them.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from keyword import iskeyword
from pathlib import Path
from traceback import print_exception
from types import ModuleType
from typing import Annotated, Any, NoReturn, Protocol, runtime_checkable

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from storage.disk import describe_invalid, explain_disk, refused_file, visible
from storage.errors import BadInput, TrajnoteError, TrajnoteWarning, did_you_mean

from .commands import print_lines
from .simulation import describe_raised, raised_at

INTERRUPTED = 130
_TRACEBACK = "--traceback"
COMMANDS: Mapping[str, Mapping[str, str]] = {
    "Begin": {"demo": "refining"},
    "Collect": {"card": "carding", "collect": "collecting", "import": "collecting", "replay": "collecting"},
    "Look": {"sql": "showing", "report": "showing", "figures": "showing", "watch": "showing"},
    "Ask": {"annotate": "annotating"},
    "Look again": {"review": "showing", "annotations": "annotating", "rules": "carding"},
    "Refine": {"refine": "refining"},
    "Judge": {"evaluate": "refining", "ablate": "refining"},
    "Run every night": {"pipeline": "refining", "init": "scheduling", "nightly": "scheduling", "serve": "scheduling"},
    "Keep": {"policy": "storing", "store": "storing", "export": "collecting"},
}
"""First words of commands in the order of the work, under their headings, with their modules of `flows/commands`."""


FORMER_NAMES: Mapping[str, Mapping[str, str]] = {
    "annotate": {"--select": "--choose", "--select-seed": "--choose-seed", "--rules": "--max-rules"},
    "annotate why": {"--show": "--explanations"},
    "export": {"--labels": "--with-labels"},
    "figures": {"--out": "--output"},
    "report": {"--out": "--output"},
    "policy export": {"--out": "--output"},
    "refine": {"--mode": "--use"},
    "ablate": {"--modes": "--use"},
}
"""Options that had another name, by the beginning of their commands; they are taken with a warning."""


class _Commands(TyperGroup):
    """The commands under their headings in the order of the work, whatever the order in which they were made."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        places = [(heading, word) for heading, words in COMMANDS.items() for word in words if word in self.commands]
        for heading, word in places:
            vars(self.commands[word])["rich_help_panel"] = heading
        self.commands = {word: self.commands[word] for _, word in places}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line, with options by their names of today."""
        names = {**FORMER_NAMES.get(" ".join(args[:1]), {}), **FORMER_NAMES.get(" ".join(args[:2]), {})}
        return super().parse_args(ctx, [_name_of_today(word, names) for word in args])


def _name_of_today(word: str, names: Mapping[str, str]) -> str:
    option, equals, value = word.partition("=")
    if option not in names:
        return word
    warnings.warn(f"{option} is now called {names[option]}.", TrajnoteWarning, stacklevel=2)
    return f"{names[option]}{equals}{value}"


def make_app(word: str | None = None) -> typer.Typer:
    """The command line; if `word` is the first word of a command, without the others: making them takes a while."""
    app = typer.Typer(
        name="trajnote",
        cls=_Commands,
        help="Notes in the margins of trajectories: collect, annotate, query, refine, judge.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_anywhere)
    modules = {name: module for words in COMMANDS.values() for name, module in words.items()}
    for name, module in modules.items():
        if word not in modules or module == modules[word]:
            _add_command(app, name, import_module(f".commands.{module}", __package__))
    return app


def _add_command(app: typer.Typer, word: str, module: ModuleType) -> None:
    """Add what a module has for a word: a group of commands, or a function (`import_`, for Python has `import`)."""
    if hasattr(module, f"{word}_app"):
        app.add_typer(getattr(module, f"{word}_app"))
    else:
        app.command(word)(getattr(module, f"{word}_" if iskeyword(word) else word))


def _print_version(wanted: bool) -> None:
    if wanted:
        print_lines(f"trajnote {version('trajnote')}")
        raise typer.Exit


def _anywhere(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
    traceback: Annotated[  # `main` takes it out of the arguments; here it is for the help
        bool, typer.Option("--traceback", help="Show the traceback of an error; may be anywhere in a command.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's error is one line on standard error and an exit code that is not 0."""
    warnings.showwarning = _show_warning
    shows_all = _TRACEBACK in sys.argv[1:]
    sys.argv = [sys.argv[0], *(word for word in sys.argv[1:] if word != _TRACEBACK)]
    try:
        code = make_app(*sys.argv[1:2])(prog_name="trajnote", standalone_mode=False)  # None, or that of a `typer.Exit`
    except Exception as error:
        if shows_all:
            print_exception(error)
        described = _describe(error)
        if described is None:
            raise
        _fail(*described)
    if code == INTERRUPTED:
        _fail("interrupted: run the same command again to resume", INTERRUPTED)
    sys.exit(code)


@runtime_checkable
class _UsageError(Protocol):
    """A command line that cannot be read; its class belongs to click, or to the click inside of Typer."""

    exit_code: int
    ctx: typer.Context | None

    def format_message(self) -> str: ...


def _describe_usage(error: _UsageError) -> tuple[str, int]:
    """What does not fit, what was meant perhaps, and where the help is; only the code where the help was just shown."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return "", error.exit_code
    text = error.format_message().replace("Value error, ", "").rstrip(".")
    text = re.sub(r" \(Possible options: (.*)\)$", lambda found: f". Did you mean {found[1]}?", text)
    text += "" if text.endswith("?") else "."
    if choice := re.search(r"'([^']*)' is not one of ('.*')\.$", text):
        text += did_you_mean(choice[1], re.findall(r"'([^']*)'", choice[2]))
    path = error.ctx.command_path if error.ctx else "trajnote"
    return f"error: {text} See `{path} --help`.", error.exit_code


def _describe(error: Exception) -> tuple[str, int] | None:
    """The line and the exit code for an error; None if it is this program's own."""
    if isinstance(error, _UsageError):
        return _describe_usage(error)
    if isinstance(error, TrajnoteError):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError):
        file = refused_file(error)
        failed = explain_disk(error, file or Path("a file"))
        if failed is not None or file is not None:
            return f"error: {failed or f'{file}: {error.strerror}.'}", (failed or BadInput).exit_code
    if isinstance(error, MemoryError):
        return "error: Not enough memory. Process less at a time, or use a machine with more.", BadInput.exit_code
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]  # its field, the value received, and what is allowed
        return f"error: {describe_invalid(first)}", BadInput.exit_code
    if raised_at(error):
        return (
            f"error: Your code raised {describe_raised(error)}. Add --traceback for the full traceback.",
            BadInput.exit_code,
        )
    return None


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object) -> None:
    """Warnings of this project are one line each; those of libraries speak to programmers."""
    if issubclass(category, TrajnoteWarning):
        Console(stderr=True, soft_wrap=True).print(Text(visible(f"warning: {message}"), style="yellow"))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def _fail(line: str, exit_code: int) -> NoReturn:
    if line:
        Console(stderr=True, soft_wrap=True).print(Text(visible(" ".join(line.split())), style="red"))
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
