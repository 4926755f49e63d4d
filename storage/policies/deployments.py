"""A deployment's folder: its lock, the marker of an unfinished run, and the link to the policy in force.

The operating system releases the lock when its process ends, however it ends, so a kill blocks no later run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from ..disk import exclusive_lock, sync_folder, write_whole, writing
from ..errors import CatalogLocked, TrajnoteError
from ..store import Store

CURRENT = "current"
_RUNNING = "running.json"


class AlreadyRunning(TrajnoteError):
    """The same deployment is running already; nothing was done, and nothing is lost."""

    exit_code: ClassVar[int] = 7


@contextmanager
def deployment_lock(store: Store, deployment: str) -> Generator[str | None]:
    """Be the only run of a deployment on this machine.

    Yields:
        When the previous run began, if it was killed; else None.

    Raises:
        AlreadyRunning: if another process runs it.
    """
    folder = store.deployment_dir(deployment)
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _RUNNING
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder, f"the deployment {deployment}"))
        except CatalogLocked as error:
            raise AlreadyRunning(
                f"The deployment {deployment} is running already{_described(marker)}.",
                "This run has done nothing; new input goes to that run or the next one.",
            ) from error
        killed = _began(marker)
        write_whole(marker, json.dumps({"pid": os.getpid(), "began": _now()}).encode())
        try:
            yield killed
        finally:
            marker.unlink(missing_ok=True)


def link_current(store: Store, deployment: str, policy_id: str) -> Path:
    """Link `deployments/<deployment>/current` to the folder of a policy, atomically; returns the link."""
    folder = store.deployment_dir(deployment)
    link, target = folder / CURRENT, Path("..", "..", store.policy_dir(policy_id).relative_to(store.root))
    with writing(link):
        folder.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != target:
            new = folder / f"{CURRENT}.new"
            new.unlink(missing_ok=True)
            new.symlink_to(target, target_is_directory=True)
            new.replace(link)
            sync_folder(folder)
    return link


def _began(marker: Path) -> str | None:
    """When the run that left a marker began; None if there is none."""
    try:
        return str(json.loads(marker.read_bytes())["began"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return "at an unknown time"


def _described(marker: Path) -> str:
    began = _began(marker)
    return f", since {began}" if began else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
