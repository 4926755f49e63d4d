"""Exports: what another program reads, and what comes back, are the stored bits; metadata and labels go along."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import polars as pl
import pytest
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector.episode_buffer import EpisodeBuffer
from soak import SOAK, full_or
from toy_datasets import make_draft, make_episode, same, write
from typer.testing import CliRunner

from annotate.cards.cards import Action, Card, Component
from annotate.runs.plan import plan_run
from flows.cli import make_app
from flows.datasets.recordings import export_dataset, take_in
from storage.annotations.annotations import insert_annotations
from storage.catalog import insert_rows
from storage.datasets.reader import iterate_episodes, read_manifest, read_pool
from storage.errors import BadInput, DamagedStore
from storage.importing.row_validation import ImportReport
from storage.schema import Annotation, Episode, Manifest, ManifestDraft, Space
from storage.store import Store

FORMATS = ("parquet", "csv", "minari", "d3rlpy")
ENDINGS = {"parquet": "out.parquet", "csv": "out.csv", "minari": "out", "d3rlpy": "out.h5"}
KEPT = [name for name in ManifestDraft.model_fields if name not in ("dataset_id", "source", "source_sha256")]
ODD = (-0.0, 5e-324, 0.1, 1 / 3, 1.7976931348623157e308, -1e-40)  # values that careless text would change
BOX = Space(kind="box", dtype="float64", size=2, low=(-1.0, -math.inf), high=(1.0, math.inf))
SHIFTED = Space(kind="discrete", dtype="int64", size=1, n=3, start=-1)
NARROW = Space(kind="box", dtype="uint8", size=3, low=(0, 0, 0), high=(255, 255, 255))


def note(episode_id: int, step: int, run_id: str = "run") -> Annotation:
    return Annotation(
        annotation_id=f"{run_id}-{episode_id}-{step}",
        run_id=run_id,
        request_id=None,
        dataset_id="d1",
        episode_id=episode_id,
        step=step,
        critical=True,
        suggested_action=(1.0,),
        suggested_label="right",
        implicit_reward=0.1,
        confidence=0.9,
        rationale='a "quoted", odd\nreason',
        model="m",
        prompt_version="p",
    )


def discrete(store: Store) -> list[Episode]:
    draft = make_draft(
        env_id="CartPole-v1",
        env_kwargs={"sutton_barto_reward": True},
        policy_sha256="abc",
        policy_mode="sampled",
        policy_output="logits",
        max_steps=9,
        versions={"gymnasium": "1.0", "numpy": "2.0"},
    )
    outputs = np.arange(8, dtype=np.float32).reshape(4, 2) / 3
    episodes = [make_episode(number, policy_outputs=outputs + number) for number in (0, 1, 5)]
    write(store, draft, episodes, shard_bytes=1)
    with store.catalog.write() as con:
        for run_id in ("run", "other"):
            insert_rows(con, "annotation_runs", [{"run_id": run_id, "dataset_id": "d1", "provider": "file"}])
        insert_annotations(con, [note(0, 1), note(0, 1, "other"), note(5, 3)])
    return episodes


def continuous(store: Store) -> list[Episode]:
    draft = make_draft(env_id=None, action_space=BOX, action_names=("push", "turn"), policy=None)
    actions = np.array(ODD, np.float64).reshape(3, 2)
    observations = np.array([*ODD[:3], *ODD[3:4], -1e-40, 3e38] * 2, np.float32).reshape(4, 3)
    rewards = np.array(ODD[1:4])
    parts = {"actions": actions, "observations": observations, "rewards": rewards}
    episodes = [make_episode(number, 3, seed=None, truncated=True, **parts) for number in range(2)]
    write(store, draft, episodes)
    return episodes


def narrow(store: Store) -> list[Episode]:
    names = ("left", "none", "right")
    draft = make_draft(observation_space=NARROW, action_space=SHIFTED, action_names=names, env_id="Own-v0")
    pixels = np.array([[0, 128, 255], [1, 2, 3]], np.uint8)
    episodes = [make_episode(0, 1, observations=pixels, actions=np.array([-1]), seed=2**40)]
    write(store, draft, episodes)
    return episodes


def seen(store: Store) -> list[Episode]:
    draft = make_draft(
        observation_space=Space(kind="discrete", dtype="int64", size=1, n=9), component_names=("cell",), env_id=None
    )
    episodes = [make_episode(0, 3, observations=np.array([0, 8, 3, 1]))]
    write(store, draft, episodes)
    return episodes


MAKERS = (discrete, continuous, narrow, seen)
TRIPS = list(itertools.product(MAKERS, FORMATS) if SOAK else itertools.product(MAKERS[:2], FORMATS))


def kept(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in KEPT}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "format_"), TRIPS)
def test_what_is_exported_comes_back_bit_for_bit_with_its_metadata(
    store: Store, tmp_path: Path, format_: Any, make: Any
) -> None:
    episodes = make(store)
    path = tmp_path / ENDINGS[format_]
    manifest = export_dataset(store, path, format_, with_labels=True).manifest
    other = Store.create(tmp_path / "other")
    back = take_in(other, path)
    assert all(same(a, b) for a, b in zip(episodes, iterate_episodes(other, back.dataset_id), strict=True))
    assert kept(back) == kept(manifest)
    assert (back.source, take_in(other, path)) == ("import", back)
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".")]


def stained(store: Store) -> list[Episode]:
    """What an older version collected from an environment that gave numbers that are not finite."""
    episodes = [make_episode(number) for number in range(3)]
    episodes[1].rewards[2] = math.nan
    episodes[1].observations[3] = (math.inf, -math.inf, math.nan)
    write(store, make_draft(env_id=None), episodes)
    return episodes


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_numbers_that_are_not_finite_come_back_as_they_were_exported_with_a_warning(
    store: Store, tmp_path: Path, format_: Any
) -> None:
    episodes = stained(store)
    export_dataset(store, tmp_path / ENDINGS[format_], format_)
    report = ImportReport()
    take_in(store, tmp_path / ENDINGS[format_], dataset_id="back", report=report)
    assert all(same(a, b) for a, b in zip(episodes, iterate_episodes(store, "back"), strict=True))
    assert report.warnings == [
        "numbers that are not finite in 1 episodes, the first is 1: they are never asked about or trained on"
    ]


def test_nothing_is_asked_or_trained_on_numbers_that_are_not_finite(store: Store) -> None:
    stained(store)
    message = r"The dataset d1 holds numbers that are not finite, for example at episode 1, step 3: the obs"
    with pytest.raises(BadInput, match=message):
        read_pool(store, ["d1"])
    card = Card(
        env_id="Toy-v0",
        title="t",
        goal="g",
        termination="t",
        reward="r",
        components=tuple(Component(name=name, meaning="m") for name in "xyz"),
        actions=tuple(Action(name=name, meaning="m") for name in ("left", "right")),
    )
    with pytest.raises(BadInput, match=message):
        plan_run(store, "d1", card)


FLOATS = ("float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")


@st.composite
def datasets(draw: st.DrawFn) -> tuple[ManifestDraft, list[Episode]]:
    """Everything that `collect` can make, in small."""
    observations, actions = draw(space_of(FLOATS + INTEGERS)), draw(space_of(FLOATS + INTEGERS))
    has_output = draw(st.booleans())
    draft = make_draft(
        env_id=None,
        observation_space=observations,
        action_space=actions,
        component_names=tuple(f'c {place}.,"' for place in range(observations.size)),
        action_names=tuple(f"a;{place}" for place in range(actions.n or actions.size)),
        policy_output=("logits" if actions.is_discrete else "mean") if has_output else None,
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    episodes: list[Episode] = []
    for number in range(draw(st.integers(1, 3))):
        length = draw(st.integers(1, 4))
        outputs = rng.normal(size=(length, actions.n or actions.size)).astype(np.float32) if has_output else None
        values = {
            "observations": values_of(rng, observations, length + 1),
            "actions": values_of(rng, actions, length),
            "rewards": values_of(rng, Space(kind="box", dtype="float64", size=1), length)[:, 0],
        }
        ends = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
        made = make_episode(number * 3, length, policy_outputs=outputs, **values)
        episodes.append(
            replace(made, terminated=ends[0], truncated=ends[1], seed=draw(st.none() | st.integers(0, 2**62)))
        )
    return draft, episodes


def space_of(dtypes: Sequence[str]) -> st.SearchStrategy[Space]:
    boxes = st.builds(Space, kind=st.just("box"), dtype=st.sampled_from(dtypes), size=st.integers(1, 3))
    ids = st.builds(
        Space,
        kind=st.just("discrete"),
        dtype=st.just("int64"),
        size=st.just(1),
        n=st.integers(1, 4),
        start=st.integers(-2, 2),
    )
    return boxes | ids


def values_of(rng: np.random.Generator, space: Space, count: int) -> np.ndarray:
    if space.is_discrete:
        return rng.integers(space.start, space.start + (space.n or 1), count)
    kind = np.dtype(space.dtype)
    if kind.kind == "f":
        odd = np.array([*ODD, 1.0, 3.0, 1e22], np.float64)
        with np.errstate(over="ignore"):
            values = rng.choice(odd, (count, space.size)).astype(kind)
        return np.where(np.isfinite(values), values, kind.type(2))
    edges = np.iinfo(kind)
    return rng.choice(np.array([edges.min, 0, 1, edges.max], kind), (count, space.size))


@pytest.mark.slow
@settings(max_examples=full_or(16, 3), deadline=None, derandomize=True)
@given(made=datasets())
def test_whatever_can_be_collected_comes_back_from_every_format(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory, made: tuple[ManifestDraft, list[Episode]]
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    store = Store.open(shutil.copytree(empty_store, folder / "store"))
    write(store, *made)
    for format_ in FORMATS:
        export_dataset(store, folder / ENDINGS[format_], format_)
        back = take_in(store, folder / ENDINGS[format_], dataset_id=format_)
        assert all(same(a, b) for a, b in zip(made[1], iterate_episodes(store, format_), strict=True))
        assert kept(back) == kept(read_manifest(store, "d1"))


@pytest.mark.slow
def test_minari_itself_loads_the_export(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = discrete(store)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "trajnote").mkdir()
    export_dataset(store, tmp_path / "trajnote" / "d1-v0", "minari", runs=["other"])
    dataset = minari.load_dataset("trajnote/d1-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 12)
    assert dataset.env_spec is not None
    assert (dataset.env_spec.id, dataset.env_spec.kwargs) == ("CartPole-v1", {"sutton_barto_reward": True})
    for theirs, ours in zip(dataset.iterate_episodes(), episodes, strict=True):
        assert theirs.observations.tobytes() == ours.observations.tobytes()
        assert theirs.rewards.tobytes() == ours.rewards.tobytes()
        assert (theirs.terminations[-1], theirs.truncations[-1]) == (ours.terminated, ours.truncated)
    notes = [json.loads(text) for text in dataset[0].infos["annotations"]]
    assert [[entry["run_id"] for entry in at_step] for at_step in notes] == [[], ["other"], [], [], []]


@pytest.mark.slow
def test_a_dataset_that_minari_made_comes_in_with_its_environment(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    observations = np.arange(16, dtype=np.float32).reshape(4, 4) / 3
    ends = [False, False, True]
    parts = {"observations": observations, "actions": np.array([0, 1, 1]), "rewards": [1.0, 1.0, 0.1]}
    buffers = [
        EpisodeBuffer(seed=3, terminations=ends, truncations=[False] * 3, **parts),
        EpisodeBuffer(terminations=[False] * 3, truncations=[False] * 3, **parts),
    ]
    env = gymnasium.make("CartPole-v1", sutton_barto_reward=True)
    minari.create_dataset_from_buffers(
        "own/cart-v3", buffers, env=env, algorithm_name="hand", author="a", author_email="a@b", code_permalink="c"
    )
    report = ImportReport()
    manifest = take_in(store, tmp_path / "own" / "cart-v3", report=report)
    assert (manifest.env_id, manifest.policy) == ("CartPole-v1", "hand")
    assert manifest.env_kwargs == {"sutton_barto_reward": True}
    assert manifest.component_names[2] == "o2"  # the packaged card speaks of the other reward
    assert manifest.versions["minari_dataset"] == "own/cart-v3"
    episodes = list(iterate_episodes(store, manifest.dataset_id))
    assert [(episode.seed, episode.terminated, episode.truncated) for episode in episodes] == [
        (3, True, False),
        (None, False, True),
    ]
    assert all(episode.observations.tobytes() == observations.tobytes() for episode in episodes)
    assert report == ImportReport(stopped=1)


def test_a_folder_cannot_have_its_environment_made_which_would_run_what_it_names(store: Store, tmp_path: Path) -> None:
    narrow(store)
    export_dataset(store, tmp_path / "out", "minari")
    metadata = tmp_path / "out" / "data" / "metadata.json"
    told = json.loads(metadata.read_text())
    spec = {**json.loads(gymnasium.spec("CartPole-v1").to_json()), "entry_point": "os:mkdir"}
    spec["kwargs"] = {"path": str(tmp_path / "made")}
    del told["action_space"]
    metadata.write_text(json.dumps({**told, "env_spec": json.dumps(spec)}))
    with pytest.raises(BadInput, match="has no action_space"):
        take_in(store, tmp_path / "out")
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_d3rlpy_itself_loads_the_export(store: Store, tmp_path: Path) -> None:
    episodes = narrow(store) and discrete(Store.create(tmp_path / "other"))
    export_dataset(Store.open(tmp_path / "other"), tmp_path / "out.h5", "d3rlpy", with_labels=True)
    with (tmp_path / "out.h5").open("rb") as file:
        buffer = ReplayBuffer.load(file, InfiniteBuffer())
    assert buffer.dataset_info.action_size == 2
    assert [len(episode) for episode in buffer.episodes] == [4, 4, 4]
    for theirs, ours in zip(buffer.episodes, episodes, strict=True):
        assert theirs.observations.tobytes() == ours.observations[:-1].tobytes()
        assert theirs.actions[:, 0].tolist() == ours.actions.tolist()
        assert theirs.rewards[:, 0].tolist() == ours.rewards.tolist()
        assert theirs.terminated == ours.terminated
    export_dataset(store, tmp_path / "narrow.h5", "d3rlpy")
    with (tmp_path / "narrow.h5").open("rb") as file:
        assert ReplayBuffer.load(file, InfiniteBuffer()).transition_count == 1


def torques(store: Store) -> list[Episode]:
    """Continuous actions that are whole numbers, as motors have them."""
    draft = make_draft(env_id=None, action_space=BOX, action_names=("push", "turn"), policy=None)
    actions = np.array([[30.0, -10.0], [0.0, 20.0], [10.0, 0.0]])
    episodes = [make_episode(number, 3, actions=actions + 10 * number) for number in range(2)]
    write(store, draft, episodes)
    return episodes


def rarely(store: Store) -> list[Episode]:
    """Three discrete actions, of which the last one never occurs."""
    draft = make_draft(action_space=SHIFTED, action_names=("left", "none", "right"))
    episodes = [make_episode(number, 3, actions=np.array([-1, 0, -1])) for number in range(2)]
    write(store, draft, episodes)
    return episodes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "wrong", "right"),
    [
        (torques, (ActionSpace.DISCRETE, 41), (ActionSpace.CONTINUOUS, 2)),
        (rarely, (ActionSpace.DISCRETE, 2), (ActionSpace.DISCRETE, 3)),
    ],
)
def test_where_d3rlpy_guesses_another_action_space_the_export_says_how_to_load_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, wrong: Any, right: Any
) -> None:
    episodes = make(store)
    done = export_dataset(store, tmp_path / "out.h5", "d3rlpy")
    with (tmp_path / "out.h5").open("rb") as file:
        guessed = ReplayBuffer.load(file, InfiniteBuffer()).dataset_info
    assert (guessed.action_space, guessed.action_size) == wrong
    assert f"takes these for {wrong[1]} discrete actions" in done.notes[0]
    monkeypatch.chdir(tmp_path)
    loaded: dict[str, Any] = {}
    exec(done.notes[1], loaded)  # the line that the command prints
    info = loaded["buffer"].dataset_info
    assert (info.action_space, info.action_size) == right
    back = take_in(store, tmp_path / "out.h5", dataset_id="back")
    assert back.action_space.kind == ("discrete" if make is rarely else "box")
    assert all(same(a, b) for a, b in zip(episodes, iterate_episodes(store, "back"), strict=True))


@pytest.mark.slow
def test_labels_stand_at_their_steps(store: Store, tmp_path: Path) -> None:
    discrete(store)
    assert export_dataset(store, tmp_path / "all.parquet", "parquet", with_labels=True).labels == 3
    assert export_dataset(store, tmp_path / "run.parquet", "parquet", runs=["run"]).labels == 2
    assert export_dataset(store, tmp_path / "none.parquet", "parquet").labels == 0
    rows = pl.read_parquet(tmp_path / "all.parquet").select("episode_id", "step", pl.col("annotations").list.len())
    assert rows.filter(pl.col("annotations") > 0).rows() == [(0, 1, 2), (5, 3, 1)]
    assert "annotations" not in pl.read_parquet(tmp_path / "none.parquet").columns
    export_dataset(store, tmp_path / "all.csv", "csv", with_labels=True)
    table = pl.read_csv(tmp_path / "all.csv")
    assert table.columns[2:6] == ["observation.x", "observation.y", "observation.z", "action"]
    assert json.loads(table["annotations"][1])[0]["rationale"] == 'a "quoted", odd\nreason'


@pytest.mark.slow
def test_nothing_is_written_where_it_cannot_be(store: Store, tmp_path: Path) -> None:
    discrete(store)
    (tmp_path / "there").mkdir()
    for format_, path, message in [
        ("parquet", tmp_path / "there", "is a folder"),
        ("minari", tmp_path / "there", "exists"),
        ("csv", tmp_path / "nowhere" / "out.csv", "There is no folder"),
    ]:
        with pytest.raises(BadInput, match=message):
            export_dataset(store, path, format_)
    with pytest.raises(BadInput, match="no annotation run 'nobody'"):
        export_dataset(store, tmp_path / "out.parquet", "parquet", runs=["nobody"])
    shard = store.dataset_dir("d1") / "steps-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    for format_ in FORMATS:
        with pytest.raises(DamagedStore, match="steps-00001"):
            export_dataset(store, tmp_path / ENDINGS[format_], format_)
    assert [item.name for item in tmp_path.iterdir()] == ["there"]


def test_bad_folders_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(BadInput, match="is not a dataset"):
        take_in(store, tmp_path)
    (tmp_path / "data" / "metadata.json").write_text("{}")
    with pytest.raises(BadInput, match="has no observation_space"):
        take_in(store, tmp_path)
    (tmp_path / "data" / "metadata.json").write_text("{broken")
    with pytest.raises(BadInput, match="is not JSON"):
        take_in(store, tmp_path)


@pytest.mark.slow
def test_the_commands_say_what_they_did(store: Store, tmp_path: Path) -> None:
    discrete(store)
    path = tmp_path / "out.csv"
    command = ["export", str(path), "--with-labels", "--store", str(store.root), "--json"]
    done = CliRunner().invoke(make_app(), command)
    assert json.loads(done.stdout) == {
        "dataset_id": "d1",
        "path": str(path),
        "format": "csv",
        "episodes": 3,
        "steps": 12,
        "labels": 3,
        "notes": [],
    }
    pl.DataFrame({"x": [0.5, 1.5, 2.5], "a": [0, 1, 0], "r": [1.0, 2.0, 3.0]}).write_csv(tmp_path / "plain.csv")
    columns = [text for name in ("observation=x", "action=a", "reward=r") for text in ("--column", name)]
    done = CliRunner().invoke(make_app(), ["import", str(tmp_path / "plain.csv"), *columns, "--store", str(store.root)])
    assert done.stdout.splitlines()[0].endswith(f": 1 episodes, 2 steps in {store.root}")
    assert (
        "episodes truncated: the observation after their last step is not in the file, so it was dropped: 1"
        in done.stdout
    )
