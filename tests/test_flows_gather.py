"""Gathering: a dataset gets the names of its card, and its policy is kept as the baseline of refinements."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_state import counts_of, state_of
from toy_environment import CARD, TOY, gather_toys, make_baseline, save_folder

from flows.collect import CollectConfig
from flows.gather import gather, take_in
from flows.judging.lineage import find_recorded_baseline
from storage.errors import BadInput, DamagedStore
from storage.store import Store


def config(folder: Path) -> CollectConfig:
    policy = save_folder(make_baseline(), folder / "baseline")
    return CollectConfig(env_id=TOY, policy=f"policy:{policy}", episodes=3)


def test_a_dataset_has_the_names_of_the_card_and_its_policy_is_kept(store: Store, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(CARD)
    manifest = gather(store, config(tmp_path), card=str(tmp_path / "card.toml"))
    assert (manifest.component_names, manifest.action_names) == (("x", "y"), ("east", "north", "west", "south"))
    kept = find_recorded_baseline(store, manifest.policy_sha256 or "")
    assert kept is not None
    assert kept.to_files() == make_baseline().to_files()


def test_the_packaged_card_of_an_environment_names_its_dataset(store: Store) -> None:
    manifest = gather(store, CollectConfig(env_id="CartPole-v1", policy="random", episodes=1))
    assert manifest.action_names == ("push_left", "push_right")
    assert counts_of(store)["policies"] == 0  # chance has no weights


def test_gathering_again_changes_nothing(store: Store, tmp_path: Path) -> None:
    first = gather(store, config(tmp_path))
    before = state_of(store.root)
    assert gather(store, config(tmp_path)) == first
    assert state_of(store.root) == before


def test_a_gathering_that_was_killed_before_its_policy_was_kept_keeps_it_the_next_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("flows.gather.record_baseline", None)
        with pytest.raises(TypeError):
            gather(store, config(tmp_path))
    assert counts_of(store)["policies"] == 0
    gather(store, config(tmp_path))
    assert (counts_of(store)["datasets"], counts_of(store)["policies"]) == (1, 1)


def test_a_card_for_another_environment_is_refused_and_nothing_is_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(
        CARD.replace('name = "y"', 'name = "y"\nmeaning = "m"\n[[components]]\nname = "z"')
    )
    before = state_of(store.root)
    with pytest.raises(BadInput, match="3 components"):
        gather(store, config(tmp_path), card=str(tmp_path / "card.toml"))
    assert state_of(store.root) == before


def test_a_folder_is_adopted_whole_or_not_at_all(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other")
    manifest = gather_toys(other, tmp_path)
    folder = other.dataset_dir(manifest.dataset_id)
    shard = folder / manifest.shards[0].name
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = state_of(store.root)
    with pytest.raises(DamagedStore, match="is not what its manifest says"):
        take_in(store, folder)
    assert state_of(store.root) == before
    shard.write_bytes(whole)
    assert take_in(store, folder) == manifest
    assert take_in(store, folder) == manifest
    assert (counts_of(store)["datasets"], counts_of(store)["episodes"]) == (1, 12)
