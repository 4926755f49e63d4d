"""Branches from one exact state: an action taken once, then a policy; side by side in many environments.

What to branch and what the difference means is in `labelling/label_replays.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refine.policies import Mode
from storage.schema import Array, Episode, Manifest

from .actors import Actor
from .environments import Environment
from .replay import Difference, check_replayable, make_replayable, play_until
from .trust import Home

LANES = 16
_BRANCHING = 0x6272  # keeps these random numbers apart from those of rollouts


@dataclass(frozen=True)
class Branch:
    """One continuation to play."""

    number: int  # the caller's name for it
    episode: Episode
    step: int
    action: Any  # taken once, as the environment takes it
    pair: int  # branches of one state and pair number draw the same random numbers


@dataclass(frozen=True)
class Ending:
    """The result of a branch."""

    branch: Branch
    return_: float  # sum of rewards from its step on
    steps: int  # of the environment, including those up to the state
    difference: Difference | None  # why the state could not be reached; if set, nothing was measured


@dataclass
class _Lane:
    environment: Environment
    branch: Branch
    shown: Any = None
    return_: float = 0.0
    steps: int = 0
    left: int = 0  # steps left
    rng: np.random.Generator = field(default_factory=np.random.default_rng)


def play_branches(
    branches: Sequence[Branch],
    manifest: Manifest,
    home: Home,
    policy: Actor,
    *,
    mode: Mode,
    horizon: int | None = None,
) -> Iterator[Ending]:
    """Play branches, in the order in which they end.

    Each replays the logged seed and actions up to its state, comparing every bit; it takes its action, and then the
    policy acts until the episode ends or is cut as in the log.

    Args:
        branches: episodes with seeds.
        manifest: of their dataset.
        home: its environment.
        policy: goes on after the one action.
        mode: how it acts.
        horizon: most steps after the branching point, its action included; None: to the end.
    """
    for branch in branches:
        check_replayable(branch.episode, manifest)
    waiting = iter(branches)
    lanes: list[_Lane] = []
    try:
        for _ in range(min(LANES, len(branches))):
            yield from _fill(lanes, waiting, manifest, horizon, make_replayable(manifest, home))
        while lanes:
            _act(lanes, policy, mode, manifest)
            for lane in [lane for lane in lanes if lane.left <= 0]:
                lanes.remove(lane)
                yield Ending(lane.branch, lane.return_, lane.steps, None)
                yield from _fill(lanes, waiting, manifest, horizon, lane.environment)
    finally:
        for lane in lanes:
            lane.environment.close()


def _fill(
    lanes: list[_Lane], waiting: Iterator[Branch], manifest: Manifest, horizon: int | None, environment: Environment
) -> Iterator[Ending]:
    """Put the next branch that does not end at once into a lane; closes the environment when none is left."""
    for branch in waiting:
        difference = play_until(environment, branch.episode, manifest, branch.step)
        if difference is not None:
            yield Ending(branch, 0.0, branch.step, difference)
            continue
        chance = np.random.SeedSequence([int(branch.episode.seed or 0), branch.step, _BRANCHING, branch.pair])
        lane = _Lane(environment, branch, steps=branch.step, rng=np.random.default_rng(chance))
        lane.left = min(_room(manifest, branch.step), horizon or 2**62)
        _step(lane, branch.action)
        if lane.left > 0:
            lanes.append(lane)
            return
        yield Ending(branch, lane.return_, lane.steps, None)
    environment.close()


def _room(manifest: Manifest, step: int) -> int:
    return 2**62 if manifest.max_steps is None else manifest.max_steps - step


def _act(lanes: Sequence[_Lane], policy: Actor, mode: Mode, manifest: Manifest) -> None:
    space = manifest.observation_space
    shown: Array = np.array([lane.shown for lane in lanes], dtype=space.dtype)
    if not space.is_discrete:
        shown = shown.reshape(len(lanes), space.size)
    acts = policy.act(shown, mode=mode, rngs=[lane.rng for lane in lanes])
    for lane, action in zip(lanes, acts.actions, strict=True):
        _step(lane, action)


def _step(lane: _Lane, action: Any) -> None:
    lane.shown, reward, terminated, truncated, _ = lane.environment.step(action)
    lane.return_ += float(reward)
    lane.steps += 1
    lane.left = 0 if terminated or truncated else lane.left - 1
