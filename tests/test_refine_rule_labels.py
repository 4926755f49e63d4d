"""Labels from rules, and the placebos that are made of rules rather than of steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_refine_labels import DISCRETE, TORQUES, make_steps

from refine.labels.labels import Labels, arm_labels
from refine.labels.rule_labels import RuleLabels, labels_from_rules, place_rules, rule_arm_labels
from storage.annotations.rules import Matches, Rule
from storage.errors import BadInput

STEPS = make_steps([5, 4])


def rule(position: int, action: tuple[float | None, ...], confidence: float | None = 0.5, **changes: Any) -> Rule:
    fields: dict[str, Any] = {"run_id": "run", "request_id": None} | changes
    return Rule(
        rule_id=f"u_{fields['run_id']}_{position}",
        dataset_id="data",
        position=position,
        predicate=f"x < {position}",
        suggested_action=action,
        suggested_label="",
        confidence=confidence,
        rationale=None,
        model="m",
        prompt_version=None,
        **fields,
    )


def matches(*found: tuple[int, int, int]) -> Matches:
    return Matches(*np.array(found, np.int64).T)


RULES = [rule(0, (3.0,), 0.9), rule(1, (1.0,), None), rule(0, (2.0,), run_id="second")]
FOUND = matches((0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 0, 0), (1, 3, 2))


def some_labels() -> RuleLabels:
    return labels_from_rules(RULES, place_rules(RULES, FOUND, STEPS), STEPS, DISCRETE)


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


def test_rules_that_all_say_the_same_cannot_be_shuffled() -> None:
    rules = [rule(0, (3.0,)), rule(1, (3.0,))]
    labels = labels_from_rules(rules, place_rules(rules, matches((0, 1, 0), (0, 2, 1)), STEPS), STEPS, DISCRETE)
    arm = rule_arm_labels("shuffled", labels, STEPS, DISCRETE, np.random.default_rng(0))
    assert arm.suggestions.tolist() == [3, 3]


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
    steps = make_steps([5, 4], space=TORQUES)
    rules = [rule(0, (0.5, None)), rule(1, (-0.5, 1.0))]
    found = matches((0, 1, 0), (0, 2, 1), (1, 0, 0))
    labels = labels_from_rules(rules, place_rules(rules, found, steps), steps, TORQUES)
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
    ("action", "problem"), [((7.0,), "suggests"), ((1.0, 2.0), "no action"), ((0.5,), "no action")]
)
def test_an_action_outside_of_the_space_is_refused(action: tuple[float, ...], problem: str) -> None:
    rules = [rule(0, action)]
    with pytest.raises(BadInput, match=problem):
        labels_from_rules(rules, place_rules(rules, matches((0, 1, 0)), STEPS), STEPS, DISCRETE)
