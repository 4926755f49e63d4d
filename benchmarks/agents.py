"""Published agents of Stable-Baselines3: the return that their authors report beside the one that is measured here.

    git clone https://github.com/DLR-RM/rl-trained-agents
    python -m benchmarks.agents rl-trained-agents

Each agent is read by `sb3:ALGO:ZIP`, with its statistics where it was normalised, and plays 100 episodes greedily with
the seeds 0 to 99. The reported numbers are of `benchmark.md` of rl-baselines3-zoo: one run of each agent, about 150,000
steps with deterministic actions. `apart` is the difference of the two means in standard errors of that difference;
beyond 3 it is more than chance, such as an environment that has changed. An agent that is not in the folder is left
out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from flows.policies import load_policy
from flows.simulation import EnvironmentMaker, Named, look_up_spaces, returns_of
from refine.policies.sb3_models import use_one_thread

EPISODES = 100


@dataclass(frozen=True)
class Agent:
    """A published agent."""

    name: str  # its folder
    env_id: str  # of today
    mean: float | None = None  # as reported
    std: float = 0.0
    episodes: int = 1
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def algorithm(self) -> str:
        """The first part of its folder."""
        return self.name.partition("/")[0].upper()


CONTINUOUS = {"continuous": True}
AGENTS = (
    Agent("ppo/CartPole-v1_1", "CartPole-v1", 500.0, 0.0, 300),
    Agent("dqn/CartPole-v1_1", "CartPole-v1", 500.0, 0.0, 300),
    Agent("a2c/CartPole-v1_1", "CartPole-v1", 500.0, 0.0, 300),
    Agent("qrdqn/CartPole-v1_1", "CartPole-v1", 500.0, 0.0, 300),
    Agent("ars/CartPole-v1_1", "CartPole-v1", 500.0, 0.0, 300),
    Agent("ppo/LunarLander-v2_1", "LunarLander-v3", 242.119, 31.823, 369),
    Agent("ppo/LunarLanderContinuous-v2_1", "LunarLander-v3", 270.863, 32.072, 526, CONTINUOUS),
    Agent("ppo/Acrobot-v1_1", "Acrobot-v1", -73.506, 18.201, 2013),
    Agent("dqn/MountainCar-v0_1", "MountainCar-v0", -100.849, 9.925, 1487),
    Agent("ppo/MountainCar-v0_1", "MountainCar-v0", -110.423, 19.473, 1358),
    Agent("ars/MountainCar-v0_1", "MountainCar-v0", -122.0, 33.456, 1229),
    Agent("sac/Pendulum-v1_1", "Pendulum-v1", -156.995, 88.714, 750),
    Agent("tqc/Pendulum-v1_1", "Pendulum-v1"),
    Agent("ppo/BipedalWalker-v3_1", "BipedalWalker-v3", 213.299, 129.490, 233),
    Agent("ppo/Hopper-v3_1", "Hopper-v5", 2410.435, 10.026, 150),
)


@dataclass(frozen=True)
class Measured:
    """An agent and the returns of its episodes."""

    agent: Agent
    normalised: bool
    returns: np.ndarray  # (N,)

    @property
    def apart(self) -> float | None:
        """The difference of the means in its standard errors; None without a report."""
        if self.agent.mean is None:
            return None
        variance = self.returns.var(ddof=1) / len(self.returns) + self.agent.std**2 / self.agent.episodes
        difference = float(self.returns.mean()) - self.agent.mean
        return 0.0 if difference == 0 else difference / math.sqrt(variance) if variance > 0 else math.inf


def measure(agent: Agent, folder: Path, episodes: int) -> Measured:
    spaces = look_up_spaces(Named(agent.env_id), agent.env_kwargs)
    policy = load_policy(Named(f"sb3:{agent.algorithm}:{folder / agent.name}"), spaces)
    make = EnvironmentMaker(Named(agent.env_id), agent.env_kwargs)
    returns = returns_of(make, policy, range(episodes))
    return Measured(agent, getattr(policy, "network").shift is not None, returns)  # noqa: B009  (all are portable)


def rows_of(measured: Measured) -> Iterator[str]:
    """Cells of the table."""
    agent, apart = measured.agent, measured.apart
    yield f"{agent.name.removesuffix('_1')}{', normalised' if measured.normalised else ''}"
    yield agent.env_id + (", continuous" if agent.env_kwargs else "")
    yield "not published" if agent.mean is None else f"{agent.mean:.1f} ± {agent.std:.1f}"
    yield f"{measured.returns.mean():.1f} ± {measured.returns.std(ddof=1):.1f}"
    yield "" if apart is None else f"{apart:+.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Reported and measured returns of published agents.")
    parser.add_argument("folder", type=Path, help="rl-trained-agents, or a folder laid out alike")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    options = parser.parse_args()
    use_one_thread()
    titles = ("agent", "environment", "reported, mean ± std", f"measured, {options.episodes} episodes", "apart")
    table, console = Table(*titles), Console(width=120)
    for agent in AGENTS:
        if (options.folder / agent.name).is_dir():
            row = list(rows_of(measure(agent, options.folder, options.episodes)))
            table.add_row(*row)
            console.print(" | ".join(row), highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
