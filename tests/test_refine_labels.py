from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import full_or

from refine.config import RefineConfig
from refine.labels.labels import (
    ARMS,
    Labels,
    arm_labels,
    check_labels,
    covers_most_steps,
    labels_from_annotations,
)
from refine.labels.reward_relabelling import relabel, relabel_additive, relabel_potential, scale_of_returns
from storage.datasets.reader import StepArrays
from storage.errors import BadInput
from storage.schema import Annotation, Space

DISCRETE = Space(kind="discrete", dtype="int64", size=1, n=4)
TORQUES = Space(kind="box", dtype="float32", size=2, low=(-1.0, -2.0), high=(1.0, 2.0))


def make_steps(lengths: list[int], *, terminated: list[bool] | None = None, space: Space = DISCRETE) -> StepArrays:
    rng = np.random.default_rng(0)
    count = sum(length + 1 for length in lengths)
    step = np.concatenate([np.arange(length + 1, dtype=np.int32) for length in lengths])
    ends = np.cumsum([length + 1 for length in lengths]) - 1
    is_final = np.isin(np.arange(count), ends)
    action = rng.integers(0, 4, count) if space.is_discrete else rng.uniform(-1, 1, (count, 2)).astype(np.float32)
    action[is_final] = 0
    flags = np.zeros(count, np.bool_)
    flags[ends - 1] = terminated or [True] * len(lengths)
    return StepArrays(
        episode_id=np.repeat(np.arange(len(lengths)), [length + 1 for length in lengths]),
        step=step,
        observation=rng.normal(size=(count, 3)).astype(np.float32),
        action=action,
        reward=np.where(is_final, 0, rng.normal(size=count)),
        terminated=flags,
        truncated=np.isin(np.arange(count), ends - 1) & ~flags,
        is_final=is_final,
        policy_output=None,
    )


def note(episode_id: int, step: int, action: tuple[float, ...] | None = (1.0,), **fields: Any) -> Annotation:
    values: dict[str, Any] = {
        "implicit_reward": 0.5,
        "confidence": 0.8,
        "critical": True,
        "suggested_label": None,
        "rationale": None,
    }
    return Annotation(
        annotation_id=f"a{episode_id}-{step}",
        run_id="run",
        request_id=None,
        dataset_id="data",
        episode_id=episode_id,
        step=step,
        suggested_action=action,
        model="m",
        prompt_version=None,
        **{**values, **fields},
    )


def some_labels(steps: StepArrays, space: Space = DISCRETE) -> Labels:
    action = (3.0,) if space.is_discrete else (0.5, -1.5)
    notes = [note(0, 1, action), note(1, 0, action, confidence=0.2, implicit_reward=-1.0), note(1, 2, None)]
    return labels_from_annotations(notes, steps, space)


def test_annotations_become_rows_suggestions_and_weights() -> None:
    steps = make_steps([3, 4])

    labels = some_labels(steps)

    assert labels.rows.tolist() == [1, 4, 6]
    assert labels.suggestions.tolist() == [3, 3, steps.action[6]]
    assert labels.suggestions.dtype == np.int64
    assert labels.weights.tolist() == [0.8, 0.2, 0.0]
    assert labels.implicit_rewards.tolist() == [0.5, -1.0, 0.5]
    check_labels(labels, steps, DISCRETE)


def test_a_missing_confidence_counts_fully_and_a_missing_reward_not_at_all() -> None:
    labels = labels_from_annotations([note(0, 0, confidence=None, implicit_reward=None)], make_steps([2]), DISCRETE)

    assert labels.weights.tolist() == [1.0]
    assert labels.implicit_rewards.tolist() == [0.0]


def test_continuous_suggestions_keep_their_numbers() -> None:
    steps = make_steps([3, 4], space=TORQUES)

    labels = some_labels(steps, TORQUES)

    assert labels.suggestions[:2].tolist() == [[0.5, -1.5]] * 2
    np.testing.assert_array_equal(labels.suggestions[2], steps.action[6])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (note(0, 3), "episode 0, step 3 is at the final observation"),
        (note(0, 9), "no step 9"),
        (note(7, 0), "no episode 7"),
        (note(0, 1, (4.0,)), r"suggests \[4.0\]; one integer from 0 to 3 is allowed"),
        (note(0, 1, (-1.0,)), "one integer from 0 to 3"),
        (note(0, 1, (0.5,)), "one integer from 0 to 3"),
        (note(0, 1, (0.0, 1.0)), "one integer from 0 to 3"),
        (note(0, 1, (float("nan"),)), "one integer from 0 to 3"),
        (note(0, 1, confidence=1.5), "has confidence 1.5; 0 to 1 is allowed"),
        (note(0, 1, implicit_reward=-1.1), "has implicit reward -1.1"),
        (note(0, 1, implicit_reward=float("nan")), "has implicit reward nan"),
    ],
)
def test_an_impossible_annotation_is_refused_by_name(wrong: Annotation, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        labels_from_annotations([note(0, 0), wrong], make_steps([3, 4]), DISCRETE)


def test_a_continuous_suggestion_outside_the_bounds_is_refused() -> None:
    steps = make_steps([3, 4], space=TORQUES)
    with pytest.raises(BadInput, match=r"2 numbers from \[-1.0, -2.0\] to \[1.0, 2.0\]"):
        labels_from_annotations([note(0, 0, (0.0, 2.5))], steps, TORQUES)
    with pytest.raises(BadInput, match="2 numbers"):
        labels_from_annotations([note(0, 0, (0.0,))], steps, TORQUES)


def test_labels_made_by_hand_are_checked() -> None:
    steps = make_steps([3])
    one = np.ones(1)
    with pytest.raises(BadInput, match="row 9"):
        check_labels(Labels(np.array([9]), np.array([1]), one, one), steps, DISCRETE)
    with pytest.raises(BadInput, match=r"suggestions of shape \(1,\)"):
        check_labels(Labels(np.array([0]), np.array([1, 2]), one, one), steps, DISCRETE)
    with pytest.raises(BadInput, match="row 0 suggests"):
        check_labels(Labels(np.array([0]), np.array([4]), one, one), steps, DISCRETE)


@pytest.mark.parametrize(("labelled", "dense"), [(9, False), (10, True), (20, True)])
def test_advice_is_dense_when_half_of_the_steps_have_a_suggestion(labelled: int, dense: bool) -> None:
    steps = make_steps([12, 8])
    rows = np.repeat(np.flatnonzero(~steps.is_final)[:labelled], 2)  # two annotators of each step are one step
    labels = Labels(rows, np.zeros(len(rows), np.int64), np.ones(len(rows)), np.zeros(len(rows)))

    assert covers_most_steps(labels, steps) is dense
    assert not covers_most_steps(dataclasses.replace(labels, weights=np.zeros(len(rows))), steps)


@pytest.mark.parametrize("space", [DISCRETE, TORQUES], ids=["discrete", "continuous"])
def test_every_arm_speaks_of_the_same_states_and_passes_the_same_checks(space: Space) -> None:
    steps = make_steps([3, 4], space=space)
    labels = some_labels(steps, space)
    for arm in ARMS:
        made = arm_labels(arm, labels, steps, space, np.random.default_rng(0))
        assert made.rows.tolist() == labels.rows.tolist()
        assert sorted(made.weights) == sorted(labels.weights)
        check_labels(made, steps, space)


def test_the_arm_without_labels_clones_the_log() -> None:
    steps = make_steps([3, 4])

    made = arm_labels("no_labels", some_labels(steps), steps, DISCRETE, np.random.default_rng(0))

    np.testing.assert_array_equal(made.suggestions, steps.action[made.rows])
    assert made.implicit_rewards.tolist() == [0, 0, 0]


def test_shuffling_moves_whole_notes() -> None:
    steps = make_steps([200])
    rng = np.random.default_rng(1)
    labels = Labels(np.arange(200), rng.integers(0, 4, 200), rng.random(200), rng.uniform(-1, 1, 200))

    made = arm_labels("shuffled", labels, steps, DISCRETE, np.random.default_rng(0))

    def notes(of: Labels) -> list[tuple[float, ...]]:
        return list(zip(of.suggestions, of.weights, of.implicit_rewards, strict=True))

    assert sorted(notes(made)) == sorted(notes(labels))
    assert sum(a == b for a, b in zip(notes(made), notes(labels), strict=True)) < 10


def test_random_suggestions_are_uniform_over_the_space() -> None:
    space = Space(kind="discrete", dtype="int64", size=1, n=3, start=5)
    steps = make_steps([9000])
    many = Labels(np.arange(9000), np.full(9000, 5), np.ones(9000), np.zeros(9000))

    made = arm_labels("random", many, steps, space, np.random.default_rng(0))

    np.testing.assert_allclose(np.bincount(made.suggestions)[5:] / 9000, 1 / 3, atol=0.02)


def test_an_unknown_arm_is_refused() -> None:
    steps = make_steps([3, 4])
    with pytest.raises(BadInput, match="Unknown arm 'oracle'"):
        arm_labels("oracle", some_labels(steps), steps, DISCRETE, np.random.default_rng(0))  # pyright: ignore


@pytest.mark.slow
def test_additive_relabelling_adds_the_mean_of_the_annotators_where_they_spoke() -> None:
    steps = make_steps([3, 4])
    labels = Labels(np.array([1, 4, 1]), np.zeros(3, np.int64), np.ones(3), np.array([1.0, -0.5, 0.0]))

    rewards = relabel_additive(steps, labels, weight=10)

    changed = rewards - steps.reward
    np.testing.assert_allclose(changed[[1, 4]], [5, -5])
    assert np.delete(changed, [1, 4]).tolist() == [0] * 7


def test_potential_shaping_pays_praise_at_once_and_takes_it_back_at_the_end() -> None:
    steps = make_steps([4])
    labels = Labels(np.array([1]), np.zeros(1, np.int64), np.ones(1), np.array([0.5]))

    shaping = relabel_potential(steps, labels, weight=10, gamma=0.9) - steps.reward

    np.testing.assert_allclose(shaping, [0, 0.9 * 5, 0.9 * 5 - 5, -5, 0])


@pytest.mark.slow
@settings(max_examples=full_or(60, 15), deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), gamma=st.floats(0.5, 1))
def test_potential_shaping_changes_no_terminated_return(data: st.DataObject, lengths: list[int], gamma: float) -> None:
    steps = make_steps(lengths)
    real = np.flatnonzero(~steps.is_final).tolist()
    rows = np.array(data.draw(st.lists(st.sampled_from(real), max_size=12)), np.int64)
    given_rewards = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=len(rows), max_size=len(rows))), np.float64)
    labels = Labels(rows, np.zeros(len(rows), np.int64), np.ones(len(rows)), given_rewards)

    shaped = relabel_potential(steps, labels, weight=7, gamma=gamma)

    for start, length in zip(steps.starts, steps.lengths, strict=True):
        episode = slice(start, start + length + 1)
        discounts = gamma ** np.arange(length + 1)
        assert discounts @ shaped[episode] == pytest.approx(discounts @ steps.reward[episode], abs=1e-9)
    assert (shaped[steps.is_final] == 0).all()


def test_a_truncated_episode_keeps_its_potential_for_the_bootstrap() -> None:
    steps = make_steps([3], terminated=[False])
    labels = Labels(np.array([2]), np.zeros(1, np.int64), np.ones(1), np.array([1.0]))

    shaping = relabel_potential(steps, labels, weight=1, gamma=0.9) - steps.reward

    np.testing.assert_allclose(shaping, [0, 0, 0.9, 0])


def graded(steps: StepArrays, potential: list[float]) -> Labels:
    nothing = np.zeros(0)
    return Labels(nothing.astype(np.int64), nothing.astype(np.int64), nothing, nothing, potential=np.array(potential))


def test_a_potential_shapes_every_step_in_units_of_the_returns_and_ends_where_the_episode_does() -> None:
    steps = make_steps([2, 1], terminated=[True, False])
    config = RefineConfig(mode="R", gamma=0.5, reward_weight=3.0)
    unit = 3.0 * scale_of_returns(steps, steps.reward, gamma=0.5)

    shaped = relabel(steps, graded(steps, [1.0, -2.0, 7.0, 0.5, 4.0]), config).rewards - steps.reward

    np.testing.assert_allclose(shaped / unit, [0.5 * -2 - 1, 0.5 * 0 + 2, 0, 0.5 * 4 - 0.5, 0])


def test_a_state_whose_potential_has_no_value_counts_as_the_mean_and_is_counted() -> None:
    steps = make_steps([3], terminated=[False])
    config = RefineConfig(mode="R", gamma=0.5)
    found = relabel(steps, graded(steps, [1.0, np.nan, np.inf, 1.0]), config)
    unit = scale_of_returns(steps, steps.reward, gamma=0.5)
    np.testing.assert_allclose((found.rewards - steps.reward) / unit, [-1, 0, 0.5, 0])
    assert found.without_value == 2
    assert "the potential has no value in 2 states; its mean stands there" in found.warnings
    assert relabel(steps, graded(steps, [1.0, 0.0, 0.0, 1.0]), config).without_value == 0


@pytest.mark.parametrize("cap", [None, 0.25])
def test_a_potential_shifts_all_terminated_returns_from_a_state_alike(cap: float | None) -> None:
    steps, gamma = make_steps([5, 5, 5]), 0.9
    rng = np.random.default_rng(3)
    potential = rng.normal(size=len(steps))
    potential[steps.starts] = 0.75
    shaped = relabel(steps, graded(steps, potential.tolist()), RefineConfig(mode="R", gamma=gamma, reward_cap=cap))
    discounts = gamma ** np.arange(6)
    gains = [discounts @ (shaped.rewards - steps.reward)[start : start + 6] for start in steps.starts]
    np.testing.assert_allclose(gains, gains[0])
    assert gains[0] < 0


TREE_DEPTH, MOVES_PER_NODE = 4, 2


def every_path() -> tuple[StepArrays, np.ndarray]:
    """A tree of decisions, seen once along every path: histories are states, so a label is a function of the state.

    Returns the steps, and for each row which decision it is: the number of its history and action, -1 on final rows.
    """
    paths = np.array(list(np.ndindex(*[MOVES_PER_NODE] * TREE_DEPTH)))
    steps = make_steps([TREE_DEPTH] * len(paths))
    rewards = np.random.default_rng(3).normal(size=(TREE_DEPTH, MOVES_PER_NODE**TREE_DEPTH))
    decisions = np.full(len(steps), -1)
    for path, start in zip(paths, steps.starts, strict=True):
        for depth, action in enumerate(path):
            history = int("".join(map(str, path[: depth + 1])), MOVES_PER_NODE)
            steps.action[start + depth] = action
            steps.reward[start + depth] = rewards[depth, history]
            decisions[start + depth] = depth * 100 + history
    return steps, decisions


def best_actions(rewards: np.ndarray, decisions: np.ndarray, gamma: float) -> list[int]:
    """The optimal policy by value iteration over the tree: the best action after every history, breadth first."""
    reward_of = dict(zip(decisions.tolist(), rewards.tolist(), strict=True))
    values = np.zeros(MOVES_PER_NODE**TREE_DEPTH)
    policy: list[int] = []
    for depth in reversed(range(TREE_DEPTH)):
        of_actions = np.array([reward_of[depth * 100 + h] for h in range(len(values))]) + gamma * values
        of_actions = of_actions.reshape(-1, MOVES_PER_NODE)
        policy = [*of_actions.argmax(axis=1).tolist(), *policy]
        values = of_actions.max(axis=1)
    return policy


@pytest.mark.parametrize("cap", [None, 0.5])
def test_potential_shaping_keeps_the_optimal_policy_and_additive_relabelling_does_not(cap: float | None) -> None:
    steps, decisions = every_path()
    grades = np.random.default_rng(8).uniform(-1, 1, decisions.max() + 1)
    praised = np.flatnonzero((decisions >= 0) & (grades[decisions] > -0.4))  # not everything is annotated
    labels = Labels(praised, steps.action[praised], np.ones(len(praised)), grades[decisions[praised]])
    before = best_actions(steps.reward, decisions, 0.9)
    after = {
        shaping: relabel(
            steps, labels, RefineConfig(mode="R", shaping=shaping, reward_weight=8, reward_cap=cap, gamma=0.9)
        ).rewards
        for shaping in ("potential", "additive")
    }

    assert len(before) == 2**TREE_DEPTH - 1
    assert np.abs(after["potential"] - steps.reward).max() > 0.3
    assert best_actions(after["potential"], decisions, 0.9) == before
    assert best_actions(after["additive"], decisions, 0.9) != before


@pytest.mark.parametrize("shaping", ["additive", "potential"])
def test_a_cap_is_in_units_of_the_environments_own_rewards(shaping: str) -> None:
    steps = make_steps([6, 6])
    labels = Labels(np.array([1, 3, 8]), np.zeros(3, np.int64), np.ones(3), np.array([1.0, -1.0, 0.01]))
    size = np.sqrt(np.mean(steps.reward[~steps.is_final] ** 2))
    options: dict[str, Any] = {"mode": "R", "shaping": shaping, "reward_weight": 50.0, "gamma": 0.9}

    free = relabel(steps, labels, RefineConfig(**options)).rewards - steps.reward
    capped = relabel(steps, labels, RefineConfig(**options, reward_cap=0.7)).rewards - steps.reward

    assert np.abs(free).max() > 40
    assert np.abs(capped).max() <= 0.7 * size + 1e-12
    assert np.abs(capped).max() > 0.6 * size
    if shaping == "additive":
        np.testing.assert_allclose(capped[[1, 3, 8]], [0.7 * size, -0.7 * size, 0.5])


def test_a_cap_in_units_of_rewards_that_are_all_zero_is_refused() -> None:
    steps = make_steps([3])
    steps.reward[:] = 0
    labels = Labels(np.array([1]), np.zeros(1, np.int64), np.ones(1), np.ones(1))
    with pytest.raises(BadInput, match="All logged rewards are 0"):
        relabel(steps, labels, RefineConfig(mode="R", reward_cap=1.0))


def test_flooding_is_the_annotators_share_of_the_absolute_rewards_of_the_median_annotated_episode() -> None:
    """Episodes of four rewards of 1; the annotator gives little to the first, some to the second, much to the third."""
    steps = make_steps([4, 4, 4, 4])
    steps.reward[:] = np.where(steps.is_final, 0, 1)
    labels = Labels(np.array([0, 5, 10, 11]), np.zeros(4, np.int64), np.ones(4), np.array([0.037, 0.333, -1.0, 1.0]))

    quiet = relabel(steps, labels, RefineConfig(mode="R", reward_weight=6.0))
    loud = relabel(steps, labels, RefineConfig(mode="R", reward_weight=60.0))

    assert quiet.share == pytest.approx(6 * 0.333 / (4 + 6 * 0.333))
    assert quiet.warnings == ()
    assert loud.share == pytest.approx(60 * 0.333 / (4 + 60 * 0.333))
    assert loud.warnings[0].startswith("reward flooding: in the median annotated episode 83%")
    assert relabel(steps, labels, RefineConfig(mode="R", reward_weight=60.0, reward_cap=0.5)).warnings == ()
