"""Whether environments tell Python's integers from NumPy's: all registered ones with discrete actions, bit for bit.

    python benchmarks/action_types.py

A rollout hands over NumPy's integers. An environment that computes in float32 with its action could tell them from
Python's, and episodes that somebody recorded with these would not replay. Two environments of each kind play the same
random actions, one with either type. Registered are Gymnasium's, and those of MiniGrid and two of Atari's games where
they are installed; what cannot be made, or reset, here is counted.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import Any

import gymnasium
import numpy as np

from flows.simulation.environments import make_environment

EPISODES = 5
STEPS = 300  # of an episode at most
SKIPPED = ("tabular/", "phys2d/", "GymV", "ALE/")  # vectors and compilers of their own; Atari's are chosen below
GAMES = ("ALE/Pong-v5", "ALE/Breakout-v5")


class OtherActions(Exception):
    """The environment's actions are not discrete."""


def list_ids() -> list[str]:
    """Names of the environments to try."""
    if importlib.util.find_spec("minigrid"):
        importlib.import_module("minigrid")
    return [*(name for name in gymnasium.registry if not name.startswith(SKIPPED)), *GAMES]


def to_bits(value: Any) -> Any:
    """An observation as something whose equality is that of its bits."""
    if isinstance(value, dict):
        return {name: to_bits(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(to_bits, value))
    return value if isinstance(value, str) else (np.asarray(value).dtype, np.asarray(value).tobytes())


def is_equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two results of `step` have the same observation, reward and flags."""
    return to_bits(one[0]) == to_bits(other[0]) and [*map(float, one[1:4])] == [*map(float, other[1:4])]


def first_difference(name: str) -> str | None:
    """Where the two types part, in words; None when they never do.

    Raises:
        OtherActions: when they are not discrete.
        Exception: whatever an environment raises that cannot be used here.
    """
    with_python, with_numpy = make_environment(name), make_environment(name)
    space = with_python.action_space
    if not isinstance(space, gymnasium.spaces.Discrete):
        raise OtherActions
    rng = np.random.default_rng(0)
    for episode in range(EPISODES):
        with_python.reset(seed=episode)
        with_numpy.reset(seed=episode)
        for step in range(STEPS):
            action = space.start + rng.integers(space.n)
            results = with_python.step(int(action)), with_numpy.step(action)
            if not is_equal(*results):
                return f"{name}: episode {episode}, step {step}"
            if results[0][2] or results[0][3]:
                break
    return None


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    same, differences, other, broken = 0, [], 0, 0
    for name in list_ids():
        try:
            difference = first_difference(name)
        except OtherActions:
            other += 1
        except Exception:  # an engine that is not installed, a version that is gone
            broken += 1
        else:
            same += difference is None
            differences += [difference] if difference else []
    print(f"{same} environments give the same bits for both, {len(differences)} do not: {differences}")
    print(f"{other} take other actions; {broken} cannot be made here")


if __name__ == "__main__":
    main()
