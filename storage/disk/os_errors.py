"""Turns errors of the operating system into one line: a full disk, a read-only folder, a failing device or server.

Wrap it around any writing, since the operating system's own error often names no file; every `OSError` raised there
counts as one of the disk.
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
_CLOSED = f"Allow writing there, or use another store with --store, {_AGAIN}."
_AWAY = f"Check that the disk is mounted and responds, {_AGAIN}."
_UNFIT = f"A store needs files that can be renamed, locked and linked; use one on another disk with --store, {_AGAIN}."
_FILLED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that only writing raises."""
_CAUSES = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("this user's quota is used up", _FULL),
    errno.EFBIG: ("the file is larger than this user's limit", f"Raise the limit (`ulimit -f`), {_AGAIN}."),
    errno.EROFS: ("the file system is read-only", _CLOSED),
    errno.EACCES: ("this user may not write there", _CLOSED),
    errno.EPERM: ("this user may not write there", _CLOSED),
    errno.EIO: ("the device fails", f"Read the system's log, move the store to another disk, {_AGAIN}."),
    **{code: (os.strerror(code).lower(), _UNFIT) for code in (errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP)},
}
_NOT_OF_DISKS = {
    *(errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.EINTR, errno.EAGAIN, errno.EPIPE),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOEXEC, errno.ECHILD, errno.EDOM, errno.ERANGE),
}
"""Errors that are of the disk only if raised while writing."""


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Within the block, say in one line why a file cannot be written.

    Raises:
        BadInput: if the folder to write into does not exist.
        DiskFailed: in place of every other error of the operating system.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
            hint = "Make it, or name another folder."
            raise BadInput(f"{path} cannot be written: there is no folder {path.parent}.", hint) from error
        raise disk_failed(error, path) from error


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Within the block, say in one line why a user's file cannot be read.

    Raises:
        BadInput: in place of every error of the operating system.
    """
    try:
        yield
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.") from error


def disk_failed(error: OSError, path: Path) -> DiskFailed:
    """The message for any error raised while a file is written."""
    return explain_disk(error, path) or _failed(error.errno, error.strerror or str(error), path)


def explain_disk(error: Exception, path: Path) -> DiskFailed | None:
    """The message for an error of the disk, also one that a library reports as text; None for others.

    Args:
        error: what was raised.
        path: what was being written.
    """
    code = error.errno if isinstance(error, OSError) and error.errno else _code_in(str(error))
    return None if code is None or code in _NOT_OF_DISKS else _failed(code, os.strerror(code), path)


def explain_full(error: Exception, path: Path) -> DiskFailed | None:
    """As `explain_disk`, for code that reads one file and writes another: None unless only writing can fail so."""
    code = error.errno if isinstance(error, OSError) and error.errno else _code_in(str(error))
    return explain_disk(error, path) if code in _FILLED else None


def refused_file(error: OSError) -> Path | None:
    """The file that an error names; of two, the one to be written."""
    name = error.filename2 or error.filename
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None


def _failed(code: int | None, words: str, path: Path) -> DiskFailed:
    cause, remedy = _CAUSES.get(code or 0, (words.lower(), _AWAY))
    return DiskFailed(f"{path} cannot be written: {cause} ({_free(path)} free).", remedy)


def _code_in(text: str) -> int | None:
    """The error whose operating system message a text contains."""
    known = (*_CAUSES, *(code for code in errno.errorcode if code not in _NOT_OF_DISKS and " " in os.strerror(code)))
    return next((code for code in known if os.strerror(code) in text), None)


def _free(path: Path) -> str:
    """The free space for a path that need not exist yet; unknown if the disk fails."""
    try:
        nearest = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
        return f"{shutil.disk_usage(nearest).free / 1e6:,.1f} MB"
    except OSError:
        return "an unknown amount"
