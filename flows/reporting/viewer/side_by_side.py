"""The refined policy in the seeds of logged episodes, so that both can be looked at side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refine.policies import Mode
from storage.schema import Episode, Manifest
from storage.store import Store

from ...policies import load_policy
from ...simulation import EnvironmentMaker, Home, Named, Spaces, rollout
from ..page.queries import Facts
from ..page.wording import read_object


@dataclass(frozen=True)
class Opponent:
    """The policy that plays beside the logged one."""

    policy_id: str
    mode: Mode


def find_opponent(facts: Facts) -> Opponent | None:
    """The policy that the gate accepted, acting as the gate judged it; None when there is none.

    Nor is there one for a dataset of another engine, where the same seed is another episode.
    """
    judged = facts.judged
    is_ours = facts.manifest.env_id is not None and facts.manifest.engine == "gymnasium"
    if judged is None or not judged["accepted"] or not is_ours:
        return None
    mode = read_object(judged["config"]).get("gate", {}).get("mode")
    return Opponent(judged["policy_id"], "sampled" if mode == "sampled" else "greedy")


def play_rematch(
    store: Store, manifest: Manifest, home: Home, opponent: Opponent, seeds: Sequence[int]
) -> dict[int, Episode]:
    """Play one episode per seed, by seed.

    Args:
        store: holds the policy.
        manifest: of the dataset, which says for how long.
        home: its environment.
        opponent: who plays.
        seeds: those of the logged episodes.

    Raises:
        TrajnoteError: if the policy or the environment cannot be loaded here.
    """
    spaces = Spaces(manifest.observation_space, manifest.action_space)
    policy = load_policy(Named(f"policy:{opponent.policy_id}"), spaces, store)
    make = EnvironmentMaker(*home)
    distinct = list(dict.fromkeys(seeds))
    episodes = rollout(make, policy, distinct, mode=opponent.mode, max_steps=manifest.max_steps)
    return dict(zip(distinct, episodes, strict=True))
