"""Which environments are on the board, and how much evidence each of them is given. Nothing is made or read here.

Arguments of the environments are those of `benchmarks/baselines.toml`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.baselines import read_configurations
from flows.refinement.comparison import GateConfig
from flows.simulation.trust import Named
from refine.policies.mlp import Mode

CARDS = Path(__file__).resolve().parents[1] / "cards"
FIRST_SEED = 2_000_000  # of the gate of training seed 0; far from datasets, trainings and `trajnote refine`
SEEDS_APART = 10_000
_LONG = {"episodes": 16, "select": 8, "accept": 48, "report": 40}
_LONGEST = {"episodes": 10, "select": 4, "accept": 24, "report": 20}
_SIZES: Mapping[str, Mapping[str, int]] = {
    "FrozenLake-v1": {"episodes": 100, "select": 96, "accept": 384, "report": 200},  # an episode is worth 0 or 1
    "Pong": _LONGEST,
    "Hopper-v5": _LONG,
    "Walker2d-v5": _LONG,
    "HalfCheetah-v5": _LONGEST,
    "SparseHopper": _LONG,
    "SparseWalker2d": _LONG,
    "SparseHalfCheetah": _LONGEST,
}
_SAMPLED = {"CartPole-v1"}  # where greedy returns are too easy a test of labels, see docs/measured.md


@dataclass(frozen=True)
class Entry:
    """One environment of the board."""

    name: str
    env_id: Named
    env_kwargs: Mapping[str, Any]
    episodes: int = 30  # collected where no example has rollouts
    select: int = 12  # episodes that choose among the candidates, at most
    accept: int = 96  # episodes that accept or reject the winner, at most
    report: int = 100  # test episodes of each training seed; no two training seeds share one
    mode: Mode = "greedy"  # how policies act before the gate
    card: str | None = None  # path; the packaged one of the environment when None

    @property
    def example_names(self) -> tuple[str, ...]:
        """What the folder under `examples/` may be called, see `plain_name`."""
        own = [self.env_id.rpartition("/")[2]] if ":" in self.env_id else []
        return tuple(plain_name(name) for name in (self.name, *own))

    def gate(self, seed: int) -> GateConfig:
        """The gate of one training seed, with episodes of its own."""
        sizes = {"select": self.select, "accept": self.accept, "report": self.report}
        return GateConfig(first_seed=FIRST_SEED + SEEDS_APART * seed, method="racing", mode=self.mode, **sizes)


def _own_card(env_id: str) -> str | None:
    """Path of the card of an environment of the board's own; None for those that the packaged cards know."""
    module, _, name = env_id.rpartition("/")
    return str(CARDS / f"{plain_name(name)}.toml") if module.startswith("benchmarks.") else None


def plain_name(name: str) -> str:
    """The small letters of a name, without its version."""
    return re.sub(r"-v\d+|\W", "", name).lower()


def list_entries() -> dict[str, Entry]:
    """All environments by name, from easy to hard."""
    return {
        name: Entry(
            name,
            Named(training.env_id),
            dict(training.env_kwargs),
            **_SIZES.get(name, {}),
            mode="sampled" if name in _SAMPLED else "greedy",
            card=_own_card(training.env_id),
        )
        for name, training in read_configurations().items()
    }
