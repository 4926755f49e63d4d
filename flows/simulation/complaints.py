"""What the user's own code raised or gave wrongly: one line, with the file and line of that code."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

from storage.errors import BadInput, TrajnoteError

_HOME = Path(__file__).resolve().parents[2]
_ROOMS = tuple(_HOME / room for room in ("storage", "annotate", "refine", "flows"))
_NOT_THEIRS = (*_ROOMS, *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")))
_PACKAGES = {"site-packages", "dist-packages"}
_STEP = "its step does not return observation, reward, terminated, truncated and info, as Gymnasium's does"
_SEED = "its reset takes no seed; it has to begin with `def reset(self, *, seed=None, options=None)`"


class BrokenPromiseError(Exception):
    """Something that an environment returned and that cannot be stored; the text says what."""


def raised_at(error: BaseException) -> str:
    """Where in the user's own code an error came from, as `file.py:12`; empty if none of it was involved."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno}"
    found = ""
    for frame, line in walk_tb(error.__traceback__):
        if _is_theirs(frame.f_code.co_filename):
            found = f"{_shown(frame.f_code.co_filename)}:{line}"
    return found


def defined_at(function: Callable[..., Any] | None) -> str:
    """Where a function or method of the user's own code begins, as `file.py:12`; empty for others."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None or not _is_theirs(code.co_filename):
        return ""
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}"


def describe_raised(error: BaseException) -> str:
    """An error of the user's code, its type, its text and its place, without a full stop."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, SyntaxError):
        text = str(error.msg)
    place = raised_at(error)
    return f"{type(error).__name__}: {text[:300]}".rstrip(".") + (f" ({place})" if place else "")


def complaint(error: Exception, method: Callable[..., Any] | None = None) -> str:
    """What an environment's own code raised or returned, in one line.

    Args:
        error: what was raised, or a broken promise about what was returned.
        method: the environment's own `reset` or `step`, which was called.
    """
    place = defined_at(method)
    returned = f"; see {getattr(method, '__name__', '')} in {place}" if place else ""
    if isinstance(error, BrokenPromiseError):
        return f"{error}{returned if str(error).startswith('its ') else ''}"
    if not raised_at(error) and isinstance(error, ValueError | TypeError):
        if "to unpack" in str(error):
            return _STEP + returned
        if "unexpected keyword argument 'seed'" in str(error):
            return _SEED + returned
    return f"its environment raised {describe_raised(error)}" + ("" if raised_at(error) else returned)


def broken(episode_id: int, step: int, text: str, cause: Exception | None = None) -> BadInput:
    """The error for an episode that cannot continue."""
    problem = BadInput(f"Episode {episode_id}, step {step}: {text}.")
    problem.__cause__ = cause
    return problem


@contextmanager
def blaming(episode_id: int, step: int, method: Callable[..., Any] | None = None) -> Generator[None]:
    """Turn what an environment raises in here into the one line of its episode."""
    try:
        yield
    except TrajnoteError:
        raise
    except Exception as error:  # whatever somebody's environment raises
        raise broken(episode_id, step, complaint(error, method)) from error


def _is_theirs(file: str) -> bool:
    if file.startswith("<"):
        return False
    place = Path(file).resolve()
    return not (_PACKAGES & set(place.parts) or place == _HOME / "trajnote.py" or _is_below(place))


def _is_below(place: Path) -> bool:
    return any(place.is_relative_to(folder) for folder in _NOT_THEIRS)


def _shown(file: str) -> str:
    """A path as short as it can be from here."""
    place = Path(file).resolve()
    return str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else str(place)
