"""Files, folders and mapped arrays that are whole or absent, room held for paid replies, a failing disk in words."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import weakref
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ..errors import BadInput, CatalogLocked, DiskFailed
from ..schema import Array, sha256_bytes

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
        sync_to_disk(path.parent)


@contextmanager
def gone_on_failure(temporary: Path) -> Generator[None]:
    """Delete a file that could not be written completely: on a full disk the space is needed."""
    try:
        yield
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_to_disk(path: Path) -> None:
    """Force a file's content, or the names in a folder, to the disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_folder(partial: Path, final: Path) -> None:
    """Give a finished folder its final name in one step.

    Raises:
        DiskFailed: if the disk refuses it.
        FileExistsError: if the name is taken by anything but an empty folder.
    """
    with writing(final):
        sync_to_disk(partial)
        is_free = _renamed(partial, final)
        sync_to_disk(final.parent)
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


class Hold:
    """Says that this process uses a folder, until the object is gone or the process ends; several may hold one."""

    def __init__(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def is_held(folder: Path) -> bool:
    """Whether a process holds a folder, or has locked it."""
    try:
        with exclusive_lock(folder, folder.name):
            return False
    except CatalogLocked:
        return True


def publish_arrays(
    folder: Path,
    empty: Mapping[str, Array],
    rows: Mapping[str, int],
    parts: Iterable[Mapping[str, Array]],
    notes: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write arrays as the `.npy` files of a folder that appears whole, part by part, so that none has to be in memory.

    Args:
        folder: must not be there; its parent is locked by the caller.
        empty: an array without rows for each name, for its type and the shape of a row.
        rows: how many each has in all parts together.
        parts: some rows of every array, in their order.
        notes: further files of the folder.

    Raises:
        DiskFailed: if the disk refuses it.
    """
    unfinished = folder.with_name(folder.name + TEMPORARY)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    with writing(unfinished), ExitStack() as stack:
        files = {name: stack.enter_context((unfinished / f"{name}.npy").open("wb")) for name in empty}
        for name, array in empty.items():
            header: dict[str, Any] = {"descr": npy.dtype_to_descr(array.dtype), "fortran_order": False}
            npy.write_array_header_1_0(files[name], header | {"shape": (rows[name], *array.shape[1:])})
        for part in parts:
            for name, array in part.items():
                array.tofile(files[name])
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        for name, content in notes.items():
            (unfinished / name).write_bytes(content)
    publish_folder(unfinished, folder)


def map_arrays(folder: Path, names: Iterable[str]) -> dict[str, Array]:
    """Arrays of a folder as read-only memory of the file; nothing is unpickled.

    Raises:
        OSError, ValueError, EOFError: if one is missing or is no array.
    """
    files = {name: folder / f"{name}.npy" for name in names}
    return {name: np.asarray(np.load(file, mmap_mode="r", allow_pickle=False)) for name, file in files.items()}


def share_arrays(folder: Path, arrays: Mapping[str, Array]) -> Hold:
    """Have arrays as files that other processes map, beside no others but those that somebody holds.

    Args:
        folder: named by the content of the arrays; written unless it is there.
        arrays: by the names of their files.

    Returns:
        What keeps the files until nobody needs them.

    Raises:
        DiskFailed: if the disk refuses it.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder.parent, "shared arrays", wait=True):
        for other in folder.parent.iterdir():
            if other != folder and not is_held(other):
                shutil.rmtree(other, ignore_errors=True)
        if not folder.is_dir():
            empty = {name: array[:0] for name, array in arrays.items()}
            publish_arrays(folder, empty, {name: len(array) for name, array in arrays.items()}, [arrays])
        return Hold(folder)


_AGAIN = "then run the same command again: it resumes, and nothing is lost"
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
    """The message for an error of the disk while a path was written, also from a library's text; None for others."""
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


ROOM_BYTES = 1 << 20
"""More than all replies that can arrive at once need after compression."""

_NAME = f"room{TEMPORARY}"


def hold_room(folder: Path) -> None:
    """Reserve space in a folder that this process has locked; does nothing if it is reserved already.

    Raises:
        DiskFailed: if the disk has too little space.
    """
    path = folder / _NAME
    if path.exists() and path.stat().st_size == ROOM_BYTES:
        return
    with writing(path), path.open("wb") as file:
        try:
            file.write(bytes(ROOM_BYTES))  # not posix_fallocate, which macOS does not have
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink()
            raise


def release_room(folder: Path) -> bool:
    """Release the space; returns whether any was reserved."""
    path = folder / _NAME
    if not path.exists():
        return False
    path.unlink()
    return True


_SEAL = "<!-- sha256 of all above: "


def seal(page: bytes) -> bytes:
    """An HTML page with its own hash as the last line, so that damage shows."""
    return page + f"{_SEAL}{sha256_bytes(page)} -->\n".encode()


def is_sealed(path: Path) -> bool:
    """Whether a page is what was sealed; one without a seal has to end as pages do."""
    page, mark, seal_ = path.read_bytes().rpartition(_SEAL.encode())
    if not mark:
        return seal_.rstrip().endswith(b"</html>")
    return seal_ == f"{sha256_bytes(page)} -->\n".encode()
