"""Environments: what is made, how spaces are described, and what is refused in which words."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from flows.simulation.environments import (
    EnvironmentMaker,
    make_environment,
    package_versions,
    parse_env_kwargs,
    parse_json_object,
    spaces_of,
    to_space,
)
from flows.simulation.trust import Named
from storage.errors import BadInput, Prerequisite
from storage.schema import Space


def test_cartpole_is_a_box_of_four_float32_and_two_actions() -> None:
    observation, action = spaces_of(make_environment("CartPole-v1"))
    assert (observation.kind, observation.dtype, observation.size) == ("box", "float32", 4)
    assert observation.low is not None
    assert observation.low[0] == pytest.approx(-4.8)
    assert observation.low[1] == -np.inf
    assert action == Space(kind="discrete", dtype="int64", size=1, n=2, start=0)


def test_a_discrete_observation_and_a_shifted_action_keep_their_start() -> None:
    assert to_space(spaces.Discrete(16), "observation") == Space(kind="discrete", dtype="int64", size=1, n=16)
    assert to_space(spaces.Discrete(3, start=-1), "action") == Space(
        kind="discrete", dtype="int64", size=1, n=3, start=-1
    )


def test_a_float64_observation_and_a_continuous_action_keep_their_types_and_bounds() -> None:
    observation, action = spaces_of(make_environment("LunarLander-v3", {"continuous": True}))
    assert (observation.size, observation.dtype) == (8, "float32")
    assert (action.low, action.high) == ((-1.0, -1.0), (1.0, 1.0))
    assert to_space(spaces.Box(-1, 1, (2,), np.float64), "observation").dtype == "float64"
    assert to_space(spaces.Box(0, 255, (128,), np.uint8), "observation").high == (255.0,) * 128


def test_arguments_reach_the_environment() -> None:
    environment = make_environment("CartPole-v1", {"max_episode_steps": 7, "sutton_barto_reward": True})
    environment.reset(seed=0)
    steps = [environment.step(step % 2) for step in range(7)]
    assert [step[3] for step in steps] == [False] * 6 + [True]
    assert steps[0][1] == 0.0


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Dict({"a": spaces.Text(2, charset="ab")}), "Dict('a': Text(1, 2, charset=ab))"),
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), "Box of shape (4, 4, 3) and dtype uint8"),
    ],
)
def test_any_other_space_is_refused_by_name_with_what_is_allowed(space: spaces.Space, named: str) -> None:
    with pytest.raises(BadInput) as caught:
        to_space(space, "observation", "Leave it out.")
    assert caught.value.problem == (
        f"The observation space is {named}; allowed: Discrete, Box, MultiDiscrete, MultiBinary, and Dict and Tuple of "
        "them, without images and texts."
    )
    assert caught.value.hint == "Leave it out."


def test_blackjack_is_flattened() -> None:
    observation = spaces_of(make_environment("Blackjack-v1")).observation
    assert (observation.kind, observation.dtype, observation.size) == ("box", "int64", 32 + 11 + 2)


@pytest.mark.parametrize(
    ("env_id", "near"),
    [("CartPole", "CartPole-v1"), ("lunarlander-v2", "LunarLander-v3")],
)
def test_an_unknown_id_names_the_near_ones(env_id: str, near: str) -> None:
    with pytest.raises(BadInput) as caught:
        make_environment(env_id)
    assert caught.value.problem.startswith(f"Unknown environment {env_id!r}. Did you mean {near}")


@pytest.mark.parametrize(
    ("env_id", "today"),
    [
        ("LunarLander-v2", "LunarLander-v3"),
        ("LunarLanderContinuous-v2", "LunarLanderContinuous-v3"),
        ("Hopper-v3", "Hopper-v5"),
        ("Taxi-v3", "Taxi-v4"),
        ("gymnasium:Pendulum-v0", "gymnasium:Pendulum-v1"),
    ],
)
def test_an_id_of_yesterday_is_refused_in_one_line_with_that_of_today(env_id: str, today: str) -> None:
    with pytest.raises(
        BadInput, match=f"{env_id} no longer exists; the nearest current one is {today}.*--env {today}"
    ) as refused:
        make_environment(Named(env_id))
    assert "\n" not in str(refused.value)


def test_gymnasiums_checks_watch_the_first_of_many_environments() -> None:
    make = EnvironmentMaker("CartPole-v1", {"max_episode_steps": 7})
    wrappers = [str(make()) for _ in range(3)]
    assert [("PassiveEnvChecker" in text, "TimeLimit" in text) for text in wrappers] == [
        (True, True),
        (False, True),
        (False, True),
    ]
    checked = EnvironmentMaker("CartPole-v1", {"disable_env_checker": False})
    assert all("PassiveEnvChecker" in str(checked()) for _ in range(2))


def test_a_quick_check_of_an_action_says_what_gymnasiums_says() -> None:
    for env_id in ("CartPole-v1", "LunarLander-v3"):
        own, plain = EnvironmentMaker(Named(env_id))().unwrapped.action_space, gymnasium.make(env_id).action_space
        assert own == plain
        assert type(own) is not type(plain)
        assert repr(own) == repr(plain)
        values = [
            *np.arange(-2, 6),
            *range(-2, 6),
            1.0,
            np.float64(1),
            np.int8(1),
            np.uint64(2),
            np.array(3),
            [1],
            None,
        ]
        assert [own.contains(value) for value in values] == [plain.contains(value) for value in values]
    assert type(EnvironmentMaker(Named("toy_environment:Toy-v0"))().unwrapped.action_space) is gymnasium.spaces.Discrete


def test_an_id_like_no_other_says_so() -> None:
    with pytest.raises(BadInput, match="none of them similar"):
        make_environment("Xqzzjk")


def test_arguments_that_an_environment_refuses_are_named() -> None:
    with pytest.raises(BadInput, match=r'CartPole-v1 cannot be made with \{"gravity": 1\}: TypeError'):
        make_environment("CartPole-v1", {"gravity": 1})


def test_an_environment_of_ones_own_is_found_beside_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Mine(CartPoleEnv):\n    pass\n"
        "gymnasium.register('Mine-v0', entry_point=Mine, max_episode_steps=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    environment = make_environment(Named("own_envs:Mine-v0"))
    assert type(environment.unwrapped).__name__ == "Mine"
    assert gymnasium.spec("Mine-v0").max_episode_steps == 3
    del gymnasium.registry["Mine-v0"]


def test_classes_of_one_name_and_of_a_known_environment_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "there"):
        text = "from gymnasium.envs.classic_control import CartPoleEnv\nclass CartPole(CartPoleEnv):\n"
        (tmp_path / f"{place}_envs.py").write_text(f"{text}    place = {place!r}\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = [make_environment(Named(f"{tmp_path}/{place}_envs.py:CartPole")) for place in ("here", "there")]
    assert [environment.get_wrapper_attr("place") for environment in made] == ["here", "there"]
    assert type(make_environment("CartPole-v1").unwrapped).__name__ == "CartPoleEnv"


def test_a_module_that_cannot_be_imported_is_named_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_envs.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(BadInput, match=r"'broken_envs'.*ZeroDivisionError: division by zero"):
        make_environment(Named("broken_envs:Mine-v0"))
    with pytest.raises(BadInput, match=r"'absent_envs'.*No module named 'absent_envs'"):
        make_environment(Named("absent_envs:Mine-v0"))


def test_a_missing_physics_engine_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "Box2D"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(Prerequisite) as caught:
        make_environment("LunarLander-v3")
    assert caught.value.hint == "pip install 'trajnote[envs]'"


def test_a_missing_emulator_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ale_py" else find(name))
    for name in [name for name in gymnasium.registry if name.startswith("ALE/")]:
        monkeypatch.delitem(gymnasium.registry, name)
    with pytest.raises(Prerequisite) as caught:
        make_environment("ALE/Pong-v5")
    assert caught.value.hint == "pip install 'trajnote[atari]'"


def test_pong_fits_by_its_memory_and_its_screen_is_refused_with_the_way_there() -> None:
    pytest.importorskip("ale_py")
    observation, action = spaces_of(make_environment("ALE/Pong-v5", {"obs_type": "ram"}))
    assert (observation.size, observation.dtype, action.n) == (128, "uint8", 6)
    with pytest.raises(BadInput, match='"obs_type": "ram"'):
        spaces_of(make_environment("ALE/Pong-v5"))


def test_versions_are_those_of_the_environment_not_of_the_process() -> None:
    lander = package_versions(make_environment("LunarLander-v3"))
    cart = package_versions(make_environment("CartPole-v1"))
    assert sorted(cart) == ["gymnasium", "numpy", "python"]
    assert sorted(lander.keys() - cart.keys()) == ["box2d"]
    assert cart["numpy"] == np.__version__


def test_env_kwargs_are_a_json_object() -> None:
    assert parse_env_kwargs('{"continuous": true}') == {"continuous": True}
    assert parse_env_kwargs(None) == parse_env_kwargs("") == {}
    with pytest.raises(BadInput, match="--env-kwargs is not a JSON object: '\\[1\\]'"):
        parse_env_kwargs("[1]")
    with pytest.raises(BadInput, match="--ppo is not JSON"):
        parse_json_object("{a}", "--ppo")
