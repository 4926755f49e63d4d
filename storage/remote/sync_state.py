"""`remotes.json`: what a store remembers of its remotes. It may be deleted.

The next push or pull then hashes every file again and compares with the remote's newest snapshot only.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from ..content_hash import sha256_file
from ..disk import write_whole
from ..store import Store
from .snapshots import RemoteFile, Snapshot


class Seen(BaseModel):
    """The last snapshot that a store and a remote had in common."""

    number: int
    snapshot_id: str
    tables: dict[str, str]  # of the local catalog at that time
    files: dict[str, str]  # name -> sha256

    @classmethod
    def of(cls, snapshot: Snapshot, tables: dict[str, str]) -> Seen:
        """Remember a snapshot that was pushed or pulled."""
        files = {name: file.sha256 for name, file in snapshot.files.items()}
        return cls(number=snapshot.number, snapshot_id=snapshot.snapshot_id, tables=tables, files=files)


class Remembered(BaseModel):
    """Snapshots seen per remote, and file hashes by size and time, so that no file is read twice."""

    seen: dict[str, Seen] = Field(default_factory=dict[str, Seen])
    hashes: dict[str, tuple[int, int, str]] = Field(default_factory=dict[str, tuple[int, int, str]])

    @classmethod
    def load(cls, store: Store) -> Remembered:
        """Read the memory; empty if the file is missing or cannot be read."""
        try:
            return cls.model_validate_json(store.remotes_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return cls()

    def save(self, store: Store) -> None:
        """Write the memory."""
        write_whole(store.remotes_path, self.model_dump_json().encode())

    def learn(self, name: str, path: Path, sha256: str) -> None:
        """Remember the hash of a file that was just written."""
        state = path.stat()
        self.hashes[name] = (state.st_size, state.st_mtime_ns, sha256)

    def file_of(self, name: str, path: Path) -> RemoteFile:
        """A file as a snapshot lists it; it is read only if its size or time has changed.

        Raises:
            FileNotFoundError: if it does not exist.
        """
        state = path.stat()
        size, changed_ns, sha256 = self.hashes.get(name, (-1, -1, ""))
        if (size, changed_ns) != (state.st_size, state.st_mtime_ns):
            sha256 = sha256_file(path)
            self.hashes[name] = (state.st_size, state.st_mtime_ns, sha256)
        return RemoteFile.of(name, sha256, state.st_size)
