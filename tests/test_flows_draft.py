"""Drafting a card: what is taken over from the environment, what is left to a human, and what is never overwritten."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from annotate.cards.cards import check_card_against_spaces, load_card
from flows.cards.draft import card_path, describe_actions, describe_observation, draft_card, section, write_draft
from flows.cards.probe import probe_card
from flows.simulation.environments import make_environment, spaces_of
from storage.errors import BadInput
from storage.schema import Space

TABLE = """Words before.

    ## Observation Space
    | Num | Observation           | Min  | Name in XML | Type (Unit)  |
    | --- | --------------------- | ---- | ----------- | ------------ |
    | 0   | angle of the torso    | -Inf | rooty       | angle (rad)  |
    | 1   | x-value of `the tip`  | -Inf | tip         | position (m) |
    | 2   | angle of the torso    | -Inf | copy        | unitless     |
    | excluded | y of the tip     | -Inf | tip         | position (m) |

    ## Action Space
    - 0: apply -1 torque
    - 1: apply 1 torque

    ## Rewards
    One per step.
    """


def numbers(size: int) -> Space:
    return Space(kind="box", dtype="float64", size=size)


def choices(n: int) -> Space:
    return Space(kind="discrete", dtype="int64", size=1, n=n)


def fill_in(text: str) -> str:
    return re.sub(r"TODO[^\"\n]*", "filled in", text)


def test_a_numbered_table_gives_names_units_and_words():
    entries = describe_observation(TABLE, numbers(3))
    assert [entry.name for entry in entries] == ["angle_torso_0", "x_value_tip", "angle_torso_2"]
    assert [entry.unit for entry in entries] == ["rad", "m", ""]
    assert entries[1].text == "x-value of the tip"


def test_a_numbered_list_gives_the_actions_and_minus_one_is_not_one():
    assert [entry.name for entry in describe_actions(TABLE, choices(2))] == ["apply_minus_1_torque", "apply_1_torque"]


def test_a_table_or_list_of_another_length_is_not_believed():
    assert [entry.name for entry in describe_observation(TABLE, numbers(2))] == ["component_0", "component_1"]
    assert [entry.name for entry in describe_actions(TABLE, choices(3))] == ["action_0", "action_1", "action_2"]
    assert describe_observation("", numbers(1))[0].unit is None


def test_a_section_ends_at_the_next_heading():
    assert section(TABLE, "Reward") == ["One per step."]
    assert section(TABLE, "Nothing of the kind") == []
    assert section(TABLE, "") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "env_kwargs"),
    [
        ("CartPole-v1", {}),
        ("Acrobot-v1", {}),
        ("MountainCarContinuous-v0", {}),
        ("FrozenLake-v1", {"is_slippery": False, "map_name": "8x8"}),
        ("LunarLander-v3", {"continuous": True, "gravity": -9.5}),
        ("Hopper-v5", {}),
    ],
)
def test_a_draft_loads_and_fits_once_every_todo_is_filled_in(tmp_path: Path, env_id: str, env_kwargs: dict[str, Any]):
    path = tmp_path / "card.toml"
    write_draft(env_id, env_kwargs, path)
    with pytest.raises(
        BadInput, match=r"places still say TODO: title, goal, termination, reward, advice\[0\], components"
    ):
        load_card(path)
    path.write_text(fill_in(path.read_text()))
    card = load_card(path)
    assert card.env_id == env_id
    assert card.env_kwargs == env_kwargs
    check_card_against_spaces(card, *spaces_of(make_environment(env_id, env_kwargs)))


def test_the_claims_of_a_draft_find_out_where_a_space_is_narrower_than_the_environment(tmp_path: Path):
    path = tmp_path / "card.toml"
    path.write_text(fill_in(draft_card("LunarLander-v3", {"gravity": -1.0})))
    findings = probe_card(load_card(path), steps=1000, trials=1)
    assert len(findings) == 8
    broken = {finding.claim.text: finding.evidence for finding in findings if not finding.held}
    assert "component_6 is between 0 and 1" not in broken
    assert float(broken["component_1 is between -2.5 and 2.5"].split(" to ")[1].split(",")[0]) > 2.5


def test_names_units_and_seconds_are_taken_from_the_environment():
    text = draft_card("Hopper-v5")
    assert 'name = "angle_thigh_joint"\nunit = "rad"' in text
    assert 'name = "torque_applied_thigh_rotor"' in text
    assert 'unit = "N m"\nlow = -1.0\nhigh = 1.0' in text
    assert "seconds_per_step = 0.008" in text


def test_bounds_of_the_space_become_claims():
    text = draft_card("CartPole-v1")
    assert 'text = "cart_position is between -4.8 and 4.8"' in text
    assert "low = -4.8\nhigh = 4.8" in text
    assert "cart_velocity is between" not in text


class Bare(gymnasium.Env[Any, Any]):
    """Says nothing about numbers."""

    observation_space = gymnasium.spaces.Box(0, 255, (3,), "uint8")
    action_space = gymnasium.spaces.Box(-float("inf"), float("inf"), (1,), "float32")


def test_an_environment_without_documentation_gets_numbered_names_and_no_empty_claims():
    gymnasium.register("BareForDrafts-v0", entry_point=lambda: Bare())
    text = draft_card("BareForDrafts-v0")
    assert 'name = "component_2"' in text
    assert "low = -inf\nhigh = inf" in text
    assert "\n[[claims]]" not in text


def test_a_file_that_exists_is_left_as_it_is(tmp_path: Path):
    path = card_path("ALE/Pong-v5", tmp_path)
    assert path.name == "ale-pong-v5.toml"
    path.write_text("mine")
    with pytest.raises(BadInput, match="already exists and was not changed"):
        write_draft("CartPole-v1", {}, path)
    assert path.read_text() == "mine"


def test_nothing_is_written_for_an_unknown_environment_or_into_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(BadInput, match="CartPole"):
        write_draft("CartPoll-v1", {}, tmp_path / "card.toml")
    with pytest.raises(BadInput, match="cannot be written"):
        write_draft("CartPole-v1", {}, tmp_path / "none" / "card.toml")
    assert list(tmp_path.iterdir()) == []
