"""Labels from rules, and the placebos that are made of rules rather than of steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_refine_labels import DISCRETE, TORQUES, make_steps

from refine.labels.labels import Arm, Labels, arm_labels
from refine.labels.rule_labels import RuleLabels, labels_from_rules, rule_arm_labels, rule_arm_lists
from refine.policies.rule_lists import CompiledRules
from storage.annotations.rules import Rule, RuleList
from storage.datasets.columns import StepArrays
from storage.errors import BadInput
from storage.formulas import Term
from storage.schema import Space


def numbered(lengths: list[int], space: Space = DISCRETE) -> StepArrays:
    """Steps whose first component is the number of their row."""
    steps = make_steps(lengths, space=space)
    steps.observation[:, 0] = np.arange(len(steps))
    return steps


STEPS = numbered([5, 4])


def rule(
    position: int, predicate: str, action: tuple[float | None, ...], confidence: float | None = 0.5, **changes: Any
) -> Rule:
    fields: dict[str, Any] = {"run_id": "run", "request_id": None} | changes
    return Rule(
        rule_id=f"u_{fields['run_id']}_{position}",
        dataset_id="data",
        position=position,
        predicate=predicate,
        suggested_action=action,
        suggested_label="",
        confidence=confidence,
        rationale=None,
        model="m",
        prompt_version=None,
        **fields,
    )


def compiled(
    *rules: Rule, steps: StepArrays = STEPS, space: Space = DISCRETE, terms: tuple[Term, ...] = ()
) -> CompiledRules:
    run = rules[0].run_id
    names = tuple(f"x{n}" for n in range(steps.observation.shape[1]))
    return CompiledRules(RuleList(run, run, None, "data", "m", None, rules=rules, terms=terms), names, space)


FIRST = (rule(0, "x0 IN (1, 6)", (3.0,), 0.9), rule(1, "x0 IN (1, 2)", (1.0,), None))
SECOND = (rule(0, "x0 IN (1, 9)", (2.0,), run_id="second"),)


def some_labels() -> RuleLabels:
    return labels_from_rules([compiled(*FIRST), compiled(*SECOND)], STEPS, DISCRETE)


def test_of_one_list_the_first_rule_that_matches_decides_and_each_list_has_its_say() -> None:
    labels = some_labels()
    assert labels.rows.tolist() == [1, 1, 2, 6, 9]
    assert labels.suggestions.tolist() == [3, 2, 1, 3, 2]
    assert labels.weights.tolist() == [0.9, 0.5, 1.0, 0.9, 0.5]
    assert labels.rules.tolist() == [0, 2, 1, 0, 2]
    assert labels.implicit_rewards.tolist() == [0.0] * 5


def test_shuffling_gives_each_rule_the_action_of_another_one_and_keeps_its_states_together() -> None:
    labels = some_labels()
    seen: set[tuple[int, ...]] = set()
    for seed in range(40):
        arm = rule_arm_labels("shuffled", labels, STEPS, DISCRETE, np.random.default_rng(seed))
        assert arm.rows.tolist() == labels.rows.tolist()
        said = {int(r): (int(a), float(w)) for r, a, w in zip(labels.rules, arm.suggestions, arm.weights, strict=True)}
        assert sorted(said.values()) == [(1, 1.0), (2, 0.5), (3, 0.9)]
        assert [said[int(r)][0] for r in labels.rules] == arm.suggestions.tolist()
        seen.add(tuple(said[r][0] for r in range(3)))
    assert (3, 1, 2) not in seen  # which would be no placebo
    assert len(seen) == 5


def test_rules_that_all_say_the_same_are_shuffled_like_labels_of_single_steps() -> None:
    steps = numbered([5, 4], TORQUES)
    lists = [compiled(rule(0, "x0 > 0", (None, None), formulas=("x1", "x2")), steps=steps, space=TORQUES)]
    labels = labels_from_rules(lists, steps, TORQUES)
    arm = rule_arm_labels("shuffled", labels, steps, TORQUES, np.random.default_rng(0))
    assert arm.suggestions.tolist() != labels.suggestions.tolist()
    assert sorted(arm.suggestions.tolist()) == sorted(labels.suggestions.tolist())


def test_random_actions_are_drawn_for_rules_not_for_steps() -> None:
    labels = some_labels()
    drawn = set()
    for seed in range(60):
        arm = rule_arm_labels("random", labels, STEPS, DISCRETE, np.random.default_rng(seed))
        assert arm.suggestions[0] == arm.suggestions[3]
        assert arm.suggestions[1] == arm.suggestions[4]
        assert arm.weights.tolist() == labels.weights.tolist()
        drawn.add(int(arm.suggestions[0]))
    assert drawn == {0, 1, 2, 3}


def test_the_other_arms_and_single_labels_are_as_they_were() -> None:
    labels = some_labels()
    rng = np.random.default_rng(0)
    cloned = rule_arm_labels("no_labels", labels, STEPS, DISCRETE, rng)
    assert cloned.suggestions.tolist() == STEPS.action[labels.rows].tolist()
    assert rule_arm_labels("labels", labels, STEPS, DISCRETE, rng) is labels
    plain = Labels(labels.rows, labels.suggestions, labels.weights, labels.implicit_rewards)
    one, other = np.random.default_rng(4), np.random.default_rng(4)
    for arm in ("shuffled", "random"):
        left = rule_arm_labels(arm, plain, STEPS, DISCRETE, one)
        assert left.suggestions.tolist() == arm_labels(arm, plain, STEPS, DISCRETE, other).suggestions.tolist()


def test_a_dimension_that_stays_as_logged_does_so_in_every_arm() -> None:
    steps = numbered([5, 4], TORQUES)
    rules = (rule(0, "x0 IN (1, 6)", (0.5, None)), rule(1, "x0 = 2", (-0.5, 1.0)))
    labels = labels_from_rules([compiled(*rules, steps=steps, space=TORQUES)], steps, TORQUES)
    logged = steps.action[labels.rows].astype(np.float64)
    assert labels.suggestions[:, 0].tolist() == [0.5, -0.5, 0.5]
    assert labels.suggestions[[0, 2], 1].tolist() == logged[[0, 2], 1].tolist()
    assert labels.suggestions[1, 1] == 1.0
    shuffled = rule_arm_labels("shuffled", labels, steps, TORQUES, np.random.default_rng(0))
    assert shuffled.suggestions[0].tolist() == [-0.5, 1.0]
    assert shuffled.suggestions[1].tolist() == [0.5, logged[1, 1]]
    drawn = rule_arm_labels("random", labels, steps, TORQUES, np.random.default_rng(0))
    assert drawn.suggestions[[0, 2], 1].tolist() == logged[[0, 2], 1].tolist()
    assert drawn.suggestions[0, 0] == drawn.suggestions[2, 0] != 0.5


@pytest.mark.parametrize(
    ("action", "problem"), [((7.0,), "suggests"), ((1.0, 2.0), "not an action"), ((0.5,), "not an action")]
)
def test_an_action_outside_of_the_space_is_refused(action: tuple[float, ...], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        labels_from_rules([compiled(rule(0, "x0 = 1", action))], STEPS, DISCRETE)


def test_formulas_read_the_state_the_one_before_and_terms_and_label_nothing_without_a_value() -> None:
    steps = numbered([5, 4], TORQUES)
    terms = (Term("move", "x1 - previous.x1"),)
    rules = (rule(0, "x0 < 3", (None, 0.25), formulas=("2 * move", None)), rule(1, "x0 >= 0", (0.5, None)))
    labels = labels_from_rules([compiled(*rules, steps=steps, space=TORQUES, terms=terms)], steps, TORQUES)
    assert labels.without_value == 1  # step 0 of the first episode has no step before it
    assert labels.rows.tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    x1 = steps.observation[:, 1].astype(np.float64)
    moves = np.clip(2 * (x1[[1, 2]] - x1[[0, 1]]), -1, 1)
    np.testing.assert_allclose(labels.suggestions[:2], np.stack([moves, [0.25, 0.25]], axis=1))
    assert labels.suggestions[2:, 0].tolist() == [0.5] * 6
    with pytest.raises(BadInput, match="decide in none of the 9 steps"):
        labels_from_rules([compiled(rule(0, "x0 > 99", (0.5, 0.5)), steps=steps, space=TORQUES)], steps, TORQUES)
    nowhere = rule(0, "x0 >= 0", (None, 0.5), formulas=("x1 / 0 - x1 / 0", None))
    with pytest.raises(BadInput, match="no value in any of the 9 steps"):
        labels_from_rules([compiled(nowhere, steps=steps, space=TORQUES)], steps, TORQUES)


def test_permuted_formulas_read_other_components_of_the_same_unit_in_the_states_of_their_rules() -> None:
    steps = numbered([5, 4], TORQUES)
    rules = (rule(0, "x0 < 4", (None, 0.25), formulas=("x1 / 4", None)), rule(1, "x0 >= 4", (0.125, -1.0)))
    labels = labels_from_rules([compiled(*rules, steps=steps, space=TORQUES)], steps, TORQUES)
    x = steps.observation[labels.rows].astype(np.float64)
    ruled = labels.rules == 0
    seen: set[str] = set()
    for seed in range(20):
        arm = rule_arm_labels(
            "permuted", labels, steps, TORQUES, np.random.default_rng(seed), units={"x0": "m", "x1": "", "x2": ""}
        )
        assert arm.rows.tolist() == labels.rows.tolist()
        assert arm.suggestions[~ruled].tolist() == labels.suggestions[~ruled].tolist()
        others = {"-x1": -x[ruled, 1], "x2": x[ruled, 2], "-x2": -x[ruled, 2]}
        fits = [n for n, other in others.items() if np.allclose(arm.suggestions[ruled, 0], np.clip(other / 4, -1, 1))]
        assert len(fits) == 1
        seen |= set(fits)
    assert seen == {"-x1", "x2", "-x2"}


@pytest.mark.parametrize("arm", ["labels", "shuffled", "random", "permuted"])
def test_the_lists_of_an_arm_say_what_its_labels_say(arm: Any) -> None:
    steps = numbered([5, 4], TORQUES)
    steps.observation[:, 1:] = np.random.default_rng(1).uniform(-1, 1, steps.observation[:, 1:].shape)
    first = rule(0, "x0 > 4", (None, 0.5), formulas=("x1 + previous.x2", None))
    lists = [compiled(first, rule(1, "x1 > 0", (0.25, None), run_id="run"), steps=steps, space=TORQUES)]
    labels = labels_from_rules(lists, steps, TORQUES)
    for seed in range(5):
        asked = (arm, labels, steps, TORQUES)
        played = rule_arm_lists(*asked, np.random.default_rng(seed))
        assert played is not None
        said = labels_from_rules(played, steps, TORQUES)
        wanted = rule_arm_labels(*asked, np.random.default_rng(seed))
        there = np.isin(wanted.rows, said.rows) & (wanted.weights > 0)
        assert there.sum() > 3
        assert wanted.suggestions[there].tolist() == said.suggestions[np.isin(said.rows, wanted.rows[there])].tolist()


def test_no_labels_and_a_single_rule_that_is_shuffled_have_no_list_to_play() -> None:
    labels = labels_from_rules([compiled(rule(0, "x0 > 2", (1.0,)))], STEPS, DISCRETE)
    for arm in ("no_labels", "shuffled"):
        assert rule_arm_lists(arm, labels, STEPS, DISCRETE, np.random.default_rng(0)) is None


def graded(potential: str | None, *, steps: StepArrays = STEPS, run: str = "run") -> CompiledRules:
    made = compiled(rule(0, "x0 >= 0", (1.0,), run_id=run), rule(1, "x0 < 0", (2.0,), run_id=run), steps=steps)
    return replace(made, listed=replace(made.listed, potential=potential))


def test_a_potential_has_mean_0_and_spread_1_and_of_several_lists_the_mean_counts() -> None:
    acted = ~STEPS.is_final
    x = STEPS.observation.astype(np.float64)
    labels = labels_from_rules([graded("5 * x1 - 2")], STEPS, DISCRETE, shaped=True)
    one = (x[:, 1] - x[acted, 1].mean()) / x[acted, 1].std()
    assert labels.potential is not None
    np.testing.assert_allclose(labels.potential, one)
    huge = labels_from_rules([graded("x1 * 1e300")], STEPS, DISCRETE, shaped=True).potential
    assert huge is not None
    np.testing.assert_allclose(huge, one)
    lists = [graded("5 * x1 - 2"), graded("-x2", run="second"), graded(None, run="third")]
    both = labels_from_rules(lists, STEPS, DISCRETE, shaped=True).potential
    assert both is not None
    np.testing.assert_allclose(both, (one - (x[:, 2] - x[acted, 2].mean()) / x[acted, 2].std()) / 2)


def test_a_potential_counts_only_where_rewards_are_learnt_and_then_it_decides_the_training() -> None:
    plain = labels_from_rules([graded("x1")], STEPS, DISCRETE)
    assert plain.potential is None
    assert plain.identity == labels_from_rules([graded("x2")], STEPS, DISCRETE).identity
    one, other = (labels_from_rules([graded(text)], STEPS, DISCRETE, shaped=True) for text in ("x1", "2 * x1"))
    assert "potential" in one.identity
    assert one.identity != other.identity != plain.identity


def test_where_a_potential_has_no_value_there_is_none_and_a_constant_one_is_refused() -> None:
    labels = labels_from_rules([graded("ln(x0 - 2)")], STEPS, DISCRETE, shaped=True)
    assert labels.potential is not None
    assert np.isfinite(labels.potential).tolist() == [False] * 3 + [True] * 8
    for text in ("0 * x1", "x1 / 0"):
        with pytest.raises(BadInput, match="has no value in any step, or the same value in all"):
            labels_from_rules([graded(text)], STEPS, DISCRETE, shaped=True)


def test_the_placebos_of_a_potential_are_its_negative_other_components_and_a_random_function() -> None:
    labels = labels_from_rules([graded("x1")], STEPS, DISCRETE, shaped=True)
    own, acted = labels.potential, ~STEPS.is_final
    assert own is not None

    def drawn(arm: Arm, draw: int, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        return rule_arm_labels(arm, labels, STEPS, DISCRETE, rng, draw=draw).potential

    assert drawn("no_labels", 0) is None
    np.testing.assert_array_equal(drawn("labels", 0), own)
    np.testing.assert_array_equal(drawn("shuffled", 0), -own)
    others: list[tuple[Arm, int]] = [("shuffled", 1), ("shuffled", 2), ("permuted", 0), ("random", 0), ("random", 1)]
    for arm, draw in others:
        for seed in range(5):
            other = drawn(arm, draw, seed)
            assert not np.allclose(other, own)
            assert (other[acted].mean(), other[acted].std()) == (pytest.approx(0), pytest.approx(1))


def test_a_potential_of_the_only_component_is_exchanged_between_states_where_its_negative_says_nothing() -> None:
    steps = replace(STEPS, observation=np.arange(len(STEPS)) % 4)
    labels = labels_from_rules(
        [graded("greatest(x0, 1)", steps=replace(steps, observation=steps.observation[:, None]))],
        steps,
        DISCRETE,
        shaped=True,
    )
    arm = rule_arm_labels("shuffled", labels, steps, DISCRETE, np.random.default_rng(1), draw=1)
    assert arm.potential is not None
    assert labels.potential is not None
    assert sorted(set(arm.potential)) == sorted(set(labels.potential))
    pairs = {(float(a), float(b)) for a, b in zip(labels.potential, arm.potential, strict=True)}
    assert len(pairs) == 3
    drawn = rule_arm_labels("random", labels, steps, DISCRETE, np.random.default_rng(1)).potential
    assert drawn is not None
    assert len(set(drawn)) == 4
