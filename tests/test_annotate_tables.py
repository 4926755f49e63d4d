"""Tables show the rows that inform, and say the same bytes for the same data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotate.cards.cards import Action, Card, Component, Event
from annotate.prompting.rendering import choose_steps, format_fixed, format_significant, render_table, window_bounds
from storage.schema import Episode

CARD = Card(
    env_id="Toy-v0",
    title="Toy",
    goal="go right",
    termination="at the wall",
    reward="1 per step",
    components=(
        Component(name="position", meaning="where", decimals=1),
        Component(name="touch", meaning="contact", decimals=0),
        Component(name="hidden", meaning="noise", show=False),
    ),
    actions=(Action(name="left", meaning="go left"), Action(name="right", meaning="go right")),
    events=(
        Event(component="touch", kind="change", text="touches the wall"),
        Event(component="position", kind="crosses", value=50.25, text="is half-way"),
    ),
)
CONTINUOUS = CARD.model_copy(
    update={
        "actions": (
            Action(name="push", meaning="force", low=-1, high=1),
            Action(name="turn", meaning="t", low=-1, high=1),
        )
    }
)


def episode(length: int, *, terminated: bool = True, number: int = 0) -> Episode:
    observations = np.zeros((length + 1, 3), np.float32)
    observations[:, 0] = np.arange(length + 1) / 4
    return Episode(
        number,
        1,
        observations,
        np.arange(length) % 2,
        np.full(length, -0.5),
        terminated=terminated,
        truncated=not terminated,
    )


def test_numbers_lose_trailing_zeros_and_the_negative_zero() -> None:
    assert [format_fixed(x, 2) for x in (0.5, -0.001, 2.0, 100, -1.255, 0.125)] == [
        "0.5",
        "0",
        "2",
        "100",
        "-1.25",
        "0.12",
    ]


def test_significant_digits_never_need_an_exponent() -> None:
    values = (0, 1234567.0, -0.000123456, 9.996, 0.888, -134.16)
    assert [format_significant(x) for x in values] == ["0", "1234567", "-0.000123", "10", "0.888", "-134"]


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_significant_digits_keep_three_digits_of_any_number(value: float) -> None:
    text = format_significant(value)
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=5.1e-3)


@given(st.integers(1, 3000), st.integers(1, 64))
def test_windows_cut_an_episode_into_consecutive_pieces(length: int, windows: int) -> None:
    bounds = window_bounds(length, windows)
    covered = [step for first, last in bounds for step in range(first, last + 1)]
    assert covered == list(range(length))
    assert len(bounds) <= windows
    assert len(bounds) == 1 or min(last - first + 1 for first, last in bounds) >= 3


@given(st.integers(1, 1200), st.integers(0, 50), st.booleans())
def test_every_window_offers_a_choice_and_the_budget_is_kept(length: int, number: int, terminated: bool) -> None:
    table = render_table(episode(length, terminated=terminated, number=number), CARD, rows=40, windows=8)
    assert len(table.steps) <= 40
    assert list(table.steps) == sorted(set(table.steps))
    assert table.steps[0] == 0
    assert table.steps[-1] == length - 1
    assert all(len(window.rows) >= min(3, length) for window in table.windows)


def test_short_episodes_are_shown_whole() -> None:
    assert choose_steps(episode(40), CARD, rows=40, windows=8) == list(range(40))


def test_contacts_thresholds_and_large_rewards_get_rows() -> None:
    walk = episode(900, terminated=False, number=3)
    plain = set(choose_steps(walk, CARD.model_copy(update={"events": ()}), rows=40, windows=8))
    walk.observations[333:340, 1] = 1
    walk.rewards[777] = -100
    shown = set(choose_steps(walk, CARD, rows=40, windows=8))
    assert {202, 333, 340, 777, 778} <= shown  # half-way is passed at step 202, (202 / 4) > 50.25
    assert not {202, 333, 340, 777, 778} <= plain


def test_the_run_up_to_a_termination_gets_rows() -> None:
    assert {480, 492, 497, 499} <= set(choose_steps(episode(500), CARD, rows=40, windows=8))


def test_chattering_contacts_do_not_take_the_rows_of_other_windows() -> None:
    walk = episode(800, terminated=False)
    walk.observations[700:800:2, 1] = 1
    table = render_table(walk, CARD, rows=40, windows=8)
    assert len(table.windows[-1].rows) <= 8
    assert min(len(window.rows) for window in table.windows) >= 3


def test_rows_hold_state_action_and_reward_since_the_row_above() -> None:
    table = render_table(episode(6), CARD, rows=40, windows=2)
    assert table.header == "step position touch action reward"
    assert table.text.splitlines() == [
        "window 1: steps 0-2",
        "0 0 0 left 0",
        "1 0.2 0 right -0.5",
        "2 0.5 0 left -0.5",
        "window 2: steps 3-5",
        "3 0.8 0 right -0.5",
        "4 1 0 left -0.5",
        "5 1.2 0 right -0.5",
        "end 1.5 0 - -0.5",
    ]


def test_the_reward_column_adds_up_to_the_return() -> None:
    walk = episode(1000, number=7)
    walk.rewards[:] = -2
    rows = [line for line in render_table(walk, CARD, rows=40, windows=8).text.splitlines() if ":" not in line]
    assert sum(float(row.split()[-1]) for row in rows) == pytest.approx(walk.return_)


def test_continuous_actions_have_a_column_for_each_dimension() -> None:
    walk = episode(3)
    table = render_table(
        Episode(0, 1, walk.observations, np.array([[0.5, -1], [0, 0.333], [1, 1]]), walk.rewards, True, False),
        CONTINUOUS,
        rows=40,
        windows=1,
    )
    assert table.header == "step position touch push turn reward"
    assert table.text.splitlines()[1:] == ["1 0.2 0 0 0.33 -0.5", "2 0.5 0 1 1 -0.5", "end 0.8 0 - - -0.5"]


def test_discrete_observations_are_one_column() -> None:
    card = CARD.model_copy(update={"components": CARD.components[:1], "events": ()})
    walk = Episode(0, 1, np.array([3, 4, 5]), np.array([0, 1]), np.array([1.0, math.pi]), False, True)
    assert render_table(walk, card, rows=40, windows=1).text == "0 3 left 0\n1 4 right 1\nend 5 - 3.1"
