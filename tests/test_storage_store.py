"""A store for a command that may be refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import BadInput
from storage.store import Store


@pytest.mark.slow
def test_a_refused_command_leaves_no_new_store(tmp_path: Path) -> None:
    with pytest.raises(BadInput), Store.create_for(tmp_path / "new"):
        raise BadInput("refused")
    assert not (tmp_path / "new").exists()


def test_a_refused_command_leaves_a_folder_that_was_there_as_empty_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(BadInput), Store.create_for(tmp_path):
        raise BadInput("refused")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_command_keeps_a_store_that_was_there(store: Store) -> None:
    with pytest.raises(BadInput), Store.create_for(store.root) as opened:
        raise BadInput(f"refused {opened.root}")
    assert Store.open(store.root).is_empty()


def test_what_was_put_into_a_new_store_before_a_refusal_is_kept(tmp_path: Path) -> None:
    def put_and_be_refused() -> None:
        with Store.create_for(tmp_path / "new") as opened:
            (opened.policies_dir / "p").mkdir()
            raise BadInput("refused")

    with pytest.raises(BadInput):
        put_and_be_refused()
    assert (tmp_path / "new" / "policies" / "p").is_dir()
