"""A cache of trainings, one file each, that may be deleted: it saves time and is not evidence.

A training is named by all that decides it. The files' content does not matter.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from ..disk import TEMPORARY, exclusive_lock, write_whole, writing
from ..store import Store

LIMIT_BYTES = 500_000_000
"""The most that is kept; the least recently used trainings go first."""


def save_training(store: Store, training_id: str, files: Mapping[str, bytes], *, limit: int = LIMIT_BYTES) -> None:
    """Keep the files of a training; equal files give equal bytes.

    Args:
        store: the store.
        training_id: made from all that decides it.
        files: file name -> content.
        limit: bytes of all trainings together.
    """
    folder = store.trainings_dir
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with exclusive_lock(folder, "a training", wait=True):
        for leftover in folder.glob(f"*{TEMPORARY}"):  # of a killed command: this process has the lock
            leftover.unlink()
        write_whole(store.training_path(training_id), _pack(files))
        _drop_oldest(folder, limit)


def load_training(store: Store, training_id: str) -> dict[str, bytes] | None:
    """The files of a training; None if it is not cached, or damaged."""
    path = store.training_path(training_id)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LIMIT_BYTES:
                return None
            files = {name: archive.read(name) for name in archive.namelist()}
        os.utime(path)  # marks it as used
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError):
        return None
    return files


def _pack(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _drop_oldest(folder: Path, limit: int) -> None:
    found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in folder.iterdir())
    kept = 0
    for _, size, path in reversed(found):
        kept += size
        if kept > limit:
            path.unlink(missing_ok=True)
