"""Labels that come from lists of rules: every step where a list decides has the action of the rule that does.

The placebos keep what makes rules easy to learn, that like states get like actions: they change rules, not steps.
Exchanging actions step by step would leave noise without any pattern, which is too weak an opponent. Potentials, how
good states are by the lists, are on one scale, and have placebos of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.catalog import component_columns
from storage.datasets import StepArrays
from storage.errors import BadInput
from storage.schema import Array, Space, sha256_bytes

from ..policies import CompiledRules, States
from .labels import Arm, Labels, arm_labels, check_labels, finite_bounds

CHUNK = 65_536  # rows whose numbers are in memory at once
_TRIES = 100
Potential = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class RuleLabels(Labels):
    """L labels that R rules have decided; two lists of rules that match a step give it two labels."""

    lists: tuple[CompiledRules, ...]
    rules: NDArray[np.int64]  # (L,) which rule decided, counted over all lists
    without_value: int  # steps where a rule decides whose formula has no value, so that they have no label

    @property
    def identity(self) -> dict[str, str]:
        """Also of the rules themselves, which decide the placebos."""
        listed: list[object] = [
            [c.listed.terms, [(r.predicate, r.suggested_action, r.formulas) for r in c.listed.rules]]
            for c in self.lists
        ]
        potentials = [] if self.potential is None else [[c.listed.potential for c in self.lists]]
        return super().identity | {"lists": sha256_bytes(repr([*listed, *potentials]).encode())}

    @property
    def has_formulas(self) -> bool:
        """Whether an action is computed from the state."""
        return any(compiled.listed.has_formulas for compiled in self.lists)


def labels_from_rules(
    lists: Sequence[CompiledRules], steps: StepArrays, action_space: Space, *, shaped: bool = False
) -> RuleLabels:
    """Turn what lists of rules say of a dataset's steps into labels; there are no implicit rewards.

    Args:
        lists: of the dataset's environment; each decides for itself.
        steps: the dataset's steps.
        action_space: of its environment.
        shaped: whether the potentials of those lists that have one count, for shaping rewards.

    Raises:
        BadInput: if no rule decides anywhere, or a potential that counts is the same everywhere.
    """
    acted = np.flatnonzero(~steps.is_final)
    offsets = np.cumsum([0, *(len(compiled.listed.rules) for compiled in lists)])
    firsts = zip(lists, offsets.tolist(), strict=False)
    parts = [part for compiled, first in firsts for part in _ask(compiled, first, acted, steps, action_space)]
    if not (decided := sum(part.decided for part in parts)):
        ids = ", ".join(compiled.listed.list_id for compiled in lists)
        raise BadInput(f"The rules of {ids} decide in none of the {len(acted)} steps.")
    rows, rules, suggestions = (_join(parts, name) for name in ("rows", "rules", "suggestions"))
    if not len(rows):
        raise BadInput(f"The formulas have no value in any of the {decided} steps where their rules decide.")
    if len(lists) > 1:
        order = np.lexsort((rules, rows))
        rows, rules, suggestions = rows[order], rules[order], suggestions[order]
    graded = [compiled for compiled in lists if shaped and compiled.listed.potential is not None]
    labels = RuleLabels(
        rows,
        suggestions,
        np.concatenate([compiled.confidences for compiled in lists])[rules],
        np.zeros(len(rows)),
        lists=tuple(lists),
        rules=rules,
        without_value=decided - len(rows),
        potential=find_potential(graded, steps) if graded else None,
    )
    check_labels(labels, steps, action_space)
    return labels


def rule_arm_labels(
    arm: Arm,
    labels: Labels,
    steps: StepArrays,
    space: Space,
    rng: np.random.Generator,
    *,
    units: Mapping[str, str] | None = None,
    draw: int = 0,
) -> Labels:
    """The labels of one arm; for labels of single steps this is `arm_labels`.

    - `labels` and `no_labels`: as there.
    - `shuffled`: each rule gets the action and the confidence of another one; its states stay together. Where there is
      no other action, the labels change places as those of single steps do.
    - `random`: each rule gets one uniformly random action for all its states.
    - `permuted`: each formula reads, in place of each component, another one of the same unit, or its negative.

    A potential is left out in `no_labels`, negated in the first draw of `shuffled`, computed from other components in
    its later ones and in `permuted`, and a random function of the state in `random`.

    Args:
        arm: which.
        labels: of the annotator.
        steps: their dataset.
        space: the action space.
        rng: of the draw.
        units: of the components' columns, for `permuted`; all alike when None.
        draw: which of an arm that is drawn several times.
    """
    if not isinstance(labels, RuleLabels):
        return arm_labels(arm, labels, steps, space, rng)
    units = units or {}
    if arm == "shuffled":
        made = _shuffle(labels, steps, space, rng)
    elif arm == "random":
        made = _randomise(labels, steps, space, rng)
    elif arm == "permuted":
        made = _permute(labels, steps, space, rng, units)
    else:
        made = arm_labels(arm, labels, steps, space, rng)
    if labels.potential is None or arm == "labels":
        return made
    return replace(made, potential=_placebo_potential(arm, labels, steps, rng, units=units, draw=draw))


def _placebo_potential(
    arm: Arm, labels: RuleLabels, steps: StepArrays, rng: np.random.Generator, *, units: Mapping[str, str], draw: int
) -> Potential | None:
    if labels.potential is None or arm == "no_labels":
        return None
    if arm == "random":
        return random_potential(labels.potential, steps, rng)
    if arm == "shuffled" and draw == 0:
        return -labels.potential
    graded = [compiled for compiled in labels.lists if compiled.listed.potential is not None]
    return permuted_potential(labels.potential, graded, steps, units, rng)


def rule_arm_lists(
    arm: Arm,
    labels: RuleLabels,
    steps: StepArrays,
    space: Space,
    rng: np.random.Generator,
    *,
    units: Mapping[str, str] | None = None,
) -> tuple[CompiledRules, ...] | None:
    """The lists behind the labels of one arm, of equal draws; arguments as for `rule_arm_labels`.

    Returns:
        Lists to be played; None for `no_labels`, for `shuffled` where no rule can get another action, and for
        `shuffled` of several lists, whose terms belong to them.
    """
    if arm == "labels":
        return labels.lists
    if arm == "permuted":
        return _permuted(labels, units or {}, rng)
    if arm == "random":
        drawn = iter(_draw_actions(labels, steps, space, rng).tolist())
        return tuple(_say_instead(c, [(_open(next(drawn)), None) for _ in c.listed.rules]) for c in labels.lists)
    order = _exchange(labels, rng) if arm == "shuffled" and len(labels.lists) == 1 else None
    if order is None:
        return None
    (compiled,) = labels.lists
    others = [compiled.listed.rules[int(other)] for other in order]
    return (_say_instead(compiled, [(other.suggested_action, other.formulas) for other in others]),)


def _say_instead(compiled: CompiledRules, suggested: Sequence[tuple[Any, Any]]) -> CompiledRules:
    """The same list whose rules suggest other actions and formulas."""
    pairs = zip(compiled.listed.rules, suggested, strict=True)
    rules = tuple(replace(rule, suggested_action=action, formulas=formulas) for rule, (action, formulas) in pairs)
    return replace(compiled, listed=replace(compiled.listed, rules=rules))


def _open(action: Sequence[float]) -> tuple[float | None, ...]:
    """An action as rules have it: None where it leaves a dimension as logged."""
    return tuple(None if np.isnan(x) else float(x) for x in action)


def _shuffle(labels: RuleLabels, steps: StepArrays, space: Space, rng: np.random.Generator) -> Labels:
    order = _exchange(labels, rng)
    if order is None:
        return arm_labels("shuffled", labels, steps, space, rng)
    weights = np.concatenate([compiled.confidences for compiled in labels.lists])
    suggestions, has_value = _suggest(labels.lists, labels.rows, order[labels.rules], steps, space)
    weights = np.where(has_value, weights[order][labels.rules], 0.0)
    return replace(labels, suggestions=suggestions, weights=weights)


def _randomise(labels: RuleLabels, steps: StepArrays, space: Space, rng: np.random.Generator) -> Labels:
    drawn = _draw_actions(labels, steps, space, rng)
    suggestions = _no_actions(len(labels), space)
    for part in (slice(start, start + CHUNK) for start in range(0, len(labels), CHUNK)):
        suggestions[part] = _filled(drawn[labels.rules[part]], labels.rows[part], steps, space)
    return replace(labels, suggestions=suggestions)


def _draw_actions(labels: RuleLabels, steps: StepArrays, space: Space, rng: np.random.Generator) -> NDArray[np.float64]:
    """One random action per rule, (R, m), in the dimensions that the rule speaks of; NaN in the others."""
    speaks = np.concatenate([compiled.speaks for compiled in labels.lists])
    if space.is_discrete:
        return rng.integers(space.start, space.start + int(space.n or 1), speaks.shape).astype(np.float64)
    return np.where(speaks, rng.uniform(*finite_bounds(space, steps), speaks.shape), np.nan)


def _permute(
    labels: RuleLabels, steps: StepArrays, space: Space, rng: np.random.Generator, units: Mapping[str, str]
) -> Labels:
    lists = _permuted(labels, units, rng)
    suggestions, has_value = _suggest(lists, labels.rows, labels.rules, steps, space)
    return replace(labels, suggestions=suggestions, weights=np.where(has_value, labels.weights, 0.0))


def _permuted(labels: RuleLabels, units: Mapping[str, str], rng: np.random.Generator) -> tuple[CompiledRules, ...]:
    columns = permute_columns(component_columns(labels.lists[0].component_names), units, rng)
    return tuple(replace(compiled, reads=columns) for compiled in labels.lists)


@dataclass
class _Part:
    """What a list says in some steps, where a rule decides and has a value; a column is None once it is joined."""

    decided: int  # steps where a rule decides
    rows: NDArray[np.int64] | None  # (L,)
    rules: NDArray[np.int64] | None  # (L,) counted over all lists
    suggestions: Array | None  # (L,) int64 when discrete, else (L, m) float64


def _ask(compiled: CompiledRules, first: int, rows: NDArray[np.int64], steps: StepArrays, space: Space) -> list[_Part]:
    """Ask a list, whose rules are counted from `first`, about rows of steps; each is looked at once."""

    def ask(part: NDArray[np.int64]) -> _Part:
        decisions = compiled.say(states_at(part, steps))
        there = np.flatnonzero(decisions.has_value)
        found = part[there]
        suggestions = _filled(decisions.actions[there], found, steps, space)
        return _Part(int(np.count_nonzero(decisions.rules >= 0)), found, decisions.rules[there] + first, suggestions)

    return _in_parts(rows, ask, compiled)


def _join(parts: Sequence[_Part], name: str) -> Array:
    """One column of all parts, which lose it, so that it is hardly ever in memory twice."""
    first = getattr(parts[0], name)
    joined, end = np.empty((sum(len(getattr(part, name)) for part in parts), *first.shape[1:]), first.dtype), 0
    for part in parts:
        column = getattr(part, name)
        joined[end : end + len(column)] = column
        end += len(column)
        setattr(part, name, None)
    return joined


def _in_parts(rows: NDArray[np.int64], work: Callable[[NDArray[np.int64]], T], compiled: CompiledRules) -> list[T]:
    """Do work on parts of many rows, on all cores: NumPy lets other threads run while it computes."""
    compiled.check()  # its expressions are read once, before threads use them
    parts = np.array_split(rows, max(1, -(-len(rows) // CHUNK)))
    if len(parts) == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(work, parts))


def _suggest(
    lists: Sequence[CompiledRules],
    rows: NDArray[np.int64],
    rules: NDArray[np.int64],
    steps: StepArrays,
    space: Space,
) -> tuple[Array, NDArray[np.bool_]]:
    """What rules say in given rows, complete, and where they say something.

    Args:
        lists: of rules.
        rows: (L,) of steps.
        rules: (L,) the rule that speaks in each, counted over all lists.
        steps: of the dataset.
        space: the action space.
    """
    suggestions, has_value = _no_actions(len(rows), space), np.zeros(len(rows), np.bool_)
    first = 0
    for compiled in lists:
        own = np.flatnonzero((rules >= first) & (rules < first + len(compiled.listed.rules)))

        def fill(part: NDArray[np.int64], compiled: CompiledRules = compiled, first: int = first) -> None:
            values = compiled.values(states_at(rows[part], steps), compiled.reads)
            actions, found = compiled.act(rules[part] - first, values)
            suggestions[part] = _filled(np.where(found[:, None], actions, np.nan), rows[part], steps, space)
            has_value[part] = found

        _in_parts(own, fill, compiled)
        first += len(compiled.listed.rules)
    return suggestions, has_value


def _no_actions(count: int, space: Space) -> Array:
    """Room for actions: (L,) int64 when discrete, else (L, m) float64."""
    return np.empty(count, np.int64) if space.is_discrete else np.empty((count, space.size))


def _filled(actions: NDArray[np.float64], rows: NDArray[np.int64], steps: StepArrays, space: Space) -> Array:
    """Actions whose open dimensions are as they were logged, (L,) int64 when discrete, else (L, m) float64."""
    logged = np.array(steps.action[rows], np.float64).reshape(len(rows), space.size)
    filled = np.where(np.isnan(actions), logged, actions)
    return filled[:, 0].astype(np.int64) if space.is_discrete else filled


def _exchange(labels: RuleLabels, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """A random order of the rules that decide anywhere, in which not all keep their action; None if there is none."""
    used = np.unique(labels.rules)
    suggested = [_action_text(rule.suggested_action, rule.formulas) for c in labels.lists for rule in c.listed.rules]
    order = np.arange(len(suggested))
    for _ in range(_TRIES):
        order[used] = rng.permutation(used)
        if any(suggested[int(rule)] != suggested[int(other)] for rule, other in enumerate(order)):
            return order
    return None


def _action_text(action: Sequence[float | None], formulas: Sequence[str | None] | None) -> tuple[object, ...]:
    return tuple(text or number for number, text in zip(action, formulas or [None] * len(action), strict=True))


Columns = Mapping[str, tuple[int, float]]
"""For a placebo, the component that each column reads, and its factor."""
_FEATURES = 16  # of a random potential
_CONSTANT = 1e-9  # least spread beside the size of the values


def find_potential(lists: Sequence[CompiledRules], steps: StepArrays) -> Potential:
    """The mean of some lists' potentials, each with mean 0 and standard deviation 1 over the steps acted in, (N,).

    Args:
        lists: each has a potential.
        steps: N rows, final ones included.

    Returns:
        NaN where one of them has no value.

    Raises:
        BadInput: if one is the same in all steps, or has no value in any.
    """

    def compute(compiled: CompiledRules) -> Potential:
        rows = np.arange(len(steps))
        return np.concatenate(_in_parts(rows, lambda part: compiled.potential(states_at(part, steps)), compiled))

    return np.mean([_normalised(compute(compiled), steps, compiled) for compiled in lists], axis=0)


def states_at(rows: NDArray[np.int64], steps: StepArrays) -> States:
    """Rows of steps as rules see them."""
    before = steps.observation[np.maximum(rows - 1, 0)]
    return States(steps.observation[rows], before, steps.step[rows])


def permute_columns(columns: Sequence[str], units: Mapping[str, str], rng: np.random.Generator) -> Columns:
    """For each column the component that it reads, of the same unit, and a sign; none reads itself as it is.

    Args:
        columns: of the components, in their order.
        units: of columns; one that is missing has the empty unit.
        rng: draws.
    """
    read: dict[str, tuple[int, float]] = {}
    for unit in dict.fromkeys(units.get(column, "") for column in columns):
        alike = [place for place, column in enumerate(columns) if units.get(column, "") == unit]
        drawn = rng.permutation(alike)
        signs = np.where(drawn == alike, -1.0, rng.choice([-1.0, 1.0], len(alike)))
        read |= {columns[p]: (int(q), float(sign)) for p, q, sign in zip(alike, drawn, signs, strict=True)}
    return read


def permuted_potential(
    own: Potential,
    lists: Sequence[CompiledRules],
    steps: StepArrays,
    units: Mapping[str, str],
    rng: np.random.Generator,
) -> Potential:
    """The potential of lists that read other components; their own, with its values exchanged, where none varies."""
    names = component_columns(lists[0].component_names)
    for _ in range(_TRIES):
        try:
            columns = permute_columns(names, units, rng)
            found = find_potential([replace(compiled, reads=columns) for compiled in lists], steps)
        except BadInput:
            continue
        if not np.allclose(found, own, equal_nan=True):
            return found
    values, places = np.unique(own, return_inverse=True)  # like states keep like values
    return rng.permutation(values)[places]


def random_potential(like: Potential, steps: StepArrays, rng: np.random.Generator) -> Potential:
    """A random smooth function of the state, with the mean and the spread of another potential.

    Args:
        like: (N,).
        steps: N rows.
        rng: draws; a discrete observation gets a normal number of its own.
    """
    if steps.observation.ndim == 1:
        states, places = np.unique(steps.observation, return_inverse=True)
        drawn = rng.standard_normal(len(states))[places]
    else:
        acted = steps.observation[~steps.is_final].astype(np.float64)
        spread = acted.std(axis=0)
        away = (steps.observation - acted.mean(axis=0)) / np.where(spread > _CONSTANT, spread, 1.0)
        mixed = away @ rng.standard_normal((away.shape[1], _FEATURES)) + rng.standard_normal(_FEATURES)
        drawn = np.tanh(mixed) @ rng.standard_normal(_FEATURES)
    mean, size = _moments(drawn, steps)
    wanted_mean, wanted_size = _moments(like, steps)
    return (drawn - mean) * (wanted_size / size if size > 0 else 0.0) + wanted_mean


def _normalised(values: Potential, steps: StepArrays, compiled: CompiledRules) -> Potential:
    mean, size = _moments(values, steps)
    known = values[np.isfinite(values)]
    if len(known) and not np.isfinite(size):  # their squares are too large
        values = values / np.abs(known).max()
        mean, size = _moments(values, steps)
    if not (np.isfinite(size) and size > _CONSTANT * abs(mean)):
        raise BadInput(
            f"The potential of the rules {compiled.listed.list_id} has no value in any step, or the same value in all.",
            "Give another potential, or use --use A.",
        )
    return np.where(np.isfinite(values), (values - mean) / size, np.nan)


def _moments(values: Potential, steps: StepArrays) -> tuple[float, float]:
    """Mean and standard deviation over the steps acted in; NaN where no value is finite."""
    known = values[~steps.is_final & np.isfinite(values)]
    if not len(known):
        return np.nan, np.nan
    with np.errstate(over="ignore", invalid="ignore"):
        return float(known.mean()), float(known.std())
