"""Episodes that are counted: returns and environment steps of policies, and the gate that every candidate passes.

One process, one thread; sharing out is in `__main__.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from flows.environments import make_environment
from flows.judge import Returns
from flows.rollout import rollout
from refine.gate import decide_acceptance
from refine.policy import MlpPolicy, Mode

from .scenes import Scene

_SIDE_BY_SIDE = 8


@dataclass(frozen=True)
class Played:
    """Episodes of one policy on some seeds."""

    returns: Returns  # (S,)
    steps: int  # of the environment, over all episodes


@dataclass(frozen=True)
class Candidate:
    """A policy that a method offers to the gate, and how tables call it."""

    name: str
    policy: MlpPolicy


@dataclass(frozen=True)
class Gated:
    """What the gate left in force."""

    policy: MlpPolicy
    accepted: bool
    reason: str
    steps: int  # that the gate played, those of the baseline on the acceptance seeds included


def play(scene: Scene, policy: MlpPolicy, seeds: range, mode: Mode) -> Played:
    """Play one episode per seed."""
    make = partial(make_environment, scene.entry.env_id, scene.entry.env_kwargs)
    cut = scene.manifest.max_steps
    episodes = rollout(make, policy, seeds, mode=mode, envs=_SIDE_BY_SIDE, max_steps=cut)
    played = [(episode.return_, len(episode)) for episode in episodes]
    return Played(np.array([return_ for return_, _ in played]), sum(steps for _, steps in played))


def pass_gate(scene: Scene, candidates: Sequence[Candidate], seed: int, baseline: Played) -> Gated:
    """Choose a candidate on the selection seeds and test it, and nobody else, on the acceptance seeds.

    Args:
        scene: where.
        candidates: of one method; equal means go to the first.
        seed: the training seed, whose gate it is.
        baseline: the baseline on the acceptance seeds of that gate.
    """
    gate = scene.entry.gate(seed)
    tried = [play(scene, candidate.policy, gate.seeds.select, gate.mode) for candidate in candidates]
    winner = candidates[int(np.argmax([played.returns.mean() for played in tried]))]
    tested = play(scene, winner.policy, gate.seeds.accept, gate.mode)
    decision = decide_acceptance(tested.returns, baseline.returns)
    steps = sum(played.steps for played in [*tried, tested, baseline])
    kept = winner.policy if decision.accepted else scene.baseline
    return Gated(kept, decision.accepted, f"{winner.name}: {decision.reason}", steps)
