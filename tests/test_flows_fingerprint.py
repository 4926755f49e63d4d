"""An environment whose code, data, arguments, limits or packages change is another one; nothing of it counts then."""

from __future__ import annotations

import functools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from store_state import ask
from toy_environment import TOY

from flows.datasets.collection import CollectConfig, collect
from flows.policies.loading import load_policy
from flows.refinement import evaluator as judging
from flows.refinement import lineage
from flows.refinement.comparison import GateConfig
from flows.refinement.evaluator import EvaluateConfig, evaluate
from flows.simulation import environments, fingerprint
from flows.simulation.environments import look_up_spaces, make_environment
from flows.simulation.fingerprint import REGISTRATION, Fingerprint, look_up_fingerprint, take_fingerprint
from flows.simulation.replay import replay_episode
from flows.simulation.trust import Named
from storage.datasets.reader import read_manifest
from storage.errors import BadInput, ChangedEnvironmentWarning
from storage.store import Store

SOURCE = """
import gymnasium, numpy as np
from pathlib import Path
import payment
class Paying(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self, length=5):
        self.length = length
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.t += 1
        scale = float(Path(__file__).with_name("scale.json").read_text())
        return np.zeros(2, np.float32), payment.PAY * scale, self.t >= self.length, False, {}
gymnasium.register("Paying-v0", Paying)
"""
PAYING = Named("paying_world:Paying-v0")
Edit = Callable[[dict[str, str]], None]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Write files of a small world as an editor does; what comes then sees them as a new process would."""
    folder = tmp_path / "world"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(files: dict[str, str]) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
        for name in [name for name in sys.modules if name.partition(".")[0] in {"paying_world", "payment", "rates"}]:
            del sys.modules[name]
        gymnasium.registry.pop("Paying-v0", None)
        fingerprint.look_up_once.cache_clear()

    write({"paying_world.py": SOURCE, "payment.py": "PAY = 1.0", "scale.json": "1"})
    return write


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many policies each call plays."""
    counts: list[int] = []
    play = judging.play_policies

    def spy(env_id: str, env_kwargs: Any, policies: Any, *rest: Any, **options: Any) -> Any:
        counts.append(len(policies))
        return play(env_id, env_kwargs, policies, *rest, **options)

    monkeypatch.setattr(judging, "play_policies", spy)
    return counts


def paid(store: Store, **changes: Any) -> float:
    config = {"policy": "random", "env_id": PAYING, "episodes": 2, "workers": 1, **changes}
    return evaluate(store, EvaluateConfig(**config))["return"]


def collected(store: Store, **changes: Any) -> str:
    return collect(store, CollectConfig(**{"env_id": PAYING, "policy": "random", "episodes": 2, **changes})).dataset_id


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_an_edited_environment_is_played_anew_and_an_unchanged_one_is_not(
    store: Store, edit: Edit, played: list[int]
) -> None:
    assert [paid(store), paid(store)] == [5.0, 5.0]
    assert played == [1]
    edit({"payment.py": "PAY = 100.0"})
    with pytest.warns(
        ChangedEnvironmentWarning, match=r"Paying-v0 has changed since it was played \(payment has changed"
    ):
        assert paid(store) == 500.0
    assert paid(store) == 500.0
    assert played == [1, 1]
    edit({"payment.py": "PAY = 1.0"})
    assert paid(store) == 5.0
    assert played == [1, 1]
    codes = ask(
        store,
        """SELECT return_, code->>'payment' FROM evaluations JOIN environments USING (environment_sha256)
           ORDER BY return_""",
    )
    assert [return_ for return_, _ in codes] == [5.0, 500.0]
    assert len({code for _, code in codes}) == 2


def test_the_gate_remembers_for_one_code_only_and_a_comparison_is_named_by_it(
    store: Store, edit: Edit, played: list[int]
) -> None:
    def returns() -> float:
        policy = load_policy("random", look_up_spaces(PAYING))
        asked = judging.Candidate("random", policy.sha256, policy)
        judge = judging.Evaluator(store, PAYING, {}, workers=1)
        return float(judge.returns([asked], range(2), mode="sampled", purpose="accept")[0].mean())

    def name() -> str:
        material = SimpleNamespace(oracle=None, content_id="m_1")
        judge = judging.Evaluator(store, PAYING, {})
        plan: Any = SimpleNamespace(
            material=material, gate=GateConfig(), references=(), evaluator=judge, promote_rules=False, promote="labels"
        )
        return lineage.name_comparison(plan)

    first = name()
    assert [returns(), returns(), name() == first] == [5.0, 5.0, True]
    edit({"payment.py": "PAY = 100.0"})
    assert [returns(), returns(), name() == first] == [500.0, 500.0, False]
    assert played == [1, 1]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"paying_world.py": SOURCE.replace("length=5", "length=6")}, "paying_world has changed"),
        ({"scale.json": "6"}, "scale.json has changed"),
        ({"payment.py": "from rates import PAY", "rates.py": "PAY = 6.0"}, "payment has changed; rates is new"),
    ],
)
def test_code_and_data_beside_an_environment_are_a_part_of_it(edit: Edit, files: dict[str, str], told: str) -> None:
    before = look_up_fingerprint(PAYING)
    edit({})
    assert look_up_fingerprint(PAYING) == before
    assert sorted(before.code) == ["paying_world", "payment", REGISTRATION, "scale.json"]
    edit(files)
    assert "; ".join(look_up_fingerprint(PAYING).changes_since(before.versions, before.code)) == told


def test_packages_and_lazy_imports_are_followed_and_files_beside_that_nobody_names_are_not(edit: Edit) -> None:
    late = "import importlib\nfrom rates.table import PAY\ndef late():\n    importlib.import_module('later')"
    edit({"rates/__init__.py": "", "rates/table.py": "PAY = 1.0", "payment.py": late, "later.py": "import json"})
    edit({"stranger.py": "PAY = 3.0", "other.json": "{}"})
    found = look_up_fingerprint(PAYING).code
    assert found.keys() >= {"payment", "rates", "rates.table", "later"}
    assert not found.keys() & {"stranger", "other.json", "json"}


def test_a_file_that_nobody_may_look_at_counts_as_absent(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Path.is_file

    def refuse(path: Path) -> bool:
        if path.name == "scale.json":
            raise PermissionError(13, "Permission denied", str(path))
        return asked(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert look_up_fingerprint(PAYING).code.keys() == {"paying_world", "payment", REGISTRATION}


def test_registered_arguments_and_limits_are_a_part_of_an_environment(edit: Edit) -> None:
    make_environment(PAYING)
    world = sys.modules["paying_world"]
    ways: list[dict[str, Any]] = [
        {},
        {"max_episode_steps": 3},
        {"kwargs": {"length": 2}},
        {"kwargs": {"length": np.array([2])}},
        {"kwargs": {"length": functools.partial(int, 2)}},
    ]
    hashes: set[str] = set()
    for way in ways:
        gymnasium.registry.pop("Paying-v0")
        gymnasium.register("Paying-v0", world.Paying, **way)
        fingerprint.look_up_once.cache_clear()
        hashes |= {look_up_fingerprint(PAYING).sha256, look_up_fingerprint(PAYING).sha256}
    assert len(hashes) == len(ways)
    assert look_up_fingerprint(PAYING, {"length": 3}) != look_up_fingerprint(PAYING)


@pytest.mark.slow
def test_another_version_of_a_package_is_another_environment(
    store: Store, played: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"env_id": "CartPole-v1", "policy": "random", "episodes": 2}
    first = [paid(store, env_id="CartPole-v1"), collected(store, **config), collected(store, **config)]
    assert first[1] == first[2]
    version = environments.version_of
    monkeypatch.setattr(environments, "version_of", lambda name: "9.9" if name == "numpy" else version(name))
    monkeypatch.setattr(fingerprint, "marked_version", lambda name: "9.9" if name == "numpy" else version(name))
    fingerprint.look_up_once.cache_clear()
    assert paid(store, env_id="CartPole-v1") == first[0]
    assert played == [1, 1]
    with pytest.warns(ChangedEnvironmentWarning, match=r"made in another CartPole-v1 \(numpy .* then, 9.9 now\)"):
        other = collected(store, **config)
    assert other.startswith(f"{first[1]}-")
    assert collected(store, **config) == other
    assert read_manifest(store, other).versions["numpy"] == "9.9"
    assert "9.9" not in read_manifest(store, str(first[1])).versions.values()
    fingerprint.look_up_once.cache_clear()


@pytest.mark.slow
def test_a_dataset_of_edited_code_has_another_name_and_a_name_that_was_given_is_refused(
    store: Store, edit: Edit
) -> None:
    first = collected(store)
    assert collected(store) == first
    collected(store, dataset="mine")
    edit({"payment.py": "PAY = 100.0"})
    second = collected(store)
    assert second != first
    assert ask(store, f"SELECT DISTINCT return_ FROM episodes WHERE dataset_id = '{second}'") == [(500.0,)]
    with pytest.raises(BadInput, match=r"mine was made in another paying_world:Paying-v0 \(payment has changed\)"):
        collected(store, dataset="mine")
    with pytest.warns(ChangedEnvironmentWarning, match="The dataset mine was made in another"):
        renamed = collected(store, dataset="mine", rename=True)
    assert renamed.startswith("mine-")


def test_an_interrupted_collection_is_not_gone_on_with_in_edited_code(store: Store, edit: Edit) -> None:
    def stop(text: str, done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    config = CollectConfig(env_id=PAYING, policy="random", episodes=4, dataset="mine", envs=1)
    with pytest.raises(KeyboardInterrupt):
        collect(store, config, stop, shard_bytes=1)
    edit({"payment.py": "PAY = 100.0"})
    with pytest.warns(ChangedEnvironmentWarning, match=r"mine was interrupted in another .*payment has.*starts again"):
        collect(store, config)
    returns = ask(store, "SELECT DISTINCT return_ FROM episodes WHERE dataset_id = 'mine'")
    assert returns == [(500.0,)]


def test_a_replay_says_that_the_code_has_changed_even_where_every_bit_is_the_same(store: Store, edit: Edit) -> None:
    dataset_id = collected(store)
    assert replay_episode(store, dataset_id, 0).detail.endswith("has the same bits")
    edit({"payment.py": "PAY = 2.0 - 1"})
    replay = replay_episode(store, dataset_id, 0)
    assert replay.exact
    assert replay.detail.endswith("; the environment is not what it was: payment has changed")
    edit({"payment.py": "PAY = 2.0"})
    assert "likely because of payment has changed" in replay_episode(store, dataset_id, 0).detail


def test_code_without_a_source_is_equal_to_nothing_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = ModuleType("ghost_world")
    exec(SOURCE.replace("import payment", "").replace("Paying-v0", "Ghost-v0"), ghost.__dict__)
    found = look_up_fingerprint("Ghost-v0")
    gymnasium.registry.pop("Ghost-v0")
    assert found.code["ghost_world"].startswith("unknown ")
    assert found.changes_since(found.versions, {**found.code, "ghost_world": "unknown 0"}) == [
        "the source of ghost_world cannot be read"
    ]


def test_code_in_an_archive_is_read_and_large_files_are_not(
    tmp_path: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "world.zip", "w") as archive:
        archive.writestr("zipped_world.py", SOURCE.replace("Paying-v0", "Zipped-v0"))
    monkeypatch.syspath_prepend(str(tmp_path / "world.zip"))
    found = look_up_fingerprint(Named("zipped_world:Zipped-v0"))
    assert found.code["zipped_world"] == fingerprint.sha256_bytes(SOURCE.replace("Paying-v0", "Zipped-v0").encode())
    whole = look_up_fingerprint(PAYING).code["scale.json"]
    monkeypatch.setattr(fingerprint, "MOST_BYTES", len(SOURCE))
    edit({})
    assert look_up_fingerprint(PAYING).code["scale.json"] != whole


def test_a_policy_of_ones_own_is_known_by_the_code_that_it_imports_too(edit: Edit) -> None:
    def known(acts: str) -> str:
        edit({"paying_world.py": SOURCE + "\ndef push(observations):\n    return [payment.ACT]\n", "payment.py": acts})
        return load_policy(Named("py:paying_world:push"), look_up_spaces(PAYING)).sha256

    first = known("PAY, ACT = 1.0, 0")
    assert known("PAY, ACT = 1.0, 1") != first
    assert known("PAY, ACT = 1.0, 0") == first


def test_installed_packages_are_known_by_their_versions_alone() -> None:
    environment = make_environment("CartPole-v1")
    found = take_fingerprint(environment, "CartPole-v1")
    assert list(found.code) == [REGISTRATION]
    assert found.own_code == {}
    assert found.versions == environments.package_versions(environment)
    older = Fingerprint(found.versions, {})
    assert found.changes_since(older.versions, older.code) == []
    assert look_up_fingerprint(TOY).changes_since(found.versions, {}) == ["its code was not recorded then"]
    assert look_up_fingerprint(TOY).code.keys() == {"toy_environment", REGISTRATION}
