"""Projects that have a `storage`, `annotate`, `refine` or `flows` of their own, and environments named as files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
from soak import in_soak
from store_state import ask

from flows.simulation import Named, find_module, look_up_fingerprint, make_environment
from storage.errors import BadInput
from storage.store import Store

ROOT = Path(__file__).resolve().parents[1]
RIVER = """
import flows.rates, storage, annotate as notes
import gymnasium, numpy
from storage import Shelf

class River(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10, 10, (Shelf.size,), numpy.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.normal(size=2).astype(numpy.float32), {}

    def step(self, action):
        from storage.shelf import Shelf  # late, as a project may
        self.time += 1
        shown = self.np_random.normal(size=Shelf.size).astype(numpy.float32)
        return shown, notes.double(flows.rates.RATE) + int(action), self.time >= 5, False, {}
"""
FILES = {
    "annotate.py": "def double(x): return 2 * x\n",
    "storage/__init__.py": "from .shelf import Shelf\nCHOSEN = 2\n",
    "storage/shelf.py": "class Shelf:\n    size = 2\n",
    "flows/rates.py": "RATE = 0.25\n",  # a folder without __init__.py
    "flows/river.py": RIVER,
    "rivers.py": "import gymnasium\ngymnasium.register('River-v0', entry_point='flows.river:River')\n",
    "choices.py": "import storage\ndef act(observations): return [storage.CHOSEN]\n",
}
WAYS = {"console script": ["-c", "from trajnote import main; main()"], "python -m": ["-m", "trajnote"]}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write(tmp_path / "project", FILES)


def trajnote(way: str, words: str, folder: Path, *path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    command = [sys.executable, *WAYS[way], *words.split()]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def rewards(store: Path) -> set[float]:
    rows = ask(Store.open(store), "SELECT DISTINCT reward FROM steps WHERE reward IS NOT NULL")
    return {reward for (reward,) in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "on_path", "runner"),
    [
        ("console script", False, "processes"),
        pytest.param("console script", True, "threads", marks=in_soak),
        ("python -m", True, "threads"),
    ],
)
def test_a_project_with_our_names_plays_its_own_modules(
    project: Path, tmp_path: Path, way: str, on_path: bool, runner: str
) -> None:
    path = [project] if on_path else []
    words = f"collect --env rivers:River-v0 --policy py:choices:act --mode greedy --episodes 9 --store {tmp_path}/store"
    said = trajnote(way, words, project, *path, TRAJNOTE_RUNNER=runner)
    assert said.returncode == 0, said.stderr
    assert "9 episodes, 45 steps" in said.stdout
    assert rewards(tmp_path / "store") == {2.5}  # twice the project's rate, and the project's choice
    said = trajnote(way, f"replay --episode 3 --store {tmp_path}/store", project, *path)
    assert said.returncode == 0, said.stderr
    assert "exact" in said.stdout


def test_other_commands_run_beside_such_a_project_on_the_python_path(project: Path, tmp_path: Path) -> None:
    words = f"collect --env CartPole-v1 --policy random --episodes 1 --store {tmp_path}/store"
    said = trajnote("console script", words, tmp_path, project)
    assert said.returncode == 0, said.stderr
    assert "1 episodes" in said.stdout


WHOSE = """
import sys
sys.argv = ["trajnote", "--help"]
import trajnote
try:
    trajnote.main()
except SystemExit:
    pass
import storage, refine.policies
print(storage.__file__, refine.policies is sys.modules.get("trajnote.refine.policies"), file=sys.stderr)
"""


def test_rooms_without_a_namesake_keep_their_bare_names(project: Path, tmp_path: Path) -> None:
    def whose(folder: Path) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
        command = [sys.executable, "-c", WHOSE]
        said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return said.stderr.split()

    assert whose(tmp_path) == [str(ROOT / "storage/__init__.py"), "False"]
    assert whose(project) == [str(project / "storage/__init__.py"), "True"]


def test_where_the_names_cannot_be_told_apart_the_clash_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"clashing_lakes.py": "from storage.lakes import Lake\n"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"No module named 'storage.lakes'.*'storage' is trajnote's own in this process"):
        make_environment(Named("clashing_lakes:Lake-v0"))


PLAIN = RIVER.replace("import flows.rates, storage, annotate as notes\n", "import pond_rates\n").replace(
    "from storage import Shelf\n", "class Shelf: size = 2\n"
)


@pytest.fixture
def pond(tmp_path: Path) -> Path:
    text = PLAIN.replace("        from storage.shelf import Shelf  # late, as a project may\n", "")
    text = text.replace("notes.double(flows.rates.RATE)", "pond_rates.RATE").replace("River", "Pond")
    return write(tmp_path / "waters", {"ponds.py": text, "pond_rates.py": "RATE = 1.0\n"}) / "ponds.py"


def test_an_environment_is_named_as_a_class_of_a_file_or_of_a_module(
    pond: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_environment(Named(f"{pond}:Pond"))
    assert made.reset(seed=1)[0].shape == (2,)
    assert made.step(1)[1] == 2.0  # with the module beside the file
    assert made.spec is not None
    assert made.spec.entry_point == "ponds:Pond"
    monkeypatch.chdir(pond.parent)
    assert make_environment(Named("ponds:Pond")).spec == made.spec
    assert find_module("ponds.py") == str(pond)
    assert set(look_up_fingerprint(Named("ponds.py:Pond")).code) == {"ponds", "pond_rates", "registration"}
    with pytest.raises(BadInput, match=r"Unknown environment 'ponds.py:Lagoon'.*path/to/file.py:Class"):
        make_environment(Named("ponds.py:Lagoon"))
    gymnasium.registry.pop("ponds/Pond")


def test_a_file_of_a_name_that_is_taken_is_imported_beside_it(tmp_path: Path) -> None:
    write(tmp_path, {"json.py": "LOADED = True\n", "broken.py": "1 / 0\n"})
    with pytest.raises(BadInput, match="Unknown environment"):
        make_environment(Named(f"{tmp_path / 'json.py'}:LOADED"))
    assert not hasattr(json, "LOADED")
    with pytest.raises(BadInput, match=r"broken.py' of environment .* cannot be imported: ZeroDivisionError"):
        make_environment(Named(f"{tmp_path / 'broken.py'}:Any"))
    with pytest.raises(BadInput, match=r"absent.py' of environment .* cannot be imported: FileNotFoundError"):
        make_environment(Named(f"{tmp_path / 'absent.py'}:Any"))
