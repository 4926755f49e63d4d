from __future__ import annotations

from pathlib import Path

import pytest
from toy_datasets import make_draft, make_episode, write

from storage.datasets import files
from storage.datasets.files import StepsWriter, find_finished, register_dataset
from storage.datasets.reader import list_datasets, read_manifest, resolve_dataset
from storage.errors import BadInput, DamagedStore, Prerequisite
from storage.schema import Manifest
from storage.store import Store


def fill(store: Store, *names: str) -> list[Manifest]:
    return [write(store, make_draft(name), [make_episode(0, 3), make_episode(1, 5)]) for name in names]


def count(store: Store, table: str) -> int:
    with store.catalog.read() as con:
        found = con.execute(f"SELECT count(*) FROM {table}").fetchone()
    return found[0] if found else -1


@pytest.mark.slow
def test_datasets_are_listed_with_their_mean_return(store: Store) -> None:
    assert list_datasets(store) == []
    fill(store, "one", "two")
    summaries = {summary.dataset_id: summary for summary in list_datasets(store)}
    assert sorted(summaries) == ["one", "two"]
    one = summaries["one"]
    assert (one.source, one.env_id, one.policy, one.episodes, one.steps) == ("collect", "Toy-v0", "random", 2, 8)
    assert one.return_ == pytest.approx((make_episode(0, 3).return_ + make_episode(1, 5).return_) / 2)
    assert one.created_at.endswith("Z")


@pytest.mark.slow
def test_the_catalog_has_the_facts_of_each_episode(store: Store) -> None:
    fill(store, "one")
    query = "SELECT episode_id, seed, length, return_, terminated, truncated, shard FROM episodes ORDER BY episode_id"
    with store.catalog.read() as con:
        assert con.execute(query).fetchall() == [
            (0, 7, 3, make_episode(0, 3).return_, True, False, "steps-00000.parquet"),
            (1, 8, 5, make_episode(1, 5).return_, False, True, "steps-00000.parquet"),
        ]


@pytest.mark.slow
def test_a_dataset_is_found_by_the_beginning_of_its_name(store: Store) -> None:
    with pytest.raises(Prerequisite, match=r"no dataset in .* Make one"):
        resolve_dataset(store)
    fill(store, "d_aa", "d_ab", "d_a")
    assert resolve_dataset(store, "d_aa") == "d_aa"
    assert resolve_dataset(store, "d_a") == "d_a"  # a whole name wins over a beginning
    for name, message in (("d_", "prefix of 3 dataset names"), ("x", "no dataset 'x'"), ("", "no dataset ''")):
        with pytest.raises(BadInput, match=message):
            resolve_dataset(store, name)


@pytest.mark.slow
def test_without_a_name_the_latest_dataset_is_meant(store: Store) -> None:
    fill(store, "older", "newer")
    with store.catalog.write() as con:
        con.execute("UPDATE datasets SET created_at = '2020-01-01 00:00:00+00' WHERE dataset_id = 'newer'")
    assert resolve_dataset(store) == "older"


@pytest.mark.slow
def test_registering_again_changes_nothing(store: Store) -> None:
    [manifest] = fill(store, "one")
    register_dataset(store, manifest)
    assert (count(store, "datasets"), count(store, "episodes"), count(store, "steps")) == (1, 2, 10)


@pytest.mark.slow
def test_a_dataset_published_but_unknown_is_registered_by_the_same_command(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(files, "register_new", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fill(store, "one")
    assert (count(store, "datasets"), count(store, "steps")) == (0, 0)
    found = find_finished(store, make_draft("one"))
    assert found == read_manifest(store, "one")
    assert (count(store, "datasets"), count(store, "episodes"), count(store, "steps")) == (1, 2, 10)


def test_a_finished_dataset_is_recognised_whatever_the_package_versions(store: Store) -> None:
    [manifest] = fill(store, "one")
    assert find_finished(store, make_draft("one", versions={"numpy": "9"})) == manifest
    assert find_finished(store, make_draft("two")) is None
    with pytest.raises(BadInput, match=r"one exists and was made differently \(policy, seed differ\)"):
        find_finished(store, make_draft("one", policy="other", seed=8))


def test_a_manifest_that_was_exchanged_is_refused(store: Store) -> None:
    [manifest] = fill(store, "one")
    path = store.manifest_path("one")
    path.write_text(path.read_text().replace("Toy-v0", "Toy-v1"))
    with pytest.raises(DamagedStore, match=r"manifest\.json differs from the manifest that was registered"):
        register_dataset(store, manifest)


@pytest.mark.slow
def test_a_dataset_without_episodes_is_refused(store: Store) -> None:
    with pytest.raises(BadInput, match="would have no episodes"), StepsWriter(store, make_draft()) as writer:
        writer.finish()
    assert list_datasets(store) == []


@pytest.mark.parametrize("content", [None, b"{}", b"not json"])
def test_a_manifest_that_cannot_be_read_is_named(store: Store, content: bytes | None) -> None:
    fill(store, "one")
    path: Path = store.manifest_path("one")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DamagedStore, match=r"manifest\.json is missing or not a manifest"):
        read_manifest(store, "one")
