"""What a disk refuses, as one line: a full disk, a folder that may not be written, a device or a server that fails.

It writes nothing itself. Whoever writes puts it around the writing, for the operating system's own error often names
no file; whatever the operating system raises there is the disk's.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadInput, DiskFailed

_AGAIN = "then run the same command again: it goes on, and nothing is lost"
_FULL = f"Make room, {_AGAIN}."
_CLOSED = f"Allow writing there, or name another store with --store, {_AGAIN}."
_AWAY = f"See that the disk is mounted and answers, {_AGAIN}."
_UNFIT = f"A store needs files that can be renamed, locked and linked; name one on another disk with --store, {_AGAIN}."
_FILLED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What only writing meets."""
_CAUSES = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("the quota of this user is used up", _FULL),
    errno.EFBIG: ("files may not grow so large here", f"Raise the limit (`ulimit -f`), {_AGAIN}."),
    errno.EROFS: ("the file system is read-only", _CLOSED),
    errno.EACCES: ("this user may not write there", _CLOSED),
    errno.EPERM: ("this user may not write there", _CLOSED),
    errno.EIO: ("the device fails", f"Look at the system's log, move the store to another disk, {_AGAIN}."),
    **{code: (os.strerror(code).lower(), _UNFIT) for code in (errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP)},
}
_NOT_OF_DISKS = {
    *(errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.EINTR, errno.EAGAIN, errno.EPIPE),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOEXEC, errno.ECHILD, errno.EDOM, errno.ERANGE),
}
"""What does not speak of a disk, unless it is met while writing."""


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Say in one line why a file cannot be written.

    Raises:
        BadInput: where there is no folder to write into.
        DiskFailed: in place of every other error of the operating system.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
            hint = "Make it, or name another place."
            raise BadInput(f"{path} cannot be written: there is no folder {path.parent}.", hint) from error
        raise disk_failed(error, path) from error


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Say in one line why a user's file cannot be read.

    Raises:
        BadInput: in place of every error of the operating system.
    """
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from error


def disk_failed(error: OSError, path: Path) -> DiskFailed:
    """The words for whatever the operating system raises while a file is written."""
    return explain_disk(error, path) or _failed(error.errno, error.strerror or str(error), path)


def explain_disk(error: Exception, path: Path) -> DiskFailed | None:
    """The words for an error that speaks of a disk, also for one that a library tells as text; None for others.

    Args:
        error: what was raised.
        path: what was being written.
    """
    code = error.errno if isinstance(error, OSError) and error.errno else _code_in(str(error))
    return None if code is None or code in _NOT_OF_DISKS else _failed(code, os.strerror(code), path)


def explain_full(error: Exception, path: Path) -> DiskFailed | None:
    """As `explain_disk`, for what reads one file and writes another: None unless only writing fails so."""
    code = error.errno if isinstance(error, OSError) and error.errno else _code_in(str(error))
    return explain_disk(error, path) if code in _FILLED else None


def refused_file(error: OSError) -> Path | None:
    """The file that an error names; of two, the one that was to be written."""
    name = error.filename2 or error.filename
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None


def _failed(code: int | None, words: str, path: Path) -> DiskFailed:
    cause, remedy = _CAUSES.get(code or 0, (words.lower(), _AWAY))
    return DiskFailed(f"{path} cannot be written: {cause} ({_free(path)} free).", remedy)


def _code_in(text: str) -> int | None:
    """The error that a text speaks of in the operating system's own words."""
    known = (*_CAUSES, *(code for code in errno.errorcode if code not in _NOT_OF_DISKS and " " in os.strerror(code)))
    return next((code for code in known if os.strerror(code) in text), None)


def _free(path: Path) -> str:
    """The space on the disk of a path, of which only the beginning may exist; a disk that fails may not say it."""
    try:
        nearest = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
        return f"{shutil.disk_usage(nearest).free / 1e6:,.1f} MB"
    except OSError:
        return "an unknown amount"
