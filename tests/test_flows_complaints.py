"""What the user's own code raises or returns wrongly: one line that names its file and line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import cli
from flows.datasets.collection import CollectConfig, collect
from flows.simulation.actors import RandomActor
from flows.simulation.complaints import defined_at, describe_raised, raised_at
from flows.simulation.environments import make_environment, spaces_of
from flows.simulation.replay import replay_episode
from flows.simulation.rollouts import rollout
from flows.simulation.trust import Named
from storage.errors import BadInput, TrajnoteWarning
from storage.store import Store

ROOT = Path(__file__).resolve().parents[1]
MINES = """
import gymnasium
import numpy as np

class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, True, False, {}

class Unmade(Mine):
    def __init__(self):
        raise RuntimeError("no sensor\\non port 3")

class Unset(Mine):
    def reset(self, *, seed=None, options=None):
        return self.missing, {}

class Singular(Mine):
    def step(self, action):
        return np.linalg.inv(np.zeros((2, 2)))

class Unpacks(Mine):
    def step(self, action):
        first, second = (1, 2, 3)

class Four(Mine):
    def step(self, action):
        return np.zeros(2, np.float32), 1.0, True, {}

class Column(Mine):
    def step(self, action):
        return np.zeros(2, np.float32), np.array([1.0]), True, False, {}

class Wide(Mine):
    def step(self, action):
        return np.zeros(3, np.float32), 1.0, True, False, {}

class Unseeded(Mine):
    def reset(self):
        return np.zeros(2, np.float32), {}

class Open(Mine):
    def close(self):
        raise OSError("still busy")
"""


@pytest.fixture
def mines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mines.py").write_text(MINES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mines", raising=False)
    return tmp_path / "mines.py"


def line_of(text: str) -> int:
    return 1 + MINES.split("\n").index(next(line for line in MINES.split("\n") if text in line))


def play(name: str) -> int:
    made = make_environment(Named(f"mines.py:{name}"))
    return len(list(rollout(lambda: made, RandomActor(spaces_of(made).action), [0])))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "said", "line"),
    [
        ("Unmade", "RuntimeError: no sensor on port 3", "raise RuntimeError"),
        ("Unset", "Episode 0, step 0: its environment raised AttributeError: .*'missing'", "self.missing"),
        ("Singular", "step 0: its environment raised LinAlgError: Singular matrix", "np.linalg.inv"),
        ("Unpacks", "its environment raised ValueError: too many values to unpack", "first, second"),
    ],
)
def test_what_an_environment_raises_is_shown_with_the_users_own_line(
    mines: Path, name: str, said: str, line: str
) -> None:
    with pytest.raises(BadInput, match=rf"{said}.* \(mines.py:{line_of(line)}\)") as caught:
        play(name)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "said", "method"),
    [
        ("Four", "its step does not return observation, reward, terminated, truncated and info", "step"),
        (
            "Column",
            r"its reward is array\(\[1.\]\) of shape \(1,\); a single number is needed, such as reward.item",
            "step",
        ),
        ("Wide", r"its observation is .* of shape \(3,\); its space promises numbers of shape \(2,\)", "step"),
        ("Unseeded", "its reset takes no seed; it has to begin with `def reset", "reset"),
    ],
)
def test_what_an_environment_returns_wrongly_is_shown_with_the_line_of_its_method(
    mines: Path, name: str, said: str, method: str
) -> None:
    begins = MINES.split("\n").index(f"class {name}(Mine):") + 2
    with pytest.raises(BadInput, match=rf"{said}.*see {method} in mines.py:{begins}"):
        play(name)


def test_an_environment_that_cannot_be_closed_loses_nothing(mines: Path) -> None:
    with pytest.warns(TrajnoteWarning, match=r"could not be closed: OSError: still busy \(mines.py:\d+\)"):
        assert play("Open") == 1


def test_a_replay_that_fails_says_the_step_and_the_line(mines: Path, store: Store) -> None:
    config = CollectConfig(env_id=Named("mines.py:Mine"), policy=Named("random"), mode="sampled", episodes=1)
    manifest = collect(store, config)
    mines.write_text(MINES.replace("1.0, True", "1.0 / 0, True"))
    del sys.modules["mines"]
    with pytest.raises(BadInput, match=r"Episode 0, step 0: .*ZeroDivisionError.*\(mines.py:\d+\)"):
        replay_episode(store, manifest.dataset_id, 0, Named("mines.py:Mine"))


def run(words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["trajnote", *words.split()])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("runner", ["threads", None])
def test_the_traceback_is_shown_where_it_is_asked_for(
    mines: Path, runner: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if runner:
        monkeypatch.setenv("TRAJNOTE_RUNNER", runner)
    words = "collect --env mines.py:Singular --policy random --episodes 9 --store made"
    places = [f"{words} --traceback"]
    if runner == "threads":  # which needs no processes
        places.append(f"--traceback {words}")
        assert run(words, monkeypatch) == 2
        assert "Traceback" not in capsys.readouterr().err
    for asked in places:
        assert run(asked, monkeypatch) == 2
        said = capsys.readouterr().err
        assert "in inv" in said  # the library's own lines
        assert f'mines.py", line {line_of("np.linalg.inv")}, in step' in said
        assert "error: Episode 0, step 0: its environment raised LinAlgError" in said


def test_any_other_error_of_the_users_code_is_a_line_too(
    mines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {}
    exec(compile("def broken(**_):\n    return {}[0]\n", str(mines), "exec"), namespace)
    monkeypatch.setattr(cli, "make_app", lambda *_: namespace["broken"])
    assert run("collect", monkeypatch) == 2
    assert "error: Your code raised KeyError: 0 (mines.py:2). Add --traceback for the full traceback." in (
        " ".join(capsys.readouterr().err.split())
    )


def test_places_are_of_the_users_code_only(mines: Path) -> None:
    with pytest.raises(BadInput) as caught:
        make_environment(Named("mines.py:Unmade"))
    assert raised_at(caught.value.__cause__ or caught.value) == f"mines.py:{line_of('raise RuntimeError')}"
    assert defined_at(np.zeros) == defined_at(make_environment) == defined_at(None) == ""
    mines.with_name("odd.py").write_text("x = (\n")
    with pytest.raises(BadInput, match=r"SyntaxError: '\(' was never closed \(odd.py:1\)"):
        make_environment(Named("odd.py:Any"))
    assert describe_raised(ValueError()) == "ValueError: no message"
