"""Gathering: a dataset gets the names of its card, and its policy is kept as the baseline of refinements."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from store_state import counts_of, state_of
from toy_environment import CARD, TOY, gather_toys, make_baseline, save_folder

from flows.datasets.collection import CollectConfig, gather
from flows.datasets.recordings import take_in
from flows.labelling.annotation import LabelConfig, write_questions
from flows.policies.loading import find_recorded_baseline
from storage.datasets.reader import read_manifest
from storage.errors import BadInput, DamagedStore, LeftOutWarning
from storage.exporting import export_csv
from storage.remote.pull import pull_store
from storage.remote.push import push_store
from storage.schema import sha256_bytes
from storage.store import CARD as CARD_FILE
from storage.store import MANIFEST, Store
from storage.upkeep.verify import verify_store


def config(folder: Path) -> CollectConfig:
    policy = save_folder(make_baseline(), folder / "baseline")
    return CollectConfig(env_id=TOY, policy=f"policy:{policy}", episodes=3)


@pytest.mark.slow
def test_a_dataset_has_the_names_of_the_card_and_its_policy_is_kept(store: Store, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(CARD)
    manifest = gather(store, config(tmp_path), card=str(tmp_path / "card.toml"))
    assert (manifest.component_names, manifest.action_names) == (("x", "y"), ("east", "north", "west", "south"))
    kept = find_recorded_baseline(store, manifest.policy_sha256 or "")
    assert kept is not None
    assert kept.to_files() == make_baseline().to_files()


@pytest.mark.slow
def test_the_packaged_card_of_an_environment_names_its_dataset(store: Store) -> None:
    manifest = gather(store, CollectConfig(env_id="CartPole-v1", policy="random", episodes=1))
    assert manifest.action_names == ("push_left", "push_right")
    assert counts_of(store)["policies"] == 0  # chance has no weights


@pytest.mark.slow
def test_gathering_again_changes_nothing(store: Store, tmp_path: Path) -> None:
    first = gather(store, config(tmp_path))
    before = state_of(store.root)
    assert gather(store, config(tmp_path)) == first
    assert state_of(store.root) == before


@pytest.mark.slow
def test_a_gathering_that_was_killed_before_its_policy_was_kept_keeps_it_the_next_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("flows.datasets.collection.record_actor", None)
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


@pytest.mark.slow
def test_a_folder_is_adopted_whole_or_not_at_all(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other")
    manifest = gather_toys(other, tmp_path)
    folder = other.dataset_dir(manifest.dataset_id)
    shard = folder / manifest.shards[0].name
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = state_of(store.root)
    with pytest.raises(DamagedStore, match="differs from its manifest"):
        take_in(store, folder)
    assert state_of(store.root) == before
    shard.write_bytes(whole)
    assert take_in(store, folder) == manifest
    assert take_in(store, folder) == manifest
    assert (counts_of(store)["datasets"], counts_of(store)["episodes"]) == (1, 12)


Run = Callable[[list[str]], str]


@pytest.mark.slow
def test_a_dataset_keeps_the_card_that_collect_named_and_annotate_asks_with_it(run: Run, tmp_path: Path) -> None:
    card, policy = tmp_path / "my.toml", save_folder(make_baseline(), tmp_path / "baseline")
    card.write_text(CARD)
    root = ["--store", str(tmp_path / "notes")]
    collected = ["collect", "--env", TOY, "--policy", f"policy:{policy}", "--episodes", "2", "--dataset", "toys"]
    run([*collected, "--card", str(card), *root])
    store = Store.open(tmp_path / "notes")
    assert store.card_path("toys").read_text() == CARD
    plan = ["annotate", "plan", "--json", *root]
    named = run([*plan, "--card", str(card)])
    card.unlink()
    assert run(plan) == named
    card.write_text(CARD.replace("push east", "push to the east"))
    assert run([*plan, "--card", str(card)]) != named  # the option comes first
    assert verify_store(store) == []


@pytest.mark.slow
def test_the_card_is_no_part_of_a_datasets_name_and_manifests_without_one_keep_their_bytes(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "card.toml").write_text(CARD)
    kept = gather(store, config(tmp_path), card=str(tmp_path / "card.toml"))
    (tmp_path / "other.toml").write_text(f"# mine\n{CARD}")
    with pytest.warns(LeftOutWarning, match=f"{kept.dataset_id} keeps another card"):
        assert gather(store, config(tmp_path), card=str(tmp_path / "other.toml")) == kept
    plain = gather(store, config(tmp_path))  # other names, o0 and o1
    assert "card_file_sha256" not in store.manifest_path(plain.dataset_id).read_text()
    assert not store.card_path(plain.dataset_id).exists()


@pytest.mark.slow
def test_rows_without_an_environment_are_annotated_with_the_card_of_their_import(run: Run, tmp_path: Path) -> None:
    card, rows = tmp_path / "card.toml", tmp_path / "rows.csv"
    card.write_text(CARD.replace("toy_environment:Toy-v0", "nowhere:Elsewhere-v0"))
    lines = [f"0,{step},{step / 10},0.5,{step % 4},1.0,{step == 7}" for step in range(8)]
    rows.write_text("\n".join(["episode_id,step,observation.x,observation.y,action,reward,terminated", *lines]))
    root = ["--store", str(tmp_path / "notes")]
    run(["import", str(rows), "--dataset", "mine", "--card", str(card), *root])
    assert "1 requests" in run(["annotate", "plan", "--dataset", "mine", *root])


@pytest.mark.slow
def test_the_card_goes_with_its_dataset_and_its_hash_is_checked(store: Store, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(CARD)
    manifest = gather(store, config(tmp_path), card=str(tmp_path / "card.toml"))
    folder = store.dataset_dir(manifest.dataset_id)
    push_store(store, (tmp_path / "remote").as_uri())
    pull_store(tmp_path / "pulled", (tmp_path / "remote").as_uri())
    assert Store.open(tmp_path / "pulled").card_path(manifest.dataset_id).read_text() == CARD
    adopted = Store.create(tmp_path / "adopted")
    assert take_in(adopted, folder) == manifest
    assert adopted.card_path(manifest.dataset_id).read_text() == CARD
    export_csv(store, manifest.dataset_id, None, tmp_path / "rows.csv")
    again = take_in(adopted, tmp_path / "rows.csv", dataset_id="again")
    assert read_manifest(adopted, "again").component_names == again.component_names == ("x", "y")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "problem"), [("edit", "differs from the one that was written"), ("remove", "is missing")]
)
def test_a_card_that_is_not_what_was_written_is_damage(change: str, problem: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(CARD)
    manifest = gather(store, config(tmp_path), card=str(tmp_path / "card.toml"))
    path = store.card_path(manifest.dataset_id)
    path.write_text(CARD.replace("east", "west")) if change == "edit" else path.unlink()
    assert [problem in damage.problem for damage in verify_store(store)] == [True]
    with pytest.raises(DamagedStore, match=r"card\.toml is missing or has changed since it was written.*--card"):
        write_questions(store, manifest.dataset_id, LabelConfig(provider="file"))
    other = Store.create(tmp_path / "other")
    with pytest.raises(DamagedStore, match=r"card\.toml (is|differs)"):
        take_in(other, path.parent)
    assert counts_of(other)["datasets"] == 0


@pytest.mark.slow
def test_a_strangers_card_is_text_of_bounded_size_and_no_module_that_it_names_is_imported(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    kept = gather(store, config(tmp_path))
    folder = store.dataset_dir(kept.dataset_id)
    for text, problem in (
        (CARD.replace("toy_environment:Toy-v0", "planted:Toy-v0"), "The card is for planted:Toy-v0"),
        ("#" * 1_000_001, "more than 1,000,000 bytes"),
        ("title = " + "[" * 50_000, "card.toml"),
    ):
        dropped = tmp_path / sha256_bytes(text.encode())
        shutil.copytree(folder, dropped)
        told = json.loads((dropped / MANIFEST).read_text()) | {"card_file_sha256": sha256_bytes(text.encode())}
        (dropped / MANIFEST).write_text(json.dumps(told))
        (dropped / CARD_FILE).write_text(text)
        other = Store.create(tmp_path / f"store-{dropped.name}")
        take_in(other, dropped)
        with pytest.raises(BadInput, match=problem):
            write_questions(other, kept.dataset_id, LabelConfig(provider="file"))
