"""The command `trajnote`: its commands, and how its errors reach a terminal.

No work is done here; a command's module is imported when its word is given, heavy libraries when it needs them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from storage.disk import describe_invalid, explain_disk, refused_file
from storage.errors import BadInput, TrajnoteError, TrajnoteWarning

from .reporting import visible

INTERRUPTED = 130
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
    app.callback()(lambda: None)  # one command alone would have no name
    for module in [module for module, words in MODULES.items() if word in words] or MODULES:
        import_module(f".commands.{module}", __package__).register(app)
    return app


def main() -> None:
    """Run the command line; a user's error is one line on standard error and an exit code that is not 0."""
    warnings.showwarning = _show_warning
    try:
        make_app(*sys.argv[1:2])()
    except TrajnoteError as error:
        _fail(f"error: {error}", error.exit_code)
    except OSError as error:
        file = refused_file(error)
        failed = explain_disk(error, file or Path("a file"))
        if failed is None and file is None:
            raise
        _fail(f"error: {failed or f'{file}: {error.strerror}.'}", (failed or BadInput).exit_code)
    except MemoryError:
        _fail("error: This takes more memory than there is. Ask for less at a time.", BadInput.exit_code)
    except ValidationError as error:
        _fail(f"error: {_first_problem(error)}", BadInput.exit_code)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            _fail("interrupted: run the same command again and it goes on", INTERRUPTED)
        raise


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
