"""Disk space for replies that are being paid for: reserved before a call, released when the disk is full.

A reply that cannot be written is money lost, so no call may be made without it.
"""

from __future__ import annotations

import os
from pathlib import Path

from .atomic import TEMPORARY
from .os_errors import writing

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
