"""Room on the disk for replies that are being paid for: held before a call is made, given up when the disk is full.

A reply that cannot be written is money lost, so no call may be made without it. What is written is not known here.
"""

from __future__ import annotations

import os
from pathlib import Path

from .atomic import TEMPORARY
from .os_errors import writing

ROOM_BYTES = 1 << 20
"""More than all replies that can be under way at once take after compression."""

_NAME = f"room{TEMPORARY}"


def hold_room(folder: Path) -> None:
    """Hold room in a folder that this process owns; where it is held already, nothing happens.

    Raises:
        DiskFailed: if there is not so much.
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
    """Give the room up; returns whether there was any."""
    path = folder / _NAME
    if not path.exists():
        return False
    path.unlink()
    return True
