"""Episodes that are counted: returns and environment steps of policies, and the gate that every candidate passes.

One process, one thread; sharing out is in `__main__.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flows.refinement.comparison import try_fields
from flows.refinement.evaluator import Candidate, Purpose, Returns
from flows.simulation.environments import EnvironmentMaker
from flows.simulation.rollouts import rollout
from refine.policies import MlpPolicy, Mode, RulePolicy

from .scenes import Scene

_SIDE_BY_SIDE = 8


@dataclass(frozen=True)
class Played:
    """Episodes of one policy on some seeds."""

    returns: Returns  # (S,)
    steps: int  # of the environment, over all episodes


Known = dict[tuple[str, range], Played]
"""What the gate of one training seed has played, by the policy's hash and the seeds."""


@dataclass(frozen=True)
class Offer:
    """A policy that a method offers to the gate, and how tables call it."""

    name: str
    policy: MlpPolicy | RulePolicy


@dataclass(frozen=True)
class Gated:
    """What the gate left in force."""

    policy: MlpPolicy | RulePolicy
    accepted: bool
    reason: str
    steps: int  # that the gate played, the baseline's included
    tested: Offer  # the candidate that was chosen
    selection: float  # its mean return on the selection seeds


def play(scene: Scene, policy: MlpPolicy | RulePolicy, seeds: range, mode: Mode) -> Played:
    """Play one episode per seed."""
    make = EnvironmentMaker(scene.entry.env_id, scene.entry.env_kwargs)
    cut = scene.manifest.max_steps
    episodes = rollout(make, policy, seeds, mode=mode, envs=_SIDE_BY_SIDE, max_steps=cut)
    played = [(episode.return_, len(episode)) for episode in episodes]
    return Played(np.array([return_ for return_, _ in played]), sum(steps for _, steps in played))


def pass_gate(scene: Scene, candidates: Sequence[Offer], seed: int, known: Known | None = None) -> Gated:
    """Choose a candidate on the selection seeds and test it, and nobody else, on the acceptance seeds.

    Args:
        scene: where.
        candidates: of one method; of equals the first.
        seed: the training seed, whose gate it is.
        known: what this gate has played for other fields, which is neither played nor counted again; filled further.
    """
    gate, steps, memory = scene.entry.gate(seed), 0, Known() if known is None else known

    def play_all(contestants: Sequence[Candidate], seeds: range, _: Purpose) -> list[Returns]:
        nonlocal steps
        for name in (each.sha256 for each in contestants):
            if (name, seeds) not in memory:
                memory[name, seeds] = play(scene, networks[name], seeds, gate.mode)
                steps += memory[name, seeds].steps
        return [memory[each.sha256, seeds].returns for each in contestants]

    networks = {network.sha256: network for network in (scene.baseline, *(one.policy for one in candidates))}
    field = [Candidate.of(candidate.policy, candidate.name) for candidate in candidates]
    baseline = Candidate.of(scene.baseline, "baseline")
    (finding,) = try_fields(play_all, baseline, [field], gate.seeds, gate.method)
    winner, decision = candidates[finding.winner], finding.decision
    kept = winner.policy if decision.accepted else scene.baseline
    reason, selection = f"{winner.name}: {decision.reason}", finding.selection[finding.winner]
    return Gated(kept, decision.accepted, reason, steps, winner, selection)
