"""Claims are checked in the real environments: the shipped ones hold, wrong ones are found out."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium
import numpy as np
import pytest
from pydantic import TypeAdapter
from soak import every

from annotate.cards.cards import Card, load_card, packaged_cards
from annotate.cards.claims import Claim
from flows.cards.probe import Finding, Twins, probe_card, wander
from flows.simulation.environments import make_environment
from storage.errors import BadInput

X, Z = 0, 2
ENGINES = {"lunarlander": "Box2D", "hopper": "mujoco", "walker2d": "mujoco", "halfcheetah": "mujoco"}
ENGINES |= {"reacher": "mujoco", "ale": "ale_py"}


@pytest.mark.slow
@pytest.mark.parametrize("path", every(packaged_cards(), 2), ids=lambda path: path.stem)
def test_every_claim_of_a_packaged_card_holds_in_its_environment(path: Any):
    engine = ENGINES.get(path.stem.split("-")[0])
    if engine and not importlib.util.find_spec(engine):
        pytest.skip(f"{engine} is not installed")
    slow = engine == "ale_py"  # a seeded reset of the console loads its game anew
    findings = probe_card(load_card(path), trials=4 if slow else 20, steps=2000 if slow else 4000)
    assert findings
    assert [f"{finding.claim.text}: {finding.evidence}" for finding in findings if not finding.held] == []


def probe_one(env_id: str, env_kwargs: dict[str, Any] | None = None, /, **claim: Any) -> Finding:
    """Put one claim of the test's own into the packaged card and check it."""
    card = load_card(env_id, env_kwargs)
    checked = TypeAdapter[Claim](Claim).validate_python({"text": "a test's claim", **claim})
    return probe_card(card.model_copy(update={"claims": (checked,)}), trials=20, steps=2000)[0]


@pytest.mark.slow
def test_a_wrong_sign_is_found_out():
    effect = {"kind": "effect", "action": "push_right", "versus": "push_left", "component": "pole_angular_velocity"}
    right = probe_one("CartPole-v1", **effect, effect="decreases")
    wrong = probe_one("CartPole-v1", **effect, effect="increases")
    assert right.held
    assert right.evidence.startswith("in 20 of 20 trials; mean difference -0.")
    assert not wrong.held
    assert wrong.evidence.startswith("in 0 of 20 trials")


@pytest.mark.slow
def test_an_action_without_effect_is_told_from_one_with_an_effect():
    claim = {"kind": "effect", "dimension": "side", "versus": 0.0, "component": "angular_velocity", "effect": "keeps"}
    assert probe_one("LunarLander-v3", {"continuous": True}, **claim, value=0.45).held
    assert not probe_one("LunarLander-v3", {"continuous": True}, **claim, value=0.55).held


@pytest.mark.slow
def test_a_wrong_unit_is_found_out_and_the_right_rate_is_measured():
    rate = {"kind": "rate", "component": "cart_position", "follows": "cart_velocity"}
    finding = probe_one("CartPole-v1", **rate, rate=0.05)
    assert not finding.held
    assert finding.evidence.endswith("measured rate 0.02")
    assert not probe_one("CartPole-v1", **rate, rate=-0.02).held


@pytest.mark.slow
def test_a_rounded_threshold_of_termination_is_found_out():
    exactly = "abs(next_pole_angle) > {} or abs(next_cart_position) > 2.4"
    assert probe_one("CartPole-v1", kind="termination", exactly=exactly.format(0.20944)).held
    assert not probe_one("CartPole-v1", kind="termination", exactly=exactly.format(0.215)).held
    assert not probe_one("CartPole-v1", kind="termination", never=True).held


@pytest.mark.slow
def test_a_cause_of_termination_may_be_one_of_several_but_must_be_seen():
    assert probe_one("CartPole-v1", kind="termination", whenever="next_pole_angle > 0.20944").held
    assert not probe_one("CartPole-v1", kind="termination", whenever="next_pole_angle > 0.1").held
    assert not probe_one("CartPole-v1", kind="termination", whenever="next_pole_angle > 99").held


@pytest.mark.slow
def test_a_wrong_reward_is_found_out_with_the_largest_difference():
    finding = probe_one("Pendulum-v1", kind="reward", equals="0", when="cos_angle < -0.99")
    assert not finding.held
    assert finding.evidence.startswith("on 0 of ")
    assert float(finding.evidence.rsplit(" ", 1)[1]) > 9


def test_a_claim_without_a_value_does_not_hold():
    finding = probe_one("CartPole-v1", kind="reward", equals="sqrt(-1)")
    assert not finding.held
    assert "on 0 of " in finding.evidence


def test_a_law_that_never_comes_up_does_not_count_as_kept():
    finding = probe_one("CartPole-v1", kind="law", holds="reward == 1", when="cart_position > 99")
    assert not finding.held
    assert finding.evidence == "it never came up"


@pytest.mark.slow
def test_bounds_and_values_are_those_that_were_seen():
    assert not probe_one("MountainCar-v0", kind="range", component="position", low=-1.0).held
    assert not probe_one("MountainCar-v0", kind="range", component="position", high=0.0).held
    assert not probe_one("FrozenLake-v1", kind="range", component="cell", values=(0.0, 1.0)).held
    assert not probe_one("LunarLander-v3", kind="range", component="left_leg", values=(0.0, 1.0, 2.0)).held


def test_an_effect_from_moments_that_do_not_occur_is_not_held():
    claim = {"kind": "effect", "action": "push_right", "versus": "push_left", "component": "cart_velocity"}
    finding = probe_one("CartPole-v1", **claim, effect="increases", when="cart_position > 99")
    assert finding.evidence == "only 0 of the 20 trials could be made"
    assert not finding.held


def test_a_card_that_does_not_fit_is_refused_before_anything_is_tried():
    card = load_card("CartPole-v1")
    with pytest.raises(BadInput, match=r"4 components .* an observation has 2"):
        probe_card(card, env=make_environment("MountainCar-v0"))


class Forgetful(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose reset ignores the seed."""

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return self.env.reset()


def test_an_environment_that_cannot_be_replayed_is_refused():
    twins = Twins(Forgetful(make_environment("CartPole-v1")), wandered=False)
    with pytest.raises(BadInput, match="cannot be replayed"):
        twins.outcome(0, np.asarray(0), steps=1)


def test_wandering_gives_the_same_steps_again_and_names_them():
    card = load_card("LunarLander-v3")
    first, second = (wander(make_environment("LunarLander-v3"), steps=300) for _ in range(2))
    np.testing.assert_array_equal(first.after, second.after)
    named = first.named(card)
    acts = sum(named[f"action_{name}"] for name in card.action_names)
    assert first.before.shape == (300, 8)
    np.testing.assert_array_equal(acts, np.ones(300))
    within = ~first.terminated[:-1]
    np.testing.assert_array_equal(named["next_vy"][:-1][within], named["vy"][1:][within])


def test_the_legs_of_the_lander_are_named_after_their_side():
    pytest.importorskip("Box2D")
    env = make_environment("LunarLander-v3")
    env.reset(seed=0)
    craft: Any = env.unwrapped
    sides = [leg.position.x - craft.lander.position.x for leg in craft.legs]
    names = load_card("LunarLander-v3").component_names[6:]
    assert [name for name, _ in sorted(zip(names, sides, strict=True), key=lambda pair: pair[1])] == [
        "left_leg",
        "right_leg",
    ]


def moved(env_id: str, joint: str, body: str) -> Any:
    """How a body's centre moves when one joint of the resting robot is turned by +0.2 rad."""
    mujoco = pytest.importorskip("mujoco")
    robot: Any = make_environment(env_id).unwrapped
    robot.reset(seed=0)
    places = []
    for turn in (0.0, 0.2):
        robot.data.qpos[:] = robot.init_qpos
        robot.data.joint(joint).qpos[:] += turn
        mujoco.mj_forward(robot.model, robot.data)
        places.append(robot.data.geom(body).xpos.copy())
    return places[1] - places[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "joint", "body", "component", "words", "axis", "sign"),
    [
        ("Hopper-v5", "rooty", "foot_geom", "torso_angle", "positive leans forward (the top ahead)", X, -1),
        ("Hopper-v5", "thigh_joint", "leg_geom", "thigh_angle", "negative has the knee swung backward", X, +1),
        ("Hopper-v5", "leg_joint", "foot_geom", "leg_angle", "negative is bent with the foot swung backward", X, +1),
        ("Hopper-v5", "foot_joint", "foot_geom", "foot_angle", "positive lifts the toes", Z, +1),
        ("Walker2d-v5", "rooty", "foot_geom", "torso_angle", "positive leans forward (the top ahead)", X, -1),
        ("Walker2d-v5", "leg_left_joint", "foot_left_geom", "left_leg_angle", "negative is bent with the foot", X, +1),
        ("Walker2d-v5", "foot_joint", "foot_geom", "right_foot_angle", "positive lifts the toes", Z, +1),
        ("HalfCheetah-v5", "rooty", "head", "torso_angle", "positive has the nose down", Z, -1),
        ("HalfCheetah-v5", "bthigh", "bfoot", "back_thigh_angle", "the leg below it swung backward", X, -1),
        ("HalfCheetah-v5", "fshin", "ffoot", "front_shin_angle", "the shin and the foot swung backward", X, -1),
        ("HalfCheetah-v5", "ffoot", "ffoot", "front_foot_angle", "the toe swung backward", X, -1),
    ],
)
def test_what_a_card_says_of_a_joint_is_how_the_body_moves(
    env_id: str, joint: str, body: str, component: str, words: str, axis: int, sign: int
):
    card: Card = load_card(env_id)
    assert words in next(c.meaning for c in card.components if c.name == component)
    assert moved(env_id, joint, body)[axis] * sign > 0.001


def test_heights_in_pong_grow_downwards_on_the_screen():
    pytest.importorskip("ale_py")
    env = make_environment("ALE/Pong-v5", {"obs_type": "ram"})
    observation, _ = env.reset(seed=0)
    names = load_card("ALE/Pong-v5", {"obs_type": "ram"}).component_names
    console: Any = env.unwrapped
    seen = []
    for action in [3] * 8 + [2] * 8 + [0] * 60:
        observation, *_ = env.step(action)
        rows, columns = np.nonzero((console.ale.getScreenRGB()[34:194] == (92, 186, 92)).all(axis=-1))
        seen.append((observation[names.index("player_y")], rows.mean() + 34, columns.mean()))
    heights, rows, columns = np.array(seen, dtype=np.float64).T
    whole = (heights > 60) & (heights < 180)
    assert whole.sum() > 5
    assert np.ptp(heights[whole]) > 20
    assert np.abs(rows[whole] - heights[whole] + 6).max() <= 1
    assert columns.min() > 140  # the right edge is at 159
