"""Work that tests share out; a module of its own, so that a new process imports nothing heavy for it."""

from __future__ import annotations

import os
import threading
import time

from storage.errors import BadInput


def where(item: int) -> tuple[int, int, int]:
    return item, os.getpid(), threading.get_ident()


def fail(item: int) -> int:
    if item == 3:
        raise BadInput("Three is not allowed.", "Take another one.")
    return item


def die(item: int) -> int:
    os._exit(item)


_inside: list[int] = []


def overlap(item: int) -> int:
    """How many are inside at once, a moment after coming in."""
    _inside.append(item)
    time.sleep(0.02)
    found = len(_inside)
    _inside.remove(item)
    return found
