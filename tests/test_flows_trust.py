"""Nobody is let in: what came with data names policies and environments, and none of them is loaded or imported.

Every payload leaves a file where it runs. What the user names, or has collected, is loaded as before.
"""

from __future__ import annotations

import ast
import base64
import itertools
import json
import pickle
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import typer
from soak import SOAK
from toy_environment import TOY, gather_toys

from annotate.importing.labels import import_annotations
from flows import cli
from flows.datasets.recordings import export_dataset, take_in
from flows.deployment.night import run_night
from flows.deployment.settings import DeploymentConfig
from flows.policies.loading import find_baseline, load_policy
from flows.refinement import estimation
from flows.refinement.comparison import ComparisonPlan
from flows.simulation.environments import make_environment
from flows.simulation.frames import FrameRenderer
from flows.simulation.trust import Named, find_home, own_policy
from refine.policies.mlp import MlpPolicy
from storage.datasets.reader import read_manifest, read_steps
from storage.errors import BadInput, Prerequisite, TrajnoteError
from storage.policies.policies import save_policy
from storage.store import MANIFEST, Store

ROOT = Path(__file__).parent.parent
Say = Callable[[list[str]], str]
MODULE = """
from pathlib import Path
Path({canary!r}).touch()
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("Planted-v0", CartPoleEnv, max_episode_steps=500)
def act(observations):
    return [0] * len(observations)
"""
CARTPOLE = "".join(
    f'[[{kind}]]\nname = "{name}"\nmeaning = "what it is"\n'
    for kind, names in (("components", ("o0", "o1", "o2", "o3")), ("actions", ("a0", "a1")))
    for name in names
)


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


class Folder:
    """What a stranger has put beside the data, and whether any of it has run."""

    def __init__(self, path: Path) -> None:
        self.path, self.canary = path, path / "canary"
        (path / "planted.py").write_text(MODULE.format(canary=str(self.canary)))
        coded = base64.b64encode(pickle.dumps(Bomb(self.canary))).decode()
        with zipfile.ZipFile(path / "planted.zip", "w") as archive:
            archive.writestr("data", json.dumps({"policy_class": {":type:": "t", ":serialized:": coded}}))
        (path / "planted.d3").write_bytes(pickle.dumps(Bomb(self.canary)))
        (path / "logs").mkdir()
        shutil.copyfile(path / "planted.d3", path / "logs" / "model_10.d3")

    @property
    def policies(self) -> dict[str, str]:
        return {
            "zip": f"sb3:PPO:{self.path / 'planted.zip'}",
            "d3": f"d3rlpy:{self.path / 'planted.d3'}",
            "folder": f"d3rlpy:{self.path / 'logs'}",
            "py": "py:planted:act",
        }

    @property
    def has_run(self) -> bool:
        return self.canary.exists()


class Planted(NamedTuple):
    """A stranger's store, and which of its claims leads to code."""

    claim: str
    folder: Folder
    store: Store


KINDS = ("zip", "d3", "folder", "py")
pytestmark = pytest.mark.usefixtures("brief_distillation")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A stranger's folder; it is the current one, and this user has not named anything yet."""
    (tmp_path / "inbox").mkdir()
    monkeypatch.setenv("TRAJNOTE_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path / "inbox")
    yield Folder(tmp_path / "inbox")
    sys.modules.pop("planted", None)
    gymnasium.registry.pop("Planted-v0", None)


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an honest dataset; a copy's manifest says whatever a stranger likes."""
    store = Store.create(tmp_path_factory.mktemp("rollouts") / "store")
    from flows.datasets.collection import CollectConfig, collect

    config = CollectConfig(env_id="CartPole-v1", policy="random", episodes=12, max_steps=12, dataset="theirs")
    return store.dataset_dir(collect(store, config).dataset_id)


def plant(rollouts: Path, folder: Folder, name: str = "theirs", **claims: Any) -> Path:
    """A dataset whose manifest makes claims, as a stranger hands it over."""
    made = shutil.copytree(rollouts, folder.path / name)
    told = json.loads((made / MANIFEST).read_text())
    (made / MANIFEST).write_text(json.dumps(told | {"dataset_id": name} | claims))
    return made


def plant_store(rollouts: Path, folder: Folder, **claims: Any) -> Store:
    """A whole store of a stranger: the dataset, labels of it, and a policy that is for it."""
    store = Store.create(folder.path / "their-store")
    take_in(store, plant(rollouts, folder, **claims))
    labels = [
        {"dataset_id": "theirs", "episode_id": episode, "step": step, "suggested_action": 0}
        for episode in range(12)
        for step in range(4)
    ]
    (folder.path / "labels.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))
    manifest = read_manifest(store, "theirs")
    bias = np.zeros(2)
    spaces = (manifest.observation_space, manifest.action_space)
    network = MlpPolicy(*spaces, (np.ones((4, 2)),), (bias,), "tanh", "logits")
    record = {"kind": "baseline", "env_id": manifest.env_id, "dataset_id": "theirs", "config": {}}
    save_policy(store, "their-policy", network.to_files(), record)
    return store


def write_card(folder: Folder, env_id: str) -> Path:
    path = folder.path / "card.toml"
    words = "".join(f'{field} = "what it is"\n' for field in ("title", "goal", "termination", "reward"))
    path.write_text(f'env_id = "{env_id}"\n{words}{CARTPOLE}')
    return path


def write_settings(folder: Folder) -> Path:
    path = folder.path / "nights.toml"
    path.write_text(
        f'store = "{folder.path / "their-store"}"\n[deployments.all]\ndatasets = ["theirs"]\nrefine_after = 1\n'
        'report = false\n[deployments.all.label]\nprovider = "file"\nanswers = "answers"\n'
        f'card = "{folder.path / "card.toml"}"\n'
    )
    return path


COMMANDS: dict[str, str] = {
    "replay": "--episode 0 --dataset theirs",
    "refine": "--dataset theirs",
    "refine --estimate": "--dataset theirs",
    "ablate": "--dataset theirs",
    "evaluate": "policy:their-policy --episodes 2 --workers 1",
    "annotations replay": "--dataset theirs --limit 2",
    "annotate plan": "--dataset theirs --card card.toml --two-stage --frames --model m",
    "annotate run": "--dataset theirs --card card.toml --provider file --export out.jsonl --two-stage --frames",
    "annotate quality": "",
    "report": "theirs --pictures 0",
    "review": "--dataset theirs --queue gold",
    "export": "out.parquet --dataset theirs",
    "policy export": "their-policy --output out.onnx",
    "store verify": "",
    "store gc": "",
    "sql": "'SELECT * FROM datasets'",
    "card check": "card.toml",
    "card show": "card.toml",
    "nightly": "--settings nights.toml",
}
"""Every command that reads a dataset, a store or a card; `{store}` is added where it has that option."""
USERS = {
    "collect": "what it plays is what its options name",
    "pipeline": "the same",
    "demo": "the same, and the shipped example",
    "import": "tested below, with every format",
    "card new": "its argument is what the user names",
    "serve": "runs nights",
    "annotate submit": "asks what `annotate run` asks",
    "annotate retry": "the same",
}
"""Commands that load only what they are given."""
READERS = {
    "init", "figures", "watch", "annotate poll", "annotate ingest", "annotate why", "annotations import",
    "rules import", "rules list", "policy current", "policy list", "store list", "store runs", "store push",
    "store pull", "store export-annotations", "card list",
}  # fmt: skip
"""Commands that read rows and never a policy or an environment."""


def try_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Its exit code; whatever it thinks of the data."""
    monkeypatch.setattr(sys, "argv", ["trajnote", *words])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return int(leaving.value.code or 0)


def words_of(command: str, store: Store) -> list[str]:
    more = [word.strip("'") for word in (COMMANDS[command].split() if command != "sql" else [COMMANDS[command]])]
    where = [] if command.startswith("card") or command == "nightly" else ["--store", str(store.root)]
    return [*command.split(), *more, *where]


def list_commands(group: Any, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        yield from list_commands(command, f"{name} ") if hasattr(command, "commands") else [before + name]


def test_every_command_is_tried_on_a_strangers_data_or_loads_only_what_it_is_given() -> None:
    known = {command.removesuffix(" --estimate") for command in COMMANDS} | USERS.keys() | READERS
    assert set(list_commands(typer.main.get_command(cli.make_app()))) == known


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_planted_policies_would_run_if_the_user_named_them(folder: Folder, rollouts: Path, kind: str) -> None:
    store = plant_store(rollouts, folder)
    manifest = read_manifest(store, "theirs")
    with suppress(TrajnoteError):
        find_baseline(store, manifest, read_steps(store, "theirs"), Named(folder.policies[kind]))
    assert folder.has_run == (kind != "zip")  # which is read only
    with suppress(TrajnoteError):
        trusted = Named(folder.policies[kind].replace("PPO", "PPO+trust"))
        find_baseline(store, manifest, read_steps(store, "theirs"), trusted)
    assert folder.has_run


def test_the_planted_environment_would_run_if_the_user_named_it(folder: Folder) -> None:
    make_environment(Named("planted:Planted-v0")).close()
    assert folder.has_run


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refinements end where they would begin to train, which is after everything was loaded."""

    def stop(*given: object) -> None:
        raise Prerequisite("It would train now.")

    monkeypatch.setattr(ComparisonPlan, "run", stop)
    monkeypatch.setattr(estimation, "train_arms", stop)
    monkeypatch.setattr("refine.training.distillation.distil", lambda steps, *spaces, **options: _Distilled(*spaces))


class _Distilled:
    """What stands for a distilled policy, without the seconds that making it takes."""

    source, agreement = "the logged actions", 1.0

    def __init__(self, *spaces: Any) -> None:
        self.policy = MlpPolicy(*spaces, (np.ones((4, 2)),), (np.zeros(2),), "tanh", "logits")


@pytest.fixture(scope="module", params=["policy", "environment"])
def planted(request: pytest.FixtureRequest, rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A stranger's store, with a card and settings that fit it."""
    folder = Folder(tmp_path_factory.mktemp("planted"))
    env_id = "planted:Planted-v0" if request.param == "environment" else "CartPole-v1"
    claims = {"source": "collect", "policy": folder.policies["zip"], "policy_sha256": "0" * 64, "env_id": env_id}
    store = plant_store(rollouts, folder, **claims)
    import_annotations(store, folder.path / "labels.jsonl")
    write_card(folder, env_id)
    write_settings(folder)
    return Planted(request.param, folder, store)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("without_training")
def test_no_command_runs_what_a_strangers_store_names(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(planted.folder.path)
    code = try_command(words_of(command, planted.store), monkeypatch)
    assert not planted.folder.has_run
    loads = {"replay", "refine", "ablate", "evaluate", "annotations replay", "card check"}
    if planted.claim == "environment" and command in loads:
        assert code == Prerequisite.exit_code


@pytest.mark.slow
def test_pictures_and_frames_are_not_taken_in_an_environment_that_came_with_the_data(
    folder: Folder, rollouts: Path, run: Say
) -> None:
    store = plant_store(rollouts, folder, env_id="planted:Planted-v0")
    with pytest.raises(Prerequisite, match="its module is not imported"):
        FrameRenderer(store, "theirs")(0, [0])
    pytest.importorskip("altair")
    run(["report", "theirs", "--pictures", "8", "--output", "page.html", "--store", str(store.root)])
    assert "There are no pictures. The dataset theirs names the environment" in Path("page.html").read_text()
    assert not folder.has_run


def export_policy(way: str, store: Store, folder: Folder, victim: Path) -> Store:
    """Bring a stranger's dataset into a store of this user."""
    if way == "copied store":
        return Store.open(shutil.copytree(store.root, victim))
    if way == "pulled store":
        from storage.remote.pull import pull_store
        from storage.remote.push import push_store

        url = (folder.path / "remote").as_uri()
        push_store(store, url)
        pull_store(victim, url)
        return Store.open(victim)
    mine = Store.create(victim)
    if way == "folder":
        take_in(mine, store.dataset_dir("theirs"))
        return mine
    path = folder.path / {"parquet": "out.parquet", "csv": "out.csv", "minari": "out", "d3rlpy": "out.h5"}[way]
    export_dataset(store, path, way)  # pyright: ignore[reportArgumentType]
    take_in(mine, path)
    return mine


WAYS = ("folder", "parquet", "csv", "minari", "d3rlpy", "pulled store", "copied store")
CLAIMS = ("zip", "environment")
CLAIMED = itertools.product(WAYS, CLAIMS) if SOAK else zip(WAYS, itertools.cycle(CLAIMS), strict=False)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "kind"), CLAIMED)
@pytest.mark.usefixtures("without_training")
def test_whichever_way_data_come_they_do_not_vouch_for_what_they_name(
    folder: Folder, rollouts: Path, tmp_path: Path, way: str, kind: str
) -> None:
    if way == "minari":
        pytest.importorskip("minari")
    claims = {"env_id": "planted:Planted-v0"} if kind == "environment" else {"policy": folder.policies["zip"]}
    store = export_policy(way, plant_store(rollouts, folder, **claims), folder, tmp_path / "mine")
    (dataset_id,) = (path.name for path in store.rollouts_dir.iterdir())
    manifest = read_manifest(store, dataset_id)
    assert own_policy(store, manifest) is None
    found = find_baseline(store, manifest, read_steps(store, dataset_id))
    if kind == "zip" and way != "d3rlpy":  # which has no place for a policy's name
        assert found.warning is not None
        assert "came with the data and is not loaded" in found.warning
    if kind == "environment" and way != "d3rlpy":
        with pytest.raises(Prerequisite, match="its module is not imported"):
            find_home(store, manifest)
        assert find_home(store, manifest, Named("planted:Planted-v0")).env_id == "planted:Planted-v0"
    assert not folder.has_run


@pytest.mark.slow
def test_a_minari_folder_of_somebody_elses_does_not_import_what_its_specification_names(
    folder: Folder, rollouts: Path, tmp_path: Path
) -> None:
    pytest.importorskip("minari")
    export_dataset(plant_store(rollouts, folder), folder.path / "out", "minari")
    path = folder.path / "out" / "data" / "metadata.json"
    told = {name: value for name, value in json.loads(path.read_text()).items() if name != "trajnote"}
    spec = json.loads(told["env_spec"]) | {"id": "planted:Planted-v0", "entry_point": "planted:CartPoleEnv"}
    path.write_text(json.dumps(told | {"env_spec": json.dumps(spec), "algorithm_name": folder.policies["zip"]}))
    store = Store.create(tmp_path / "mine")
    manifest = take_in(store, folder.path / "out")
    assert (manifest.env_id, manifest.policy) == ("planted:Planted-v0", folder.policies["zip"])
    with pytest.raises(Prerequisite, match="its module is not imported"):
        find_home(store, manifest)
    assert not folder.has_run


@pytest.fixture(scope="module")
def strangers(rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A stranger's store that nothing changes; a copy of its manifest makes other claims."""
    return plant_store(rollouts, Folder(tmp_path_factory.mktemp("strangers")))


@pytest.mark.parametrize(
    ("env_id", "env_kwargs"),
    [
        ("Hopper-v5", {"xml_file": "/etc/passwd"}),
        ("Hopper-v5", {"xml_file": "theirs.xml"}),
        ("CartPole-v1", {"render_mode": "human"}),
        ("CartPole-v1", {"additional_wrappers": [["planted:Wrapper", {}]]}),
        ("CartPole-v1", {"vector_entry_point": "planted:Vector"}),
        ("GymV26Environment-v0", {"env_id": "planted:Planted-v0"}),
        ("FrozenLake-v1", {"map_name": "../../etc"}),
        ("FrozenLake-v1", {"desc": [["S", "G"]]}),
        ("CartPole-v1", {"max_episode_steps": 1e300}),
        ("CartPole-v1", {"max_episode_steps": {"$ref": "x"}}),
    ],
)
@pytest.mark.usefixtures("folder")
def test_arguments_that_may_be_files_or_code_are_not_used(
    strangers: Store, env_id: str, env_kwargs: dict[str, Any]
) -> None:
    claimed = read_manifest(strangers, "theirs").model_copy(update={"env_id": env_id, "env_kwargs": env_kwargs})
    for named in (None, Named(env_id)):
        with pytest.raises(Prerequisite, match="may be a file or code, and is not used"):
            find_home(strangers, claimed, named)
    with pytest.raises(BadInput, match="was not named by the user"):
        make_environment(env_id, env_kwargs)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("env_id", "env_kwargs"),
    [
        ("LunarLander-v3", {"continuous": True, "gravity": -9.5, "wind_power": 15.0}),
        ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}),
        ("FrozenLake-v1", {"desc": ["SFFF", "FHFG"]}),
        ("ALE/Pong-v5", {"obs_type": "ram", "frameskip": [2, 5]}),
        ("Hopper-v5", {"healthy_z_range": [0.7, 2.0], "max_episode_steps": 100}),
        ("CartPole-v1", {"render_mode": "rgb_array"}),
    ],
)
@pytest.mark.usefixtures("folder")
def test_arguments_that_do_no_harm_are_used_as_the_data_say(
    strangers: Store, env_id: str, env_kwargs: dict[str, Any]
) -> None:
    claimed = read_manifest(strangers, "theirs").model_copy(update={"env_id": env_id, "env_kwargs": env_kwargs})
    assert find_home(strangers, claimed) == (env_id, env_kwargs)


@pytest.mark.slow
def test_a_card_that_a_manifest_names_as_its_environment_is_not_read(folder: Folder, rollouts: Path, run: Say) -> None:
    card = write_card(folder, "CartPole-v1")
    store = plant_store(rollouts, folder, env_id=str(card))
    with pytest.raises(AssertionError, match="No card for"):
        run(["annotate", "plan", "--dataset", "theirs", "--store", str(store.root)])


@pytest.mark.slow
def test_a_night_leaves_a_strangers_dataset_out_and_goes_on(folder: Folder, rollouts: Path, tmp_path: Path) -> None:
    for name, claims in (("evil", {"env_id": "planted:Planted-v0"}), ("good", {"policy": folder.policies["zip"]})):
        plant(rollouts, folder, name, **claims)
    (folder.path / "drops").mkdir()
    for name in ("evil", "good"):
        shutil.move(folder.path / name, folder.path / "drops" / name)
    (folder.path / "drops" / "trajnote.toml").write_text('[deployments.x]\ncollect = {policy = "py:planted:act"}\n')
    write_card(folder, "CartPole-v1")
    label = {"provider": "file", "answers": folder.path / "answers", "card": str(folder.path / "card.toml")}
    fields: dict[str, Any] = {"store": tmp_path / "mine", "inbox": folder.path / "drops", "label": label}
    night = run_night(Store.create(tmp_path / "mine"), "all", DeploymentConfig.model_validate(fields))
    assert sorted(night.took_in) == ["evil", "good"]
    assert list(night.refused) == ["trajnote.toml"]
    assert night.waiting == 12
    assert any(note.startswith("left out: The dataset evil names the environment") for note in night.notes)
    assert "env_id in trajnote.toml" in " ".join(night.notes)
    assert not folder.has_run


@pytest.mark.slow
def test_what_this_user_collects_is_theirs_without_naming_it_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJNOTE_STATE", str(tmp_path / "state"))
    manifest = gather_toys(store, tmp_path)
    assert find_home(store, manifest) == (TOY, {})
    assert own_policy(store, manifest) == manifest.policy
    (note,) = (tmp_path / "state" / "datasets").iterdir()
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    monkeypatch.setenv("TRAJNOTE_STATE", str(tmp_path / "another-user"))
    with pytest.raises(Prerequisite, match="its module is not imported"):
        find_home(store, manifest)
    assert own_policy(store, manifest) is None


@pytest.mark.slow
def test_without_a_place_for_notes_collecting_works_and_names_are_asked_for_later(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRAJNOTE_STATE", str(tmp_path / "file"))
    manifest = gather_toys(store, tmp_path)
    with pytest.raises(Prerequisite, match="name it with --env toy_environment:Toy-v0"):
        find_home(store, manifest)
    assert find_home(store, manifest, TOY) == (TOY, {})


@pytest.mark.slow
def test_another_environment_than_the_datasets_is_not_taken_for_it(store: Store, tmp_path: Path) -> None:
    manifest = gather_toys(store, tmp_path)
    with pytest.raises(BadInput, match="is of the environment 'toy_environment:Toy-v0', not of 'CartPole-v1'"):
        find_home(store, manifest, Named("CartPole-v1"))


@pytest.mark.slow
def test_an_import_with_the_environment_is_the_users_word_for_it(
    folder: Folder, rollouts: Path, tmp_path: Path, run: Say
) -> None:
    store = plant_store(rollouts, folder, env_id="planted:Planted-v0")
    export_dataset(store, folder.path / "out.parquet", "parquet")
    mine = ["--store", str(tmp_path / "mine")]
    run(["import", "out.parquet", "--env", "planted:Planted-v0", "--dataset", "named", *mine])
    assert folder.has_run
    assert "exact" in run(["replay", "--episode", "0", *mine])


@pytest.mark.slow
def test_a_strangers_dataset_is_played_in_the_environment_that_the_user_names(
    folder: Folder, rollouts: Path, run: Say
) -> None:
    store = plant_store(rollouts, folder, env_id="planted:Planted-v0")
    words = ["replay", "--episode", "0", "--store", str(store.root)]
    assert "exact" in run([*words, "--env", "planted:Planted-v0"])
    assert folder.has_run
    with pytest.raises(AssertionError, match="name it with --env planted:Planted-v0"):
        run(words)


def own_module(path: Path, canary: Path) -> None:
    path.mkdir(exist_ok=True)
    (path / "planted.py").write_text(MODULE.format(canary=str(canary)))


@pytest.mark.slow
@pytest.mark.usefixtures("without_training")
def test_a_module_of_the_same_name_in_another_folder_is_not_the_users(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Say
) -> None:
    own_module(tmp_path / "project", tmp_path / "own")
    monkeypatch.chdir(tmp_path / "project")
    where = ["--store", str(tmp_path / "mine")]
    made = ["--env", "planted:Planted-v0", "--policy", "py:planted:act", "--mode", "greedy", "--episodes", "2"]
    run(["collect", *made, *where])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path / "project")])
    forget()
    assert "exact" in run(["replay", "--episode", "0", *where])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path / "project")])
    forget()
    monkeypatch.chdir(folder.path)
    with pytest.raises(AssertionError, match=r"here this name leads to .*inbox/planted\.py, which is not loaded"):
        run(["replay", "--episode", "0", *where])
    store = Store.open(tmp_path / "mine")
    manifest = read_manifest(store, next(path.name for path in store.rollouts_dir.iterdir()))
    with pytest.raises(Prerequisite, match="which is not loaded"):
        own_policy(store, manifest)
    warning = find_baseline(store, manifest, read_steps(store, manifest.dataset_id)).warning
    assert str(warning).endswith("which is not loaded. --baseline py:planted:act starts from it.")
    assert not folder.has_run


def forget() -> None:
    """As a new process."""
    sys.modules.pop("planted", None)
    gymnasium.registry.pop("Planted-v0", None)


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.usefixtures("without_training")
def test_a_file_that_has_changed_since_it_was_collected_with_is_not_opened(
    folder: Folder, store: Store, named: bool
) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    environment = gymnasium.make("CartPole-v1")
    model = sb3.PPO("MlpPolicy", environment, n_steps=8, batch_size=8, device="cpu")
    model.save(folder.path / "model.zip")
    from flows.datasets.collection import CollectConfig, collect

    spec = Named(f"sb3:PPO:{folder.path / 'model.zip'}")
    manifest = collect(store, CollectConfig(env_id="CartPole-v1", policy=spec, episodes=2, max_steps=9))
    steps = read_steps(store, manifest.dataset_id)
    assert find_baseline(store, manifest, steps).origin == f"{spec}, its own weights"
    shutil.copyfile(folder.path / "planted.zip", folder.path / "model.zip")
    if named:
        with pytest.raises(BadInput, match="its bytes have changed, so it is not opened"):
            find_baseline(store, manifest, steps, spec)
    else:
        assert find_baseline(store, manifest, steps).origin.startswith("distilled from the logged actions")
    assert not folder.has_run


@pytest.mark.slow
def test_the_hash_of_a_policys_file_is_in_the_manifest_and_travels_with_exports(folder: Folder, store: Store) -> None:
    from flows.datasets.collection import CollectConfig, collect
    from storage.schema import sha256_file

    config = CollectConfig(env_id="CartPole-v1", policy="py:planted:act", episodes=2, max_steps=9)
    manifest = collect(store, config)
    assert manifest.policy_file_sha256 == sha256_file(folder.path / "planted.py")
    export_dataset(store, folder.path / "out.parquet", "parquet")
    again = take_in(Store.create(folder.path / "again"), folder.path / "out.parquet")
    assert again.policy_file_sha256 == manifest.policy_file_sha256
    random = collect(store, CollectConfig(env_id="CartPole-v1", policy="random", episodes=2, max_steps=9))
    assert "policy_file_sha256" not in store.manifest_path(random.dataset_id).read_text()


@pytest.mark.parametrize("spec", ["sb3:PPO:a.zip", "d3rlpy:a.d3", "onnx:a.onnx", "py:planted:act"])
def test_a_text_that_is_not_the_users_is_refused_where_code_would_be_loaded(folder: Folder, spec: str) -> None:
    spaces: Any = None  # which are looked at later
    with pytest.raises(BadInput, match="was not named by the user; it is not loaded"):
        load_policy(spec, spaces)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="was not named by the user"):
        make_environment("planted:Planted-v0")  # pyright: ignore[reportArgumentType]
    assert not folder.has_run


NAMING = {
    "flows/simulation/trust.py",
    "flows/refinement/rounds.py",
    "flows/refinement/feedback.py",
    "flows/refinement/relabelling.py",
    "flows/deployment/intake.py",
    "flows/refinement/evaluator.py",
    "flows/demo.py",
    "flows/policies/train_baseline.py",
    "flows/reporting/episodes.py",
}
"""Beside the command line: what the store names, the shipped example, and what is found to be the user's own."""


@pytest.mark.slow
def test_names_are_made_where_options_are_read_and_nowhere_else() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "flows").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Named", "Named.of")
    }
    assert {path for path in found if not path.startswith("flows/commands/")} == NAMING


def test_nothing_of_a_store_is_unpickled() -> None:
    rooms = [path for room in ("storage", "annotate", "refine", "flows") for path in (ROOT / room).rglob("*.py")]
    text = {str(path.relative_to(ROOT)): path.read_text() for path in rooms}
    unpickling = ("pickle.load", "allow_pickle=True", "torch.load(", "joblib", "import pickle", "cloudpickle")
    found = [path for path, code in text.items() if any(word in code for word in unpickling)]
    readers = ["refine/policies/sb3_export.py", "refine/policies/sb3_files.py", "refine/policies/vec_normalize.py"]
    assert sorted(found) == readers  # see test_flows_sb3
    loads = [line for code in text.values() for line in code.splitlines() if "= torch.load(" in line]
    assert len(loads) == 2
    assert all("weights_only=True" in line for line in loads)
    assert "pickle.load" not in text["refine/policies/vec_normalize.py"]
    loads = [line for code in text.values() for line in code.splitlines() if "np.load(" in line]
    assert loads
    assert all("allow_pickle=False" in line for line in loads)
