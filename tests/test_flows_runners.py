"""Runners: threads, processes, Dask and Ray give the same bits as one process, and a wrong setting is explained."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Generator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_out import die, fail, overlap, where
from toy_environment import REACH, gather_toys, make_baseline, save_folder, small_config, write_labels
from typer.testing import CliRunner

import flows.runtime.processes
from annotate.importing.labels import import_annotations
from flows.cli import make_app
from flows.datasets.collection import CollectConfig, collect
from flows.deployment.night import run_night
from flows.deployment.settings import CollectPlan, DeploymentConfig
from flows.labelling.label_replays import ReplayConfig, replay_labels
from flows.refinement.arms import ArmDraw, Material, train_draws
from flows.runtime.processes import (
    PROCESSES,
    Runner,
    are_waiting,
    chosen_runner,
    parallel_map,
    parse_runner,
    running_on,
    shutdown_workers,
    start_workers,
    workers_if_chosen,
)
from flows.simulation.trust import Named
from flows.simulation.workers import play_policies
from refine.labels.labels import labels_from_annotations
from storage.annotations.annotations import load_annotations, load_label_replays
from storage.datasets.reader import read_steps
from storage.errors import BadInput, Prerequisite, TrajnoteError
from storage.schema import Manifest
from storage.store import Store

POLICIES = [make_baseline(REACH), make_baseline(REACH, "tanh")]
DRAWS = [ArmDraw("labels", 1), ArmDraw("no_labels", 1)]


def needs(package: str) -> Any:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"the extra with {package} is not installed")


RUNNERS = [
    "threads",
    "processes",
    pytest.param("dask", marks=needs("distributed")),
    pytest.param("ray", marks=needs("ray")),
]


@pytest.fixture(autouse=True)
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Every runner has two workers, wherever the tests run, and none outlives its test."""
    monkeypatch.delenv("TRAJNOTE_RUNNER", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    monkeypatch.setattr(flows.runtime.processes, "core_count", lambda: 2)
    yield
    flows.runtime.processes.shutdown_workers()


class World:
    """A store with a dataset and labels, and all that is shared out over it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.create(folder / "store")
        self.manifest = gather_toys(self.store, folder, REACH)
        labels = write_labels(self.store, self.manifest.dataset_id, folder / "labels.jsonl", env_id=REACH)
        import_annotations(self.store, labels)
        self.folder = folder

    def collect(self, into: Path) -> Manifest:
        policy = save_folder(POLICIES[0], self.folder / "policy")
        config = CollectConfig(env_id=REACH, policy=f"policy:{policy}", mode="sampled", episodes=21, seed=90)
        return collect(Store.create(into), config, shard_bytes=1_000)

    def material(self) -> Material:
        steps = read_steps(self.store, self.manifest.dataset_id)
        notes = load_annotations(self.store, self.manifest.dataset_id)
        labels = labels_from_annotations(notes, steps, self.manifest.action_space)
        recipe = small_config(snapshots=(3, 6)).refine.completed(self.manifest.action_space)
        return Material(self.store.root, self.manifest.dataset_id, labels, POLICIES[0], recipe)

    def evidence(self, into: Path, workers: int | None) -> dict[str, Any]:
        """Hashes and numbers of what collecting, playing, training and replaying give."""
        made = self.collect(into)
        trained = parallel_map(partial(train_draws, self.material()), [[draw] for draw in DRAWS], workers)
        returns = list(play_policies(REACH, {}, POLICIES, range(20), "sampled", workers))
        replays = replay_labels(self.store, self.manifest.dataset_id, ReplayConfig(limit=20, continuations=2))
        measured = [asdict(row) for row in load_label_replays(self.store, self.manifest.dataset_id)]
        with self.store.catalog.write() as con:
            con.execute("DELETE FROM label_replays")
        return {
            "shards": [shard.sha256 for shard in made.shards],
            "returns": [row.tobytes() for row in returns],
            "snapshots": [[snapshot.policy.sha256 for snapshot in found] for [found] in trained],
            "replays": sorted(((r["annotation_id"], r["advantages"]) for r in measured), key=str),
            "replayed": asdict(replays),
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alone(world: World) -> dict[str, Any]:
    """What one process finds."""
    return world.evidence(world.folder / "alone", workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS)
def test_every_runner_collects_plays_trains_and_replays_the_same_bits_as_one_process(
    world: World, alone: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    with running_on(kind):
        found = world.evidence(tmp_path / "store", workers=None)
    assert len(alone["shards"]) > 3
    assert len({sha for draw in alone["snapshots"] for sha in draw}) == 4
    assert alone["replayed"]["replayed"] == 20
    assert found == alone


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS)
def test_results_keep_their_order_come_from_the_runners_own_workers_and_errors_arrive_as_themselves(kind: str) -> None:
    found = list(parallel_map(where, range(30), runner=Runner(kind), threadsafe=True))
    assert [item for item, *_ in found] == list(range(30))
    assert {process == os.getpid() for _, process, _ in found} == {kind == "threads"}
    assert threading.get_ident() not in {thread for *_, thread in found} or kind != "threads"
    with pytest.raises(BadInput, match=r"Three is not allowed\. Take another one\."):
        list(parallel_map(fail, range(9), runner=Runner(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS[1:])
def test_a_worker_that_dies_again_and_again_is_told_in_words(kind: str) -> None:
    with pytest.raises(TrajnoteError, match=r"--workers 1"):
        list(parallel_map(die, [1, 2], runner=Runner(kind)))


def test_threads_do_work_that_needs_its_process_for_itself_one_at_a_time() -> None:
    assert list(parallel_map(overlap, range(4), runner=Runner("threads"))) == [1] * 4
    assert max(parallel_map(overlap, range(4), runner=Runner("threads"), threadsafe=True)) == 2


def test_only_a_few_items_for_each_worker_are_under_way_at_once() -> None:
    taken: list[int] = []

    class Items(list[int]):
        def __iter__(self) -> Generator[int]:
            for item in range(len(self)):
                taken.append(item)
                yield item

    results = parallel_map(abs, Items(range(1_000)), runner=Runner("threads"), threadsafe=True)
    assert next(results) == 0
    assert len(taken) == 4 * 2 + 1
    results.close()
    assert len(taken) == 9


@pytest.mark.parametrize(
    ("text", "runner"),
    [
        ("processes", PROCESSES),
        (" threads ", Runner("threads")),
        ("dask:tcp://10.0.0.1:8786", Runner("dask", "tcp://10.0.0.1:8786")),
        ("ray:auto", Runner("ray", "auto")),
    ],
)
def test_a_setting_names_a_runner_and_perhaps_a_cluster(text: str, runner: Runner) -> None:
    assert parse_runner(text) == runner


@pytest.mark.parametrize("text", ["spark", "dask:", "threads:4", "Dask", ":", "processes:2"])
def test_any_other_setting_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadInput, match=r"Unknown runner .* may be processes, threads, dask, dask:ADDRESS, ray"):
        parse_runner(text)


def test_the_variable_wins_over_the_settings_file_and_nothing_is_chosen_without_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (chosen_runner(), workers_if_chosen()) == (None, 1)
    with running_on("threads"):
        assert (chosen_runner(), workers_if_chosen()) == (Runner("threads"), None)
        with running_on(None):
            assert chosen_runner() == Runner("threads")
        monkeypatch.setenv("TRAJNOTE_RUNNER", "ray")
        assert chosen_runner() == Runner("ray")
    monkeypatch.setenv("TRAJNOTE_RUNNER", "")
    assert chosen_runner() is None


@pytest.mark.slow
def test_a_night_runs_where_its_deployment_says(store: Store) -> None:
    seen: set[Runner | None] = set()
    plan = CollectPlan(policy=Named("random"), episodes=2)
    config = DeploymentConfig(env_id=REACH, collect=plan, runner="threads")
    with pytest.raises(TrajnoteError):  # after collecting: the toy has no card
        run_night(store, "a", config, lambda *progress: seen.add(chosen_runner()))
    assert (seen, chosen_runner()) == ({Runner("threads")}, None)


@pytest.mark.parametrize(("kind", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_runner_whose_extra_is_missing_says_how_to_install_it(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(Prerequisite, match=rf"needs the package {package}.*pip install 'trajnote\[{kind}\]'"):
        list(parallel_map(where, range(2), runner=Runner(kind)))


@pytest.mark.parametrize("kind", [pytest.param("ray", marks=needs("ray"))])
def test_a_cluster_that_nobody_runs_is_told_in_words(kind: str) -> None:
    with pytest.raises(TrajnoteError, match=r"The Ray cluster at 127\.0\.0\.1:1 cannot be reached"):
        list(parallel_map(where, range(2), runner=Runner(kind, "127.0.0.1:1")))


@pytest.mark.slow
def test_a_command_refuses_a_runner_that_does_not_exist_before_it_writes_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJNOTE_RUNNER", "spark")
    options = ["--env", "CartPole-v1", "--policy", "random", "--episodes", "2", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(make_app(), ["collect", *options])
    assert isinstance(done.exception, BadInput)
    assert not list((tmp_path / "store" / "rollouts").glob("cartpole*"))


def test_no_items_start_no_workers() -> None:
    assert list(parallel_map(where, [], runner=Runner("dask", "tcp://127.0.0.1:1"))) == []
    assert np.array_equal(list(play_policies(REACH, {}, [], range(3))), [])


def test_workers_that_were_started_early_are_those_that_work() -> None:
    shutdown_workers()
    start_workers(1, "flows.simulation.workers")
    assert not are_waiting(1)  # one works in this process
    start_workers(2, "flows.simulation.workers")
    assert are_waiting(2)
    assert list(parallel_map(abs, [-1, -2, -3], 2)) == [1, 2, 3]
    assert are_waiting(2)
    shutdown_workers()
