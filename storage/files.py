"""Files that are either whole or absent: temporary name, fsync, rename. It does not know what is inside them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .disk import writing
from .errors import CatalogLocked

TEMPORARY = ".tmp"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any instant, sees the old content or the new one.

    Raises:
        DiskFailed: if the disk does not take it.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    with writing(path), gone_on_failure(temporary):
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


@contextmanager
def gone_on_failure(temporary: Path) -> Generator[None]:
    """Take away what could not be written to its end: on a full disk the space is needed."""
    try:
        yield
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Have the content of a file on the disk, not only in the operating system's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk, so that a rename survives a power cut."""
    sync_file(path)


def publish_folder(partial: Path, final: Path) -> None:
    """Give a finished folder its final name in one step.

    Raises:
        FileExistsError: if something that is not an empty folder has that name already.
    """
    sync_folder(partial)
    try:
        partial.rename(final)
    except OSError as error:
        if final.exists():
            raise FileExistsError(str(final)) from error
        raise
    sync_folder(final.parent)


@contextmanager
def owned(folder: Path, what: str, *, wait: bool = False) -> Generator[None]:
    """Be the only process that works in a folder; the operating system lets go of it when the process ends.

    Args:
        folder: an existing folder.
        what: what it is, for the message.
        wait: wait for another process to finish, for work that lasts an instant.

    Raises:
        CatalogLocked: if another process works in it and `wait` is off.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise CatalogLocked(
                f"Another process is writing {what} ({folder}).", "Wait until it has finished, then run this again."
            ) from error
        yield
    finally:
        os.close(descriptor)
