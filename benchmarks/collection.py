"""Collection speed: steps per second of one policy, played in several ways, as parts of what `env.step` alone does.

    python benchmarks/collection.py

`raw env.step` plays recorded actions again in one environment and does nothing else. It is the `step` of what
`gymnasium.make` returns, wrappers included, and it gets the actions as NumPy's integers, as a rollout hands them over.
`raw, Python's integers` gets them as most loops in documentation do; Gymnasium checks these more slowly. The ways take
turns, so that a machine that slows down slows all of them, and the median of each way's ratios is printed. `predict
per step` is the loop of Stable-Baselines3's documentation, with a policy of the same shape. `envpool` is another engine
with episodes of its own, on all cores; it is measured where it is installed.

The policy is the baseline of `examples/`, a stuck agent as trajnote's users collect it. With `--random` it is one of
chance, whose episodes are shorter, so that beginning them weighs more: the hardest case.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from flows.datasets.collection import CollectConfig, collect
from flows.runtime.processes import shutdown_workers
from flows.simulation.environments import Environment, EnvironmentMaker, Spaces, spaces_of
from flows.simulation.envpool_engine import play_pooled
from flows.simulation.rollouts import Playing, rollout
from refine.policies.mlp import MlpPolicy
from storage.schema import Episode
from storage.store import Store

STEPS = {"CartPole-v1": 60_000, "LunarLander-v3": 20_000, "Hopper-v5": 16_000, "Walker2d-v5": 16_000}
EXAMPLES = Path(__file__).parents[1] / "examples"
HIDDEN = (64, 64)  # what Stable-Baselines3 makes
SIDE_BY_SIDE = 64
RAW, ROLLOUT, COLLECT = "raw env.step", f"rollout, {SIDE_BY_SIDE} side by side", "collect, one process"


class Scene(NamedTuple):
    """An environment, a policy for it, and episodes of about as many steps as are wanted."""

    make: Callable[[], Environment]
    env_id: str
    policy: MlpPolicy
    episodes: list[Episode]

    @property
    def steps(self) -> int:
        """Steps of all episodes."""
        return sum(map(len, self.episodes))


def random_network(spaces: Spaces, seed: int) -> MlpPolicy:
    """A policy of the usual size; its weights are chance, its cost is not."""
    rng = np.random.default_rng(seed)
    sizes = (spaces.observation.size, *HIDDEN, spaces.action.n or spaces.action.size)
    shapes = list(itertools.pairwise(sizes))
    return MlpPolicy(
        *spaces,
        tuple(rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in shapes),
        tuple(np.zeros(width) for _, width in shapes),
        "tanh",
        "logits" if spaces.action.is_discrete else "clip",
        log_std=None if spaces.action.is_discrete else np.zeros(spaces.action.size),
    )


def find_policy(make: EnvironmentMaker, random: bool) -> MlpPolicy:
    """The shipped baseline; without one, of 20 random policies the one whose episodes last longest."""
    folder = EXAMPLES / make.env_id.partition("-")[0].lower() / "baseline"
    if folder.is_dir() and not random:
        return MlpPolicy.from_files({name: (folder / name).read_bytes() for name in ("policy.json", "weights.npz")})
    networks = [random_network(spaces_of(make()), seed) for seed in range(20)]
    return max(networks, key=lambda network: mean(map(len, rollout(make, network, range(8), mode="sampled"))))


def set_scene(env_id: str, steps: int, random: bool) -> Scene:
    make = EnvironmentMaker(env_id)
    policy = find_policy(make, random)
    episodes: list[Episode] = []
    for episode in rollout(make, policy, range(100_000), mode="sampled"):
        episodes.append(episode)
        if sum(map(len, episodes)) >= steps:
            break
    return Scene(partial(gymnasium.make, env_id), env_id, policy, episodes)


def play_raw(scene: Scene, in_python: bool = False) -> int:
    environment = scene.make()
    for episode in scene.episodes:
        environment.reset(seed=episode.seed)
        for action in episode.actions.tolist() if in_python else episode.actions:
            environment.step(action)
    return scene.steps


def play_ours(scene: Scene, envs: int) -> int:
    make, seeds = EnvironmentMaker(scene.env_id), range(len(scene.episodes))
    return sum(len(episode) for episode in rollout(make, scene.policy, seeds, mode="sampled", envs=envs))


def collect_ours(scene: Scene, folder: Path, number: Iterator[int], workers: int | None = 1) -> int:
    config = CollectConfig(
        env_id=scene.env_id,
        policy=f"policy:{folder / 'policy'}",
        mode="sampled",
        episodes=len(scene.episodes),
        envs=SIDE_BY_SIDE,
        workers=workers,
        dataset=f"collected-{next(number)}",
    )
    steps = collect(Store.open(folder / "store"), config).steps
    shutdown_workers()  # so that each collection starts its own, as the command does
    return steps


def play_in_envpool(scene: Scene) -> int:
    """The same seeds in envpool, where they are other episodes; it steps on as many threads as there are cores."""
    seeds = range(len(scene.episodes))
    episodes = play_pooled(Playing(scene.env_id, {}, scene.policy, seeds, "sampled", envs=SIDE_BY_SIDE))
    return sum(map(len, episodes))


def play_synchronous(scene: Scene) -> int:
    """Gymnasium's own vector environment with the same batched policy; it keeps nothing of what it plays.

    It has no more environments than there are episodes, so that it plays whole ones, too: in LunarLander-v3 the first
    300 steps of an episode are cheaper than the others.
    """
    lanes = min(SIDE_BY_SIDE, len(scene.episodes))
    environments = gymnasium.vector.SyncVectorEnv([scene.make] * lanes)
    observations, _ = environments.reset(seed=[episode.seed for episode in scene.episodes[:lanes]])
    ticks = scene.steps // lanes
    rngs = [np.random.default_rng(lane) for lane in range(lanes)]
    for _ in range(ticks):
        observations, *_ = environments.step(scene.policy.act(observations, mode="sampled", rngs=rngs).actions)
    environments.close()
    return ticks * lanes


def play_predict(scene: Scene, model: Any) -> int:
    environment = scene.make()
    observation, _ = environment.reset(seed=0)
    steps = max(1, scene.steps // 10)
    for _ in range(steps):
        action, _ = model.predict(observation)
        observation, _, terminated, truncated, _ = environment.step(action)
        if terminated or truncated:
            observation, _ = environment.reset()
    return steps


def list_ways(scene: Scene, folder: Path) -> dict[str, Callable[[], int]]:
    number = itertools.count()
    ways: dict[str, Callable[[], int]] = {
        RAW: partial(play_raw, scene),
        ROLLOUT: partial(play_ours, scene, SIDE_BY_SIDE),
        "rollout, one environment": partial(play_ours, scene, 1),
        COLLECT: partial(collect_ours, scene, folder, number),
        "collect, all cores": partial(collect_ours, scene, folder, number, None),
        "SyncVectorEnv, the same policy": partial(play_synchronous, scene),
    }
    if scene.policy.action_space.is_discrete:
        ways["raw, Python's integers"] = partial(play_raw, scene, in_python=True)
    if importlib.util.find_spec("envpool"):
        ways[f"envpool, {SIDE_BY_SIDE} side by side"] = partial(play_in_envpool, scene)
    if importlib.util.find_spec("stable_baselines3"):
        from refine.policies.sb3_models import use_one_thread

        use_one_thread()
        from stable_baselines3 import PPO

        model = PPO("MlpPolicy", scene.make(), device="cpu", n_steps=64)
        ways["SB3, predict per step"] = partial(play_predict, scene, model)
    return ways


def prepare(scene: Scene, folder: Path) -> None:
    """A store and the policy's folder, made before the clock runs."""
    Store.create(folder / "store")
    (folder / "policy").mkdir()
    for name, content in scene.policy.to_files().items():
        (folder / "policy" / name).write_bytes(content)


def measure(scene: Scene, repeats: int, clock: Callable[[], float], wanted: tuple[str, ...]) -> dict[str, list[float]]:
    """Steps per second of each way, (repeats,) each; the first round warms up and is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(scene, Path(folder))
        ways = {name: way for name, way in list_ways(scene, Path(folder)).items() if name.startswith(wanted)}
        return take_turns(ways, repeats, clock)


def take_turns(ways: dict[str, Callable[[], int]], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, play in ways.items():
            start = clock()
            steps = play()
            if turn:
                rates[name].append(steps / (clock() - start))
    return rates


def print_ratios(measured: dict[str, list[float]]) -> None:
    for name, rates in measured.items():
        against = ROLLOUT if name == COLLECT else None
        beside = f"  {ratio(rates, measured[against])} of {against}" if against else ""
        spread = [rate / raw for rate, raw in zip(rates, measured[RAW], strict=True)]
        print(
            f"  {name:30} {median(rates):9,.0f} steps/s  {ratio(rates, measured[RAW])} of raw"
            f"  ({min(spread):.2f} to {max(spread):.2f}){beside}"
        )


def ratio(rates: list[float], others: list[float]) -> str:
    return f"{median(rate / other for rate, other in zip(rates, others, strict=True)):5.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--env", action="append", help="Gymnasium id; may be given again; default: all four")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--times", type=int, default=1, help="so many times the steps; collecting has costs of its own")
    parser.add_argument("--random", action="store_true", help="play a random policy, whose episodes are shorter")
    parser.add_argument("--only", action="append", help="a way, by the beginning of its name; may be given again")
    parser.add_argument(
        "--core-seconds", action="store_true", help="of this process, for a machine with other work; all threads count"
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.core_seconds else time.perf_counter
    for env_id in arguments.env or STEPS:
        try:
            scene = set_scene(env_id, arguments.times * STEPS.get(env_id, 10_000), arguments.random)
        except Exception as error:  # an engine that is not installed leaves its row out
            print(f"{env_id}: left out, {error}")
            continue
        measured = measure(
            scene, arguments.repeats, clock, (RAW, ROLLOUT, *arguments.only) if arguments.only else ("",)
        )
        print(f"\n{env_id}, {scene.steps} steps in {len(scene.episodes)} episodes, {arguments.repeats} rounds")
        print_ratios(measured)


if __name__ == "__main__":
    main()
