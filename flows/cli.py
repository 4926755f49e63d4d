"""The command `trajnote`: its commands, and how its errors reach a terminal.

No work is done here; a command's module is imported when its word is given, heavy libraries when it needs them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from traceback import print_exception
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from storage.disk import describe_invalid, explain_disk, refused_file, visible
from storage.errors import BadInput, TrajnoteError, TrajnoteWarning

from .simulation import describe_raised, raised_at

INTERRUPTED = 130
_TRACEBACK = "--traceback"
MODULES: Mapping[str, Sequence[str]] = {
    "collecting": ("collect", "import", "export", "replay"),
    "annotating": ("annotate", "annotations"),
    "refining": ("refine", "ablate", "evaluate", "pipeline", "demo"),
    "scheduling": ("init", "nightly", "serve"),
    "showing": ("sql", "figures", "report", "watch"),
    "storing": ("store", "policy"),
    "carding": ("card", "rules"),
}
"""Modules of `flows/commands`, and the first words of their commands."""


def make_app(word: str | None = None) -> typer.Typer:
    """The command line; if `word` is the first word of a command, without the others: making them takes a while."""
    app = typer.Typer(
        name="trajnote",
        help="Notes in the margins of trajectories: collect, annotate, query, refine, judge.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_anywhere)
    for module in [module for module, words in MODULES.items() if word in words] or MODULES:
        import_module(f".commands.{module}", __package__).register(app)
    return app


def _anywhere(
    traceback: Annotated[  # `main` takes it out of the arguments; here it is for the help
        bool, typer.Option("--traceback", help="Show where an error came from; it may stand anywhere.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's error is one line on standard error and an exit code that is not 0."""
    warnings.showwarning = _show_warning
    shows_all = _TRACEBACK in sys.argv[1:]
    sys.argv = [sys.argv[0], *(word for word in sys.argv[1:] if word != _TRACEBACK)]
    try:
        make_app(*sys.argv[1:2])()
    except Exception as error:
        if shows_all:
            print_exception(error)
        described = _describe(error)
        if described is None:
            raise
        _fail(*described)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            _fail("interrupted: run the same command again and it goes on", INTERRUPTED)
        raise


def _describe(error: Exception) -> tuple[str, int] | None:
    """The line and the exit code for an error; None if it is this program's own."""
    if isinstance(error, TrajnoteError):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError):
        file = refused_file(error)
        failed = explain_disk(error, file or Path("a file"))
        if failed is not None or file is not None:
            return f"error: {failed or f'{file}: {error.strerror}.'}", (failed or BadInput).exit_code
    if isinstance(error, MemoryError):
        return "error: This takes more memory than there is. Ask for less at a time.", BadInput.exit_code
    if isinstance(error, ValidationError):
        return f"error: {_first_problem(error)}", BadInput.exit_code
    if raised_at(error):
        return f"error: Your own code raised {describe_raised(error)}. --traceback shows all of it.", BadInput.exit_code
    return None


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object) -> None:
    """Warnings of this project are one line each; those of libraries speak to programmers."""
    if issubclass(category, TrajnoteWarning):
        Console(stderr=True, soft_wrap=True).print(Text(visible(f"warning: {message}"), style="yellow"))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def _fail(line: str, exit_code: int) -> None:
    Console(stderr=True, soft_wrap=True).print(Text(visible(" ".join(line.split())), style="red"))
    sys.exit(exit_code)


def _first_problem(error: ValidationError) -> str:
    """The first field that does not fit, the value received, and what is allowed."""
    return describe_invalid(error.errors(include_url=False)[0])


if __name__ == "__main__":
    main()
