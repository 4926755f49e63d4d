"""Files that are either whole or absent: temporary name, fsync, rename. Their content does not matter."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import CatalogLocked
from .os_errors import disk_failed, reading, writing

TEMPORARY = ".tmp"
_PIECE = 1 << 20  # bytes copied at a time


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any instant, sees the old content or the new one.

    Raises:
        DiskFailed: if the disk refuses it.
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
    """Delete a file that could not be written completely: on a full disk the space is needed."""
    try:
        yield
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Force a folder's names to the disk, so that a rename survives a power cut."""
    sync_file(path)


def publish_folder(partial: Path, final: Path) -> None:
    """Give a finished folder its final name in one step.

    Raises:
        DiskFailed: if the disk refuses it.
        FileExistsError: if the name is taken by anything but an empty folder.
    """
    with writing(final):
        sync_folder(partial)
        is_free = _renamed(partial, final)
        sync_folder(final.parent)
    if not is_free:
        raise FileExistsError(str(final))


def _renamed(partial: Path, final: Path) -> bool:
    """Rename a folder; returns False if a folder with the new name exists, which stays."""
    try:
        partial.rename(final)
    except OSError:
        if final.exists():
            return False
        raise
    return True


def copy_file(source: Path, target: Path) -> None:
    """Copy a user's file into the store, and force it to the disk.

    Raises:
        BadInput: if the file cannot be read.
        DiskFailed: if the disk refuses the copy.
    """
    with reading(source):
        given = source.open("rb")
    with given, writing(target), target.open("wb") as file:
        while piece := _next_piece(given, source):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _next_piece(file: IO[bytes], path: Path) -> bytes:
    with reading(path):
        return file.read(_PIECE)


@contextmanager
def exclusive_lock(folder: Path, what: str, *, wait: bool = False) -> Generator[None]:
    """Lock a folder for this process; the operating system releases the lock when the process ends.

    Args:
        folder: an existing folder.
        what: what the folder holds, for the message.
        wait: wait for the other process, for work that lasts an instant.

    Raises:
        CatalogLocked: if another process has the lock and `wait` is off.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise CatalogLocked(
                f"Another process is writing {what} ({folder}).", "Wait until it ends, then run this again."
            ) from error
        except OSError as error:  # a file system without locks
            raise disk_failed(error, folder) from error
        yield
    finally:
        os.close(descriptor)
