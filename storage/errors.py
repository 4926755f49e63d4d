"""The errors a user may meet; each says what is wrong, what was received, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class TrajnoteError(Exception):
    """Base of every error that is the user's business; printed as one line, without a traceback.

    Args:
        problem: what is wrong, with the value received and the values allowed.
        hint: what to do about it, as a sentence or a command.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem} {self.hint}".strip()


class TrajnoteWarning(UserWarning):
    """Something a user should know while the command goes on; printed as one line."""


class LeftOutWarning(TrajnoteWarning):
    """Something is left out: a dataset that cannot be read, or a question without an answer; everything else works."""


class ChangedEnvironmentWarning(TrajnoteWarning):
    """An environment is not what it was when something was made in it, so that this is made anew."""


class UsedSeedsWarning(TrajnoteWarning):
    """Seeds that are to judge a policy have served before, so that the number may flatter it."""


class BadInput(TrajnoteError):
    """The command, file or value given cannot be used; retrying the same thing cannot help."""

    exit_code = 2


class Prerequisite(TrajnoteError):
    """Something has to be done first; the hint names the command."""

    exit_code = 3


class DamagedStore(TrajnoteError):
    """A file of the store is missing, truncated or not what was written."""

    exit_code = 4


class CatalogLocked(TrajnoteError):
    """Another process holds the catalog; the same command succeeds once it has finished."""

    exit_code = 5


class ProviderFailed(TrajnoteError):
    """A language model's server refused or could not be reached; the hint says whether a retry makes sense."""

    exit_code = 6


class DiskFailed(TrajnoteError):
    """A file could not be written: the disk is full, read-only or failing; nothing is half-written by it."""

    exit_code = 8


class RemoteFailed(TrajnoteError):
    """A store elsewhere refused or could not be reached; the same command may succeed later."""

    exit_code = 9


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question about the known names that, or whose beginnings, are like a wrong one, after a space; or nothing."""
    names = list(known)
    meant = {each[: len(name)].lower(): each for each in names} | {each.lower(): each for each in names}
    close = dict.fromkeys(meant[found] for found in difflib.get_close_matches(name.lower(), meant))
    return f" Did you mean {' or '.join(close)}?" if close else ""
