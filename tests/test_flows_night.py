"""Nights of a deployment: each does only what is new, twice is once, a killed one is finished by the next."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from soak import every
from store_state import counts_of, state_of
from toy_datasets import make_draft, make_episode, write
from toy_environment import CARD, TOY, gather_toys, small_config, write_answers

from flows.datasets import collection as collecting
from flows.datasets.collection import CollectConfig, gather
from flows.deployment import intake as memories
from flows.deployment import night as nights
from flows.deployment.intake import MEMORY, take_in_new
from flows.deployment.night import Night, gate_of_night, run_night
from flows.deployment.settings import DeploymentConfig
from flows.refinement.comparison import GateConfig
from flows.simulation.fingerprint import Fingerprint
from refine.evaluation.racing import share_over_nights
from storage.catalog import connection
from storage.errors import BadInput, Prerequisite, ProviderFailed
from storage.policies.deployments import (
    AlreadyRunning,
    Decision,
    deployment_lock,
    list_decisions,
    list_in_force,
    list_intakes,
)
from storage.schema import Space
from storage.store import Store

TESTS = Path(__file__).parent
BOX2 = Space(kind="box", dtype="float32", size=2)
COMPASS = Space(kind="discrete", dtype="int64", size=1, n=4)
GATE = {"method": "full", "select": 4, "accept": 16, "report": 10, "placebo_draws": 2}
PROGRAM = """
import sys
from pathlib import Path
from flows.deployment.night import run_night
from flows.deployment.settings import DeploymentConfig
from storage.store import Store
config = DeploymentConfig.model_validate_json(Path(sys.argv[1]).read_text())
run_night(Store.create(config.store), "toy", config)
"""


@dataclass(frozen=True)
class World:
    """A folder with an empty inbox, drops for it, and recorded answers about all of them."""

    folder: Path

    def config(self, **changes: Any) -> DeploymentConfig:
        fields: dict[str, Any] = {
            "store": self.folder / "store",
            "inbox": self.folder / "inbox",
            "env_id": TOY,
            "refine_after": 90,
            "report": False,
            "label": {
                "provider": "recorded",
                "answers": self.folder / "answers",
                "card": str(self.folder / "card.toml"),
                "annotate": {"model": "toy"},
            },
            "improve": small_config(gate=GATE, snapshots=(40,)).model_dump(),
        }
        return DeploymentConfig.model_validate(fields | changes)

    def drop(self, number: int) -> None:
        source = self.folder / "drops" / str(number)
        shutil.copytree(source, self.folder / "inbox" / str(number))

    def run(self, **changes: Any) -> Night:
        config = self.config(**changes)
        return run_night(Store.create(config.store), "toy", config)

    @property
    def store(self) -> Store:
        return Store.open(self.folder / "store")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nights")
    (folder / "card.toml").write_text(CARD)
    for name in ("inbox", "drops", "answers"):
        (folder / name).mkdir()
    elsewhere = Store.create(folder / "elsewhere")
    for number in range(3):
        made = gather_toys(elsewhere, folder, card=str(folder / "card.toml"), seed=100 * number)
        shutil.copytree(elsewhere.dataset_dir(made.dataset_id), folder / "drops" / str(number))
        write_answers(elsewhere, made.dataset_id, folder / "card.toml", folder / "answers" / f"{number}.jsonl")
    return folder


@pytest.fixture
def world(template: Path, tmp_path: Path) -> World:
    folder = shutil.copytree(template, tmp_path / "world")
    for manifest in folder.glob("drops/*/manifest.json"):  # their baseline is where it was
        assert str(template) in manifest.read_text()
    return World(folder)


@pytest.mark.slow
def test_three_nights_over_a_growing_inbox_ask_only_what_is_new_and_promote_only_what_is_better(world: World) -> None:
    world.drop(0)
    first = world.run()
    assert (len(first.took_in), first.asked, first.answered, first.new_labels) == (1, 12, 12, 96)
    assert first.promoted
    assert first.policy_id
    assert first.policy_id.startswith("refined-")

    same = world.run()
    assert (same.took_in, same.asked, same.new_labels, same.comparison_id) == ([], 0, 0, None)
    assert same.decision == "kept: 0 new labels since the last refinement; 90 are needed for another one"
    assert same.policy_id == first.policy_id

    world.drop(1)
    second = world.run(refine_after=97)
    assert (second.asked, second.new_labels, second.labels, second.comparison_id) == (12, 96, 192, None)
    world.drop(2)
    third = world.run()
    assert (third.asked, third.labels) == (12, 288)
    decisions = list_decisions(world.store, "toy")
    assert [decision.labels for decision in decisions] == [96, 288]
    assert decisions[1].previous_id == first.policy_id
    assert third.policy_id == decisions[1].policy_id
    (in_force,) = list_in_force(world.store)
    assert (in_force.policy_id, in_force.decisions) == (third.policy_id, 2)
    link = world.folder / "store" / "deployments" / "toy" / "current"
    assert link.resolve() == world.store.policy_dir(third.policy_id or "")
    assert (link / "policy.json").is_file()


@pytest.mark.slow
def test_a_rejected_refinement_keeps_what_was_in_force_and_the_next_gate_has_seeds_of_its_own(world: World) -> None:
    world.drop(0)
    first = world.run()
    world.drop(1)
    assert world.run(improve=small_config(gate=GATE, snapshots=(1,)).model_dump()).policy_id == first.policy_id
    kept = list_decisions(world.store, "toy")[1]
    with world.store.catalog.read() as con:
        rates = con.execute("SELECT DISTINCT (config -> 'gate' ->> 'error_rate')::DOUBLE FROM refinements").fetchall()
    assert rates == [(share_over_nights(0.05, 0),)]  # the first one promoted, so it has used nothing
    assert (kept.promoted, kept.policy_id, kept.previous_id) == (False, first.policy_id, first.policy_id)
    with world.store.catalog.read() as con:
        rows = con.execute(
            """SELECT purpose, min(first_seed), max(first_seed + episodes) FROM evaluations
               GROUP BY purpose, first_seed >= 1_000_030 ORDER BY 2"""
        ).fetchall()
    assert rows == [
        ("select", 1_000_000, 1_000_004),
        ("accept", 1_000_004, 1_000_020),
        ("report", 1_000_020, 1_000_030),
        ("select", 1_000_030, 1_000_034),
        ("accept", 1_000_034, 1_000_050),
        ("report", 1_000_050, 1_000_060),
    ]


def test_a_night_that_keeps_the_policy_in_force_leaves_less_of_the_error_rate_to_the_next() -> None:
    def decided(promoted: bool) -> Decision:
        return Decision("c", "p", None, promoted, 1, "")

    gate = GateConfig(first_seed=5)
    first = gate_of_night(gate, [])
    assert (first.first_seed, first.error_rate) == (None, share_over_nights(0.05, 0))
    assert first.seeds.accept == range(1_000_012, 1_000_272)
    assert gate_of_night(gate, [decided(True)] * 3) == first
    third = gate_of_night(gate, [decided(False), decided(True), decided(False)])
    assert third.error_rate == pytest.approx(0.05 * (3**-0.5 - 4**-0.5))
    assert len(gate_of_night(GateConfig(accept=50), [decided(False)]).seeds.accept) == 50  # the user's limit stays


@pytest.mark.slow
def test_a_bad_drop_is_told_and_keeps_nobody_out_and_an_unfinished_one_waits(world: World) -> None:
    (world.folder / "inbox" / "bad.parquet").write_bytes(b"no parquet")
    (world.folder / "inbox" / "half.parquet.tmp").write_bytes(b"PAR1")
    (world.folder / "inbox" / ".hidden").write_bytes(b"PAR1")
    (world.folder / "inbox" / "rows.csv.manifest.json").write_bytes(b"{}")
    world.drop(0)
    night = world.run(refine_after=1000)
    assert list(night.refused) == ["bad.parquet"]
    assert "bad.parquet" in night.refused["bad.parquet"]
    assert night.new_labels == 96
    shutil.copytree(world.folder / "inbox" / "0", world.folder / "inbox" / "another name")
    again = world.run(refine_after=1000)
    assert (again.took_in, again.labels) == ([], 96)  # the same content
    shutil.rmtree(world.folder / "inbox")
    with pytest.raises(Prerequisite, match="There is no folder"):
        world.run()


def test_what_an_import_gave_up_and_left_out_is_noted(store: Store, tmp_path: Path) -> None:
    rows = "".join(f"0,{step},{step}.5,1,0.5,false,false,9\n" for step in range(3))
    (tmp_path / "a.csv").write_text("episode_id,step,observation.x,action,reward,terminated,truncated,battery\n" + rows)
    config = DeploymentConfig.model_validate({"store": store.root, "inbox": tmp_path, "label": {"provider": "file"}})
    found = take_in_new(store, "toy", config)
    assert len(found.datasets) == 1
    assert "a.csv: columns left out: battery" in found.notes
    assert "a.csv: rows read: 3, kept: 2, dropped: 1" in found.notes
    assert take_in_new(store, "toy", config).notes == []


@pytest.mark.slow
def test_episodes_are_collected_once_in_a_period_each_with_seeds_of_its_own(world: World) -> None:
    plan = {"policy": f"policy:{world.folder / 'baseline'}", "episodes": 3, "per": "week"}
    asked = {"provider": "file", "answers": world.folder / "replies", "card": str(world.folder / "card.toml")}
    silent: dict[str, Any] = {"inbox": None, "collect": plan, "label": asked}
    first = world.run(**silent)
    assert (first.took_in, world.run(**silent).took_in) == (["toy-00000"], [])
    with world.store.catalog.write() as con:  # a week passes
        con.execute("UPDATE intakes SET created_at = created_at - INTERVAL 8 DAY")
    assert world.run(**silent).took_in == ["toy-00001"]
    with world.store.catalog.read() as con:
        seeds = con.execute("SELECT seed FROM episodes ORDER BY seed").fetchall()
    assert seeds == [(seed,) for seed in range(6)]
    requests = world.folder / "store" / "deployments" / "toy" / "requests"
    assert [len(path.read_text().splitlines()) for path in sorted(requests.iterdir())] == [3, 3]
    assert first.waiting == 3


@pytest.mark.slow
def test_a_night_that_was_killed_before_the_code_was_edited_collects_anew_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, card = f"policy:{world.folder / 'baseline'}", str(world.folder / "card.toml")
    asked = {"provider": "file", "answers": world.folder / "replies", "card": card}
    with monkeypatch.context() as before:
        edited = Fingerprint({"gymnasium": "1"}, {"toy_environment": "older"})
        before.setattr(collecting, "take_fingerprint", lambda *_: edited)
        killed = CollectConfig(env_id=TOY, policy=policy, episodes=3, mode="sampled", dataset="toy-00000")
        gather(Store.create(world.folder / "store"), killed, card=card)
    night = world.run(inbox=None, collect={"policy": policy, "episodes": 3, "per": "week"}, label=asked)
    (taken,) = night.took_in
    assert taken.startswith("toy-00000-")
    assert any(note.startswith(f"The dataset toy-00000 was made in another {TOY} (") for note in night.notes)
    assert "toy_environment has changed" in " ".join(night.notes)


@pytest.mark.slow
def test_labels_of_anybody_count_and_datasets_are_found_by_the_beginning_of_their_names(world: World) -> None:
    store = Store.create(world.folder / "store")
    gather_toys(store, world.folder, card=str(world.folder / "card.toml"), seed=0)
    night = world.run(inbox=None, datasets=("toy-env",))
    assert (len(night.took_in), night.labels, night.promoted) == (1, 96, True)
    assert [origin.split(":")[0] for origin in list_intakes(store, "toy")] == ["dataset"]


@pytest.mark.slow
def test_a_second_run_of_the_same_deployment_ends_at_once_with_words_and_a_code_of_its_own(world: World) -> None:
    store = Store.create(world.folder / "store")
    with deployment_lock(store, "toy") as killed:
        assert killed is None
        with pytest.raises(AlreadyRunning, match="The deployment toy is already running, since 20") as refused:
            world.run()
        assert refused.value.exit_code == 7
        with deployment_lock(store, "another"):
            pass
    assert world.run(refine_after=1000).took_in == []


@pytest.mark.slow
def test_a_night_whose_labeller_fails_goes_on_on_the_next_evening(world: World, monkeypatch: Any) -> None:
    def fail(*arguments: object) -> None:
        raise ProviderFailed("The server cannot be reached.", "Run it again.")

    world.drop(0)
    with monkeypatch.context() as patch:
        patch.setattr(nights, "label", fail)
        with pytest.raises(ProviderFailed):
            world.run()
    night = world.run(refine_after=1000)
    assert (night.took_in, night.new_labels, night.killed) == ([], 96, None)


class Yard:
    """A store of small datasets, and answers to all that is asked about them, each in a file of its own."""

    def __init__(self, folder: Path, datasets: int) -> None:
        self.store, self.card = Store.create(folder / "store"), folder / "card.toml"
        self.answers = folder / "answers"
        self.answers.mkdir()
        self.card.write_text(CARD.replace("toy_environment:Toy-v0", "Elsewhere-v0"))
        self.datasets = 0
        self.add(datasets)

    def add(self, datasets: int) -> None:
        """More of them."""
        for number in range(self.datasets, self.datasets + datasets):
            name, rng = f"made-{number:03}", np.random.default_rng(number)
            draft = make_draft(name, env_id="Elsewhere-v0", component_names=("x", "y"), observation_space=BOX2)
            draft = draft.model_copy(
                update={"action_space": COMPASS, "action_names": ("east", "north", "west", "south")}
            )
            observations = rng.uniform(-1, 1, (9, 2)).astype(np.float32)
            write(self.store, draft, [make_episode(0, 8, observations=observations)])
            write_answers(self.store, name, self.card, self.answers / f"{name}.jsonl")
        self.datasets += datasets

    def run(self, **label: Any) -> Night:
        """A night."""
        fields: dict[str, Any] = {
            "store": self.store.root,
            "datasets": ("made-",),
            "refine_after": 10**6,
            "label": {"provider": "file", "answers": self.answers, "card": str(self.card), **label},
        }
        fields["label"].setdefault("annotate", {"model": "toy"})
        return run_night(self.store, "toy", DeploymentConfig.model_validate(fields))


_heard: list[str] = []
_is_heard = [False]
sys.addaudithook(lambda event, found: _heard.append(str(found[0])) if event == "open" and _is_heard[0] else None)


def weigh(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The connections that a night over one new dataset opens, and the files of the store."""
    yard.add(1)
    connections: list[bool] = []
    attach = connection.Instance.attach

    def count(instance: connection.Instance, *, read_only: bool) -> None:
        connections.append(read_only)
        attach(instance, read_only=read_only)

    with monkeypatch.context() as patch:
        patch.setattr(connection.Instance, "attach", count)
        _heard.clear()
        _is_heard[0] = True
        night = yard.run()
        _is_heard[0] = False
    assert (len(night.took_in), night.asked, night.new_labels) == (1, 1, 8)
    return len(connections), sum(str(yard.store.root) in name for name in _heard)


@pytest.mark.slow
def test_a_night_opens_as_many_files_and_connections_over_many_old_datasets_as_over_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[tuple[int, int]] = []
    for name, datasets in (("few", 1), ("many", 6)):
        (tmp_path / name).mkdir()
        yard = Yard(tmp_path / name, datasets)
        assert yard.run().asked == datasets
        costs.append(weigh(yard, monkeypatch))
    assert costs[0] == costs[1]
    assert costs[0][0] <= 14


@pytest.mark.slow
def test_a_settled_dataset_is_asked_again_when_what_is_asked_or_what_was_answered_changes(tmp_path: Path) -> None:
    yard = Yard(tmp_path, 2)
    assert (yard.run().asked, yard.run().asked) == (2, 0)
    memory = yard.store.deployment_dir("toy") / MEMORY
    assert set(json.loads(memory.read_bytes())["settled"]) == {"made-000", "made-001"}

    answers = yard.answers / "made-001.jsonl"
    answers.write_text(answers.read_text().replace('\\"east\\"', '\\"west\\"') + "\n")
    corrected = yard.run()
    assert (corrected.asked, corrected.new_labels) == (1, 0)  # a corrected answer takes the place of the first one

    with pytest.raises(BadInput, match="does not ask"):  # it was looked at, and its answers are another model's
        yard.run(annotate={"model": "other"})
    memory.write_text("[")
    assert yard.run().asked == 0
    assert set(json.loads(memory.read_bytes())["settled"]) == {"made-000", "made-001"}
    with yard.store.catalog.write() as con:
        con.execute(
            "UPDATE requests SET state = 'pending' WHERE request_id IN (SELECT any_value(request_id) FROM requests)"
        )
    assert yard.run().waiting == 1


@pytest.mark.slow
def test_an_inbox_is_read_once_and_again_where_a_file_has_changed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.drop(0)
    manifest = world.folder / "inbox" / "0" / "manifest.json"
    os.utime(manifest, (1, 1))
    hashed: list[Path] = []
    hash_file = memories.sha256_file
    monkeypatch.setattr(memories, "sha256_file", lambda path: hashed.append(path) or hash_file(path))
    for touched in (1, 0, 1):
        hashed.clear()
        world.run(refine_after=10**6)
        assert hashed.count(manifest) == touched
        if not touched:
            os.utime(manifest, (2, 2))


QUICK = small_config(gate={"select": 2, "accept": 10, "report": 10, "placebo_draws": 2}, snapshots=(2,)).model_dump()
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "taken in": lambda store: any(store.glob("rollouts/toy*")),
    "answers landed": lambda store: any(store.glob("responses/*/*")),
    "refined": lambda store: any(store.glob("policies/*/record.json")),
}


@pytest.fixture(scope="module")
def smooth(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, int]]:
    """What a night leaves that nobody disturbs."""
    calm = World(shutil.copytree(template, tmp_path_factory.mktemp("calm") / "world"))
    calm.drop(0)
    calm.run(improve=QUICK)
    return comparable(calm.store), counts_of(calm.store)


@pytest.mark.slow
@pytest.mark.parametrize("moment", every(["refined", "answers landed", "taken in"], 3))
def test_a_night_killed_anywhere_is_finished_by_the_next_one(
    world: World, moment: str, smooth: tuple[str, dict[str, int]]
) -> None:
    world.drop(0)
    config = world.config(improve=QUICK)
    (world.folder / "config.json").write_text(config.model_dump_json())
    kill_when(world.folder / "config.json", lambda: MOMENTS[moment](config.store))
    again = run_night(Store.open(config.store), "toy", config)
    assert again.killed is not None
    assert again.killed.startswith("20")
    assert (comparable(world.store), counts_of(world.store)) == smooth
    same = run_night(Store.open(config.store), "toy", config)
    assert (same.killed, same.comparison_id) == (None, None)


def comparable(store: Store) -> str:
    """Everything in a store, wherever it lies."""
    return json.dumps(state_of(store.root), default=str).replace(str(store.root.parent), "")


def kill_when(config: Path, moment: Callable[[], bool]) -> None:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(config)], env=environment)
    try:
        while process.poll() is None and not moment():
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
