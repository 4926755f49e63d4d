"""Labels that come from corrective rules: every matched step has the action of the rule that decides there.

The placebos keep what makes rules easy to learn, that like states get like actions: they change rules, not steps.
Exchanging actions step by step would leave noise without any pattern, which is too weak an opponent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.annotations import Matches, Rule
from storage.datasets import StepArrays
from storage.errors import BadInput
from storage.schema import Array, Space

from ..policies import action_bounds
from .labels import Arm, Labels, arm_labels, check_labels

_TRIES = 100


@dataclass(frozen=True)
class RuleLabels(Labels):
    """L labels that R rules have decided; two lists of rules that match a step give it two labels."""

    rules: NDArray[np.int64]  # (L,) which rule decided
    actions: NDArray[np.float64]  # (R, m) what each rule says; NaN: this dimension stays as it was logged
    confidences: NDArray[np.float64]  # (R,)


@dataclass(frozen=True)
class Placed:
    """Rules beside the steps of their dataset; M matches."""

    rows: NDArray[np.int64]  # (M,) the step's row
    rules: NDArray[np.int64]  # (M,) place of the rule
    decides: NDArray[np.bool_]  # (M,) whether it is the first of its list that matches the step


def place_rules(rules: Sequence[Rule], matches: Matches, steps: StepArrays) -> Placed:
    """Find which rule decides where: of one list the first that matches, each list for itself.

    Args:
        rules: of one dataset, list by list, each in its order.
        matches: of these rules.
        steps: that dataset's steps.
    """
    rows = steps.rows_of(matches.episode_id, matches.step)
    names = list(dict.fromkeys(rule.list_id for rule in rules))
    lists = np.array([names.index(rule.list_id) for rule in rules], np.int64)
    _, first = np.unique(rows * len(names) + lists[matches.rule], return_index=True)
    decides = np.zeros(len(rows), np.bool_)
    decides[first] = True
    return Placed(rows, matches.rule, decides)


def labels_from_rules(rules: Sequence[Rule], placed: Placed, steps: StepArrays, action_space: Space) -> RuleLabels:
    """Turn the rules that decide into labels; a missing confidence counts as 1, and there are no implicit rewards.

    Args:
        rules: of one dataset.
        placed: from `place_rules`.
        steps: that dataset's steps.
        action_space: of its environment.

    Raises:
        BadInput: naming a rule whose action is none of the action space.
    """
    for rule in rules:
        given = [x for x in rule.suggested_action if x is not None]
        broken = action_space.is_discrete and not all(float(x).is_integer() for x in given)
        if broken or not given or len(rule.suggested_action) != action_space.size:
            raise BadInput(f"The rule `{rule.predicate}` suggests {list(rule.suggested_action)}, which is no action.")
    actions = np.array([[np.nan if x is None else x for x in rule.suggested_action] for rule in rules], np.float64)
    confidences = np.array([1.0 if rule.confidence is None else rule.confidence for rule in rules], np.float64)
    rows, deciding = placed.rows[placed.decides], placed.rules[placed.decides]
    labels = _apply(actions, confidences, rows, deciding, steps=steps, space=action_space)
    check_labels(labels, steps, action_space)
    return labels


def rule_arm_labels(arm: Arm, labels: Labels, steps: StepArrays, space: Space, rng: np.random.Generator) -> Labels:
    """The labels of one arm; for labels of single steps this is `arm_labels`.

    - `labels` and `no_labels`: as there.
    - `shuffled`: each rule gets the action and the confidence of another one; its states stay together.
    - `random`: each rule gets one uniformly random action for all its states.
    """
    if not isinstance(labels, RuleLabels) or arm not in ("shuffled", "random"):
        return arm_labels(arm, labels, steps, space, rng)
    if arm == "shuffled":
        order = _exchange(labels, rng)
        actions, confidences = labels.actions[order], labels.confidences[order]
    else:
        actions, confidences = _draw(labels, steps, space, rng), labels.confidences
    return _apply(actions, confidences, labels.rows, labels.rules, steps=steps, space=space)


def _apply(
    actions: NDArray[np.float64],
    confidences: NDArray[np.float64],
    rows: NDArray[np.int64],
    rules: NDArray[np.int64],
    *,
    steps: StepArrays,
    space: Space,
) -> RuleLabels:
    logged = np.array(steps.action[rows], np.float64).reshape(len(rows), space.size)
    said = actions.reshape(-1, space.size)[rules]
    suggestions: Array = np.where(np.isnan(said), logged, said)
    if space.is_discrete:
        suggestions = suggestions[:, 0].astype(np.int64)
    return RuleLabels(rows, suggestions, confidences[rules], np.zeros(len(rows)), rules, actions, confidences)


def _exchange(labels: RuleLabels, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of the rules that decide anywhere, in which not all keep their action, if there is one."""
    used = np.unique(labels.rules)
    order = np.arange(len(labels.actions))
    for _ in range(_TRIES):
        order[used] = rng.permutation(used)
        if not np.array_equal(labels.actions[order], labels.actions, equal_nan=True):
            break
    return order


def _draw(labels: RuleLabels, steps: StepArrays, space: Space, rng: np.random.Generator) -> NDArray[np.float64]:
    """One random action per rule, in the dimensions that the rule speaks of."""
    shape = labels.actions.shape
    if space.is_discrete:
        return rng.integers(space.start, space.start + int(space.n or 1), shape).astype(np.float64)
    low, high = action_bounds(space)
    logged = steps.action[~steps.is_final]
    low, high = (np.where(np.isfinite(b), b, e) for b, e in ((low, logged.min(axis=0)), (high, logged.max(axis=0))))
    return np.where(np.isnan(labels.actions), np.nan, rng.uniform(low, high, shape))
