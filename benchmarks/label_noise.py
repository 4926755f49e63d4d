"""Wrong labels on purpose: labels corrupted in the ways in which annotators go wrong, for stress tests.

How a refinement survives them is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from refine.labels.labels import Labels, finite_bounds
from refine.policies.mlp import action_units
from storage.datasets.reader import StepArrays
from storage.errors import BadInput
from storage.schema import Array, Space

Noise = Literal["uniform", "confused", "region", "mirrored"]
NOISES: tuple[Noise, ...] = get_args(Noise)


class _Setting(NamedTuple):
    """What the kinds of noise need to know."""

    labels: Labels
    able: NDArray[np.int64]  # labels that suggest something
    wrong: int  # of them to be made wrong
    steps: StepArrays
    space: Space
    mirror: Array | None  # (n,) index of each discrete action's mirror image
    rng: np.random.Generator


def corrupt_labels(
    labels: Labels,
    noise: Noise,
    rate: float,
    steps: StepArrays,
    action_space: Space,
    *,
    seed: int,
    mirror: Sequence[int] | None = None,
) -> Labels:
    """Make a share of the suggestions wrong; states, weights and implicit rewards stay as they are.

    - `uniform`: labels anywhere; each becomes another action, drawn uniformly (discrete) or a uniform action (boxes).
    - `confused`: an action, drawn at random, is always said to be the next one; once its labels are used up, so is
      the next action, until the share is reached. Discrete actions only.
    - `region`: the labels on one side of a plane through the state space, of a random direction; each becomes another
      action, as for `uniform`.
    - `mirrored`: signs are taken the wrong way round: each discrete action becomes its mirror image, each torque `a`
      its opposite in the bounds, `low + high - a`. Actions that are their own mirror image cannot be made wrong; if
      the others are too few, all of those are.

    Args:
        labels: of these steps.
        noise: the kind.
        rate: share of the suggestions that becomes wrong, 0 to 1.
        steps: the logged steps.
        action_space: of the environment.
        seed: equal seeds, equal labels.
        mirror: `mirrored`, discrete: for each action its mirror image; the actions in reverse when None.

    Raises:
        BadInput: for an unknown kind, a rate outside 0 to 1, `confused` continuous actions, or a mirror that does not
            name one image per action.
    """
    _check(noise, rate, action_space, mirror)
    able = np.flatnonzero(labels.weights > 0)
    images = None if mirror is None else np.asarray(mirror)
    rng = np.random.default_rng([seed, NOISES.index(noise)])
    setting = _Setting(labels, able, round(rate * len(able)), steps, action_space, images, rng)
    chosen, wrong = _MAKERS[noise](setting)
    suggestions = np.array(labels.suggestions)
    suggestions[chosen] = wrong
    return replace(labels, suggestions=suggestions)


def share_changed(labels: Labels, corrupted: Labels) -> float:
    """The share of suggestions that differ between two sets of labels of the same states."""
    able = labels.weights > 0
    differs = (labels.suggestions != corrupted.suggestions).reshape(len(labels), -1).any(axis=1)
    return float(differs[able].mean()) if able.any() else 0.0


def _uniform(setting: _Setting) -> tuple[NDArray[np.int64], Array]:
    chosen = setting.rng.permutation(setting.able)[: setting.wrong]
    return chosen, _other_actions(setting, chosen)


def _region(setting: _Setting) -> tuple[NDArray[np.int64], Array]:
    states = setting.steps.observation[setting.labels.rows[setting.able]].astype(np.float64)
    states = states.reshape(len(setting.able), -1)
    direction = setting.rng.standard_normal(states.shape[1]) / np.maximum(states.std(axis=0), 1e-9)
    order = np.argsort(states @ direction, kind="stable")
    chosen = setting.able[order[len(order) - setting.wrong :]]
    return chosen, _other_actions(setting, chosen)


def _confused(setting: _Setting) -> tuple[NDArray[np.int64], Array]:
    start, actions = setting.space.start, int(setting.space.n or 1)
    indices = setting.labels.suggestions[setting.able] - start
    rank = np.empty(actions, np.int64)
    rank[setting.rng.permutation(actions)] = np.arange(actions)
    order = np.lexsort((setting.rng.permutation(len(indices)), rank[indices]))[: setting.wrong]
    return setting.able[order], (indices[order] + 1) % actions + start


def _mirrored(setting: _Setting) -> tuple[NDArray[np.int64], Array]:
    said = setting.labels.suggestions[setting.able]
    if setting.space.is_discrete:
        images = np.arange(int(setting.space.n or 1))[::-1] if setting.mirror is None else setting.mirror
        opposite = images[said - setting.space.start] + setting.space.start
    else:
        middle, _ = action_units(setting.space)
        opposite = 2 * middle - said
    differs = np.flatnonzero((opposite != said).reshape(len(said), -1).any(axis=1))
    taken = setting.rng.permutation(differs)[: setting.wrong]
    return setting.able[taken], opposite[taken]


def _other_actions(setting: _Setting, chosen: NDArray[np.int64]) -> Array:
    if setting.space.is_discrete:
        actions = int(setting.space.n or 1)
        indices = setting.labels.suggestions[chosen] - setting.space.start
        return (indices + setting.rng.integers(1, max(actions, 2), len(chosen))) % actions + setting.space.start
    low, high = finite_bounds(setting.space, setting.steps)
    return setting.rng.uniform(low, high, (len(chosen), setting.space.size))


_MAKERS: dict[str, Callable[[_Setting], tuple[NDArray[np.int64], Array]]] = {
    "uniform": _uniform,
    "confused": _confused,
    "region": _region,
    "mirrored": _mirrored,
}


def _check(noise: str, rate: float, space: Space, mirror: Sequence[int] | None) -> None:
    if noise not in _MAKERS:
        raise BadInput(f"There is no noise {noise!r}; the kinds are {', '.join(NOISES)}.")
    if not 0 <= rate <= 1:
        raise BadInput(f"The rate of wrong suggestions is {rate}; 0 to 1 is allowed.")
    if noise == "confused" and not space.is_discrete:
        raise BadInput("Continuous actions cannot be confused with one another.", "Use uniform, region or mirrored.")
    if mirror is not None and sorted(mirror) != list(range(int(space.n or 1))):
        raise BadInput(
            f"The mirror images are {list(mirror)}; each action from 0 to {int(space.n or 1) - 1} is expected once."
        )
