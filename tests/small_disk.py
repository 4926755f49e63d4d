"""A disk of a few megabytes that can be filled, closed and opened again: a real one, in memory, mounted for a test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._ballast = root / "ballast"

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.root).free

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes, or a little less."""
        with self._ballast.open("ab") as file:
            file.write(b"x" * max(0, self.free - leave))

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Let nothing be written any more."""
        subprocess.run(["mount", "-o", "remount,ro", self.root], check=True)


@contextmanager
def mounted(root: Path, size: str = "8m") -> Generator[SmallDisk]:
    """A disk on a folder; skips the test where this user may not mount one."""
    root.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", root], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "-l", root], check=True)
