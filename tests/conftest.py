"""Fixtures that every test may use; all data is real, tiny, and made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A fresh, empty store."""
    return Store.create(tmp_path / "store")
