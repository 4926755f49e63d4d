"""A file or folder by URL as a local copy, kept while it is read. The content does not matter here."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadInput
from .remote import Remote

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
    names = list(Remote(place).sizes())
    if not names:
        raise BadInput(f"{place} does not exist.", "Name a file of rows, or the folder of a dataset.")
    folder_url, _, last = place.rstrip("/").rpartition("/")
    with tempfile.TemporaryDirectory(prefix="trajnote-import-") as temporary:
        target = Path(temporary, last)
        if names == [""]:  # a single file
            Remote(folder_url).fetch(last, target)
        else:
            _fetch_folder(Remote(place), names, target)
        yield target


def _fetch_folder(remote: Remote, names: list[str], target: Path) -> None:
    for name in names:
        path = target / _OBJECT.sub("", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        remote.fetch(name, path)
