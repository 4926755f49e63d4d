"""Runs work in a process of its own, which is killed if it takes too much time or memory, or its caller is interrupted.

DuckDB computes constants and values of any size without checking for an interrupt or its own memory limit; the
operating system can end a process at any instant.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from .. import errors
from ..errors import BadInput, TrajnoteError

T = TypeVar("T")

_ERROR = "error.json"
_SLACK = 1 << 30  # bytes of address space beyond the limit, for libraries and thread stacks


@dataclass(frozen=True)
class Bounds:
    """Limits of a piece of work."""

    timeout_s: float = 600.0
    memory_bytes: int | None = None  # None: half of the machine's

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        return self.memory_bytes or _machine_memory() // 2


def run_bounded(work: Callable[[Path], None], collect: Callable[[Path], T], bounds: Bounds) -> T:
    """Run work in a forked process, which leaves its result in a temporary folder.

    Args:
        work: runs in the process; receives the folder.
        collect: runs in this process afterwards; receives the folder.
        bounds: limits of the work.

    Raises:
        TrajnoteError: as the work raised it.
        BadInput: if the work exceeded its limits.
    """
    folder = Path(tempfile.mkdtemp(prefix="trajnote-sql-"))
    try:
        _wait(_start(work, folder, bounds), folder, bounds)
        return collect(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(work: Callable[[Path], None], folder: Path, bounds: Bounds) -> tuple[int, int]:
    """Process id, and this process's end of a pipe that closes when the child ends."""
    ours, theirs = os.pipe()  # closes there when the work ends
    watched, held = os.pipe()  # closes here when this process ends
    child = os.fork()
    if child == 0:
        os.close(ours)
        os.close(held)
        _work(work, folder, bounds, watched)
    os.close(theirs)
    os.close(watched)
    _held[child] = held
    return child, ours


_held: dict[int, int] = {}


def _work(work: Callable[[Path], None], folder: Path, bounds: Bounds, watched: int) -> NoReturn:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller notices it, and ends this process
        threading.Thread(target=_end_with_caller, args=(watched, folder), daemon=True).start()
        _limit_memory(bounds.memory)
        work(folder)
        os._exit(0)
    except TrajnoteError as error:
        failure = {"kind": type(error).__name__, "problem": error.problem, "hint": error.hint}
        (folder / _ERROR).write_text(json.dumps(failure))
    except MemoryError:
        (folder / _ERROR).write_text(json.dumps({"kind": "MemoryError"}))
    except BaseException:
        (folder / _ERROR).write_text(json.dumps({"kind": "", "problem": traceback.format_exc()}))
    finally:
        os._exit(1)


def _end_with_caller(watched: int, folder: Path) -> None:
    os.read(watched, 1)  # nothing is ever sent: returns when the other end is closed
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _limit_memory(memory: int) -> None:
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory + _SLACK, hard))
    except (OSError, ValueError):
        return  # not on this system: only DuckDB's own limit remains


def _wait(process: tuple[int, int], folder: Path, bounds: Bounds) -> None:
    child, ended = process
    try:
        is_done = bool(select.select([ended], [], [], bounds.timeout_s)[0])
    except BaseException:
        _end(child)
        raise
    finally:
        os.close(ended)
    if not is_done:
        _end(child)
        raise BadInput(f"The query took longer than {bounds.timeout_s:g} s.", "Allow more with --timeout SECONDS.")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(_held.pop(child))
    if code != 0:
        raise _failure(folder, code, bounds)


def _end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(_held.pop(child))


def _failure(folder: Path, code: int, bounds: Bounds) -> Exception:
    path = folder / _ERROR
    failure: dict[str, str] = json.loads(path.read_text()) if path.is_file() and path.stat().st_size else {}
    if failure.get("kind"):
        kind = getattr(errors, failure["kind"], None)
        if kind is not None:
            return kind(failure["problem"], failure["hint"])
    if failure.get("problem"):
        return RuntimeError(failure["problem"])
    return too_much_memory(bounds, f"its process ended with {code}" if code < 0 else "")


def too_much_memory(bounds: Bounds, why: str = "") -> BadInput:
    """The error for work that exceeds its memory limit."""
    because = f" ({why})" if why else ""
    return BadInput(
        f"The query needs more memory than its limit of {bounds.memory / 1e9:.1f} GB{because}.",
        "Select less, or allow more with --memory GB.",
    )


def _machine_memory() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return memory
