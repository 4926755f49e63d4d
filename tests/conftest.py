"""Fixtures that every test may use; all data is real, tiny, and made here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from storage.store import Store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an empty store, made once; tests get copies of it."""
    return Store.create(tmp_path_factory.mktemp("template") / "store").root


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Store:
    """A fresh, empty store."""
    shutil.copytree(empty_store, tmp_path / "store")
    return Store.open(tmp_path / "store")
