"""A folder by URL (s3://, gs://, file://): a thin layer over fsspec, and local copies of what lies there.

fsspec's backends find credentials in the usual environment variables and files; none is stored or printed.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from ..disk import disk_failed, explain_full, refused_file
from ..errors import BadInput, Prerequisite, RemoteFailed, TrajnoteError

SCHEMES = ("s3", "gs", "file", "memory")
_EXTRAS = {"s3": "s3", "gs": "gcs"}
_OPTIONS: dict[str, dict[str, Any]] = {"file": {"auto_mkdir": True}}
_SECRETS = re.compile(r"(?i)key|secret|token|password|credential")


class Remote:
    """A remote folder with the few operations that a store needs.

    Args:
        url: for example `s3://bucket/folder`; without user, password or question mark.

    Raises:
        BadInput: if it is not such a URL.
        Prerequisite: if the backend for its scheme is not installed.
    """

    def __init__(self, url: str) -> None:
        scheme = _scheme(url)
        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.url_to_fs(
                self.url, use_listings_cache=False, skip_instance_cache=True, **_OPTIONS.get(scheme, {})
            )
        except ImportError as error:
            extra = _EXTRAS.get(scheme, scheme)
            raise Prerequisite(f"{scheme}:// needs one more package.", f"pip install 'trajnote[{extra}]'") from error

    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; none if it does not exist."""
        with self._translated():
            try:
                found = self._files.ls(f"{self._root}/{folder}", detail=False)
            except FileNotFoundError:
                return []
            return sorted(str(path).rsplit("/", 1)[-1] for path in found)

    def sizes(self) -> dict[str, int]:
        """Name -> bytes of all files below the folder: one listing, a thousand names a call."""
        with self._translated():
            found = self._files.find(self._root, detail=True)
        root = self._root.removeprefix("/")
        names = {path: path.removeprefix("/").removeprefix(root).removeprefix("/") for path in found}
        return {names[path]: int(info["size"]) for path, info in found.items()}

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if it does not exist."""
        with self._translated():
            try:
                return self._files.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None

    def create(self, name: str, content: bytes) -> bool:
        """Write a small file that must not exist; False if it does. Of two concurrent calls, one succeeds.

        Uses the conditional write of S3 (`If-None-Match: *`) or of Google's storage, or the system's `O_EXCL`.
        """
        path = f"{self._root}/{name}"
        with self._translated():
            try:
                if "file" in self._files.protocol:  # fsspec's own way is not atomic: it looks, then writes
                    with self._files.open(path, "xb") as file:
                        file.write(content)
                else:
                    self._files.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
        return True

    def replace(self, name: str, local: Path) -> None:
        """Upload a file, replacing an older one."""
        with self._translated():
            self._files.put_file(str(local), f"{self._root}/{name}")

    def remove(self, name: str) -> None:
        """Delete a file."""
        with self._translated():
            self._files.rm_file(f"{self._root}/{name}")

    def fetch(self, name: str, local: Path) -> None:
        """Download a file.

        Raises:
            DiskFailed: if the local disk refuses it.
        """
        with self._translated():
            try:
                self._files.get_file(f"{self._root}/{name}", str(local))
            except OSError as error:
                if refused_file(error) == local:
                    raise disk_failed(error, local) from None
                if failed := explain_full(error, local):
                    raise failed from None
                raise

    @contextmanager
    def _translated(self) -> Generator[None]:
        """Turn whatever a backend raises into one line without secrets."""
        try:
            yield
        except TrajnoteError:
            raise
        except Exception as error:  # each backend has classes of its own, which may not be installed
            problem = f"{self.url}: {type(error).__name__}: {_without_secrets(str(error))}"
            raise RemoteFailed(
                problem, "Check the URL, the credentials and the network, then run this again."
            ) from None


def _scheme(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES or not rest.strip("/"):
        raise BadInput(
            f"{_without_secrets(url)!r} is not the URL of a folder.",
            "Allowed: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, file:///FOLDER.",
        )
    if re.search(r"[@?#*]", rest):
        raise BadInput(
            "The URL has one of @ ? # *.", "Put credentials into environment variables, such as AWS_ACCESS_KEY_ID."
        )
    return scheme


def _without_secrets(text: str) -> str:
    """The first line of a message, without the values of secret environment variables."""
    for name, value in os.environ.items():
        if _SECRETS.search(name) and len(value) > 3:
            text = text.replace(value, "...")
    return text.strip().split("\n", 1)[0][:300]


_OBJECT = re.compile(r"\.[0-9a-f]{16}(?=\.[^.]+$)")  # what a push appends to a file's name


@contextmanager
def local_copy(place: str) -> Generator[Path]:
    """The path of a file or folder; for a URL, that of a copy, which is deleted at the end.

    The folder of a dataset in a store that was pushed (`URL/rollouts/ID`) gets its original file names in the copy.

    Args:
        place: a path, or a URL as `Remote` takes it.

    Raises:
        BadInput: if nothing is there.
        RemoteFailed, DiskFailed: if it cannot be downloaded.
    """
    if "://" not in place:
        path = Path(place)
        if not path.exists():
            raise BadInput(f"{path} does not exist.", "Name a file of rows, or the folder of a dataset.")
        yield path
        return
    remote = Remote(place)
    names = list(remote.sizes())
    if not names:
        raise BadInput(f"{place} does not exist.", "Name a file of rows, or the folder of a dataset.")
    folder_url, _, last = place.rstrip("/").rpartition("/")
    with tempfile.TemporaryDirectory(prefix="trajnote-import-") as temporary:
        target = Path(temporary, last)
        if names == [""]:  # a single file
            Remote(folder_url).fetch(last, target)
        else:
            for name in names:
                path = target / _OBJECT.sub("", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                remote.fetch(name, path)
        yield target
