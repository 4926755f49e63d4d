"""What a disk refuses, as one line: a full disk, a folder that may not be written, a device that fails.

It writes nothing itself. Whoever writes puts it around the writing, for the operating system's own error often names
no file.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .errors import DiskFailed

_AGAIN = "then run the same command again: it goes on, and nothing is lost"
_FULL = f"Make room, {_AGAIN}."
_CLOSED = f"Allow writing there, or name another store with --store, {_AGAIN}."
_CAUSES = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("the quota of this user is used up", _FULL),
    errno.EFBIG: ("files may not grow so large here", f"Raise the limit (`ulimit -f`), {_AGAIN}."),
    errno.EROFS: ("the file system is read-only", _CLOSED),
    errno.EACCES: ("this user may not write there", _CLOSED),
    errno.EPERM: ("this user may not write there", _CLOSED),
    errno.EIO: ("the device fails", f"Look at the system's log, move the store to another disk, {_AGAIN}."),
}


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Say in one line why a file cannot be written.

    Raises:
        DiskFailed: in place of an error of the operating system that a user can do something about.
    """
    try:
        yield
    except OSError as error:
        if (failed := explain_disk(error, path)) is None:
            raise
        raise failed from error


def explain_disk(error: Exception, path: Path) -> DiskFailed | None:
    """The words for an error of the operating system, also for one that a library tells as text; None for others.

    Args:
        error: what was raised.
        path: what was being written.
    """
    code = error.errno if isinstance(error, OSError) and error.errno else _code_in(str(error))
    if code not in _CAUSES:
        return None
    cause, remedy = _CAUSES[code]
    return DiskFailed(f"{path} cannot be written: {cause} ({_free(path)} free).", remedy)


def _code_in(text: str) -> int | None:
    return next((code for code in _CAUSES if os.strerror(code) in text), None)


def _free(path: Path) -> str:
    """The space on the disk of a path, of which only the beginning may exist."""
    nearest = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    return f"{shutil.disk_usage(nearest).free / 1e6:,.1f} MB"
