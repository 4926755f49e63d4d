"""Published agents of Stable-Baselines3: the return that their authors report beside the one that is measured here.

    git clone https://github.com/DLR-RM/rl-trained-agents
    python -m benchmarks.agents rl-trained-agents

Each agent is read by `sb3:ALGO:ZIP`, with its statistics where it was normalised, and plays 100 episodes greedily with
the seeds 0 to 99. The reported numbers are of `benchmark.md` of rl-baselines3-zoo: one run of each agent, about 150,000
steps with deterministic actions. `apart` is the difference of the two means in standard errors of that difference;
beyond 3 it is more than chance, such as an environment that has changed. An agent that is not in the folder is left
out.

    python -m benchmarks.agents rl-trained-agents --whole-way WORK --agents ars/MountainCar-v0_1

takes an agent all the way, by the commands that a user types, in the folder WORK: 30 episodes are collected, the rules
in `RULES` are imported (written by hand, no model was asked), one candidate is trained with them, without a gate, it is
exported into a copy of the zip, and the library itself plays the copy, behind its own `VecNormalize` where there is
one, on the same 100 seeds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from rich.console import Console
from rich.table import Table

from flows.policies import find_baseline, load_policy
from flows.policies.torch_policies import LIBRARIES
from flows.simulation import EnvironmentMaker, Named, look_up_spaces, returns_of
from refine.config import RefineConfig
from refine.labels import labels_from_rules
from refine.policies import CompiledRules
from refine.policies.sb3_models import use_one_thread
from refine.training import refine
from storage.annotations import find_rule_list
from storage.datasets import read_manifest, read_steps
from storage.policies import save_policy
from storage.store import Store

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


RULES: Mapping[str, Any] = {
    "MountainCar-v0": [
        {
            "predicate": "velocity >= least(-0.09 * (position + 0.25) ** 2 + 0.03, 0.3 * (position + 0.9) ** 4 - 0.008)"
            " AND velocity <= -0.07 * (position + 0.38) ** 2 + 0.07",
            "suggested_action": "push_right",
        },
        {"predicate": "velocity > -1", "suggested_action": "push_left"},
    ],
    "Acrobot-v1": [
        {"predicate": "theta2_velocity > 0", "suggested_action": "positive_torque"},
        {"predicate": "theta2_velocity <= 0", "suggested_action": "negative_torque"},
    ],
}


TRAINING = RefineConfig(betas=(0.1,), snapshots=(1000,))


@dataclass(frozen=True)
class Way:
    """One agent on the whole way, in a folder of its own."""

    agent: Agent
    zip: Path
    work: Path

    def run(self, *arguments: str) -> str:
        """Run one command on the folder's store; returns what it prints."""
        command = [sys.executable, "-m", "trajnote", *arguments, "--store", str(self.work / "store")]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def refined(self) -> str:
        """Collect, import rules and train one candidate; returns its id in the folder's store."""
        env, policy = self.agent.env_id, f"sb3:{self.agent.algorithm}:{self.zip}"
        self.run("collect", "--env", env, "--policy", policy, "--mode", "greedy", "--dataset", "begun")
        rules = self.work / "rules.json"
        rules.write_text(json.dumps({"rules": RULES[env]}))
        list_id = self.run("rules", "import", str(rules), "--dataset", "begun").split()[-1]
        store = Store.open(self.work / "store")
        manifest, steps = read_manifest(store, "begun"), read_steps(store, "begun")
        compiled = CompiledRules.of(find_rule_list(store, list_id), manifest)
        labels = labels_from_rules([compiled], steps, manifest.action_space)
        baseline = find_baseline(store, manifest, steps)
        candidate = refine(steps, labels, baseline.policy, TRAINING)[-1].policy
        record = {"kind": "refined", "env_id": env, "dataset_id": "begun", "config": TRAINING.model_dump(mode="json")}
        save_policy(store, f"refined-{candidate.sha256[:12]}", candidate.to_files(), record)
        return f"refined-{candidate.sha256[:12]}"

    def exported(self, policy_id: str) -> Path:
        """Write a policy into a copy of the zip."""
        out = self.work / "refined.zip"
        self.run("policy", "export", policy_id, "--format", "sb3", "--like", str(self.zip), "--output", str(out))
        return out


def play_in_library(agent: Agent, file: Path, episodes: int) -> np.ndarray:
    """Returns of the library's own loop: `load`, `VecNormalize.load`, `predict`, one episode per seed."""
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    environment = gymnasium.make(agent.env_id, **agent.env_kwargs)
    spaces = {"observation_space": environment.observation_space, "action_space": environment.action_space}
    schedules = {"learning_rate": 0.0, "lr_schedule": 0.0, "clip_range": 0.0, "delta_std_schedule": 0.0}
    library = importlib.import_module(LIBRARIES[agent.algorithm])
    model = getattr(library, agent.algorithm).load(file, device="cpu", custom_objects=spaces | schedules)
    beside = file.with_name(f"{file.stem}_vecnormalize.pkl")
    venv = VecNormalize.load(str(beside), DummyVecEnv([lambda: environment])) if beside.is_file() else None
    returns = np.zeros(episodes)
    for seed in range(episodes):
        observation, is_over = environment.reset(seed=seed)[0], False
        while not is_over:
            seen = observation if venv is None else venv.normalize_obs(observation)
            action, _ = model.predict(seen, deterministic=True)
            observation, reward, terminated, truncated, _ = environment.step(action)
            returns[seed] += float(reward)
            is_over = terminated or truncated
    return returns


def take_whole_way(agent: Agent, folder: Path, work: Path, episodes: int) -> Iterator[str]:
    """Cells: the agent, returns of the original, of the refined one here and in the library, equal episodes."""
    work.mkdir(parents=True, exist_ok=True)
    way = Way(agent, next((folder / agent.name).glob("*.zip")), work)
    policy_id = way.refined()
    begun = measure(agent, folder, episodes).returns
    out = way.exported(policy_id)
    spaces = look_up_spaces(Named(agent.env_id), agent.env_kwargs)
    ours = load_policy(Named(f"policy:{policy_id}"), spaces, Store.open(work / "store"))
    here = returns_of(EnvironmentMaker(Named(agent.env_id), agent.env_kwargs), ours, range(episodes))
    there = play_in_library(agent, out, episodes)
    yield agent.name
    yield from (f"{returns.mean():.1f}" for returns in (begun, here, there))
    yield f"{np.mean(here == there):.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Reported and measured returns of published agents.")
    parser.add_argument("folder", type=Path, help="rl-trained-agents, or a folder laid out alike")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--whole-way", type=Path, metavar="WORK", help="folder for stores and zips")
    parser.add_argument("--agents", nargs="+", default=[], metavar="NAME", help="agents that go the whole way")
    options = parser.parse_args()
    use_one_thread()
    if options.whole_way:
        for agent in (agent for agent in AGENTS if agent.name in options.agents):
            work = options.whole_way / agent.name.replace("/", "-")
            print(" | ".join(take_whole_way(agent, options.folder, work, options.episodes)), flush=True)
        return
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
