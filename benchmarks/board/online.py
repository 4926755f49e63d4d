"""More training in the environment, from the baseline's own weights: plain PPO, and PPO with RICE's resets and bonus.

Both go on with Stable-Baselines3 from `model.zip` until a budget of environment steps is used up, so that they cost
what a refinement with labels costs. What is left over of the last rollout's length is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from flows.simulation.environments import Spaces, make_environment
from refine.policies.mlp import MlpPolicy, input_size, network_inputs
from storage.datasets.reader import iterate_episodes
from storage.errors import Prerequisite
from storage.schema import Episode
from storage.store import Store

from .resets import Counted, CriticalResets
from .scenes import Scene, spread_states

RESET_PROBABILITY = 0.5
BONUS = 0.01
ENVIRONMENTS = 8  # as the baselines were trained
FIRST_SEED = 3_000_000  # of the training environments


@dataclass(frozen=True)
class Trained:
    """A policy after more training, and what that took."""

    policy: MlpPolicy
    steps: int  # of the environment, replayed ones included
    replayed: int
    words: str


def continue_training(scene: Scene, seed: int, budget: int) -> Trained:
    """Continue the baseline's PPO for a budget of environment steps; a larger one goes on where a smaller one ended."""
    global _kept
    key = (scene.content_id, seed)
    if _kept is None or _kept.key != key or _kept.has_passed(budget):
        _kept = Running(key, *_start(scene, seed, states=(), bonus=0.0))
    return _kept.train(scene, budget, words="PPO went on from the baseline")


@dataclass
class Running:
    """A training that can go on, also after other trainings of this process."""

    key: tuple[str, int]
    model: Any
    made: Sequence[CriticalResets]  # its environments
    chance: tuple[Any, Any] | None = None  # state of the generators of the process, when it stopped

    @property
    def spent(self) -> int:
        """Environment steps so far."""
        return sum(one.counted.steps for one in self.made)

    @property
    def rollout(self) -> int:
        """Steps that the model learns from at once."""
        return self.model.n_steps * ENVIRONMENTS

    def has_passed(self, budget: int) -> bool:
        """Whether it has gone on after the rollout in which a budget is used up."""
        return self.spent - self.rollout >= budget

    def train(self, scene: Scene, budget: int, *, words: str) -> Trained:
        """Learn until a budget of environment steps is used up, in all."""
        import torch

        if self.chance is not None:
            torch.set_rng_state(self.chance[0])
            np.random.set_state(self.chance[1])  # Stable-Baselines3 draws its batches from there
        learn = partial(self.model.learn, self.rollout, reset_num_timesteps=False)
        train_until(learn, lambda: self.spent, budget)
        self.chance = torch.get_rng_state(), np.random.get_state()
        replayed = sum(one.replayed for one in self.made)
        return Trained(_to_network(self.model, scene.baseline), self.spent, replayed, words)


_kept: Running | None = None
"""The last plain training of this process: rows that differ in their budget alone share it."""


def train_from_critical_states(scene: Scene, seed: int, budget: int) -> Trained:
    """Continue it with episodes that begin at critical states with probability 0.5, and a bonus for novelty.

    RICE (ICML 2024), with the states that the annotator marked in place of those of a mask network; states spread over
    the episodes where there is no annotator.
    """
    steps = scene.read_steps()
    rows = scene.critical if len(scene.critical) else spread_states(steps)
    states = [(int(steps.episode_id[row]), int(steps.step[row])) for row in rows]
    running = Running((scene.content_id, seed), *_start(scene, seed, states=states, bonus=BONUS))
    trained = running.train(scene, budget, words="")
    return replace(trained, words=_describe(scene, states, sum(one.missed for one in running.made)))


def train_until(learn: Callable[[], Any], spent: Callable[[], int], budget: int) -> None:
    """Learn rollout after rollout while a budget of environment steps is not used up."""
    while spent() < budget:
        learn()


def _start(
    scene: Scene, seed: int, *, states: Sequence[tuple[int, int]], bonus: float
) -> tuple[Any, list[CriticalResets]]:
    """The baseline's model in new environments, and these."""
    from refine.policies import use_one_thread

    use_one_thread()
    from stable_baselines3.common.vec_env import DummyVecEnv

    episodes = {e.episode_id: e for e in iterate_episodes(Store.open(scene.store_root), scene.manifest.dataset_id)}
    made: list[CriticalResets] = []
    environments: Any = DummyVecEnv([partial(_make, scene, episodes, states, seed, made)] * ENVIRONMENTS)
    if bonus:
        environments = _with_bonus(environments, scene, seed, bonus)
    model = _load_model(scene, environments)
    model.set_random_seed(FIRST_SEED + 1000 * seed)
    return model, made


def _make(
    scene: Scene, episodes: dict[int, Episode], states: Sequence[tuple[int, int]], seed: int, made: list[CriticalResets]
) -> CriticalResets:
    """One training environment, which is noted in `made`."""
    counted = Counted(make_environment(scene.entry.env_id, scene.entry.env_kwargs))
    environment = CriticalResets(
        counted,
        episodes,
        scene.manifest,
        states=states,
        probability=RESET_PROBABILITY if states else 0.0,
        seed=FIRST_SEED + 1000 * seed + len(made),
    )
    made.append(environment)
    return environment


def _with_bonus(environments: Any, scene: Scene, seed: int, bonus: float) -> Any:
    from .novelty import Novelty, NoveltyReward

    space = scene.baseline.observation_space
    return NoveltyReward(environments, Novelty(input_size(space), seed), bonus, partial(network_inputs, space=space))


def _load_model(scene: Scene, environments: Any) -> Any:
    """The model that the baseline was read from.

    Raises:
        Prerequisite: when there is no `model.zip`, or it holds other weights.
    """
    from stable_baselines3 import PPO

    if scene.model_zip is None:
        raise Prerequisite("no model.zip beside the baseline")
    model = PPO.load(scene.model_zip, env=environments, device="cpu")
    if _to_network(model, scene.baseline).sha256 != scene.baseline.sha256:
        raise Prerequisite("model.zip does not hold the baseline's weights")
    return model


def _to_network(model: Any, baseline: MlpPolicy) -> MlpPolicy:
    from refine.policies import from_sb3

    return from_sb3(model, *Spaces(baseline.observation_space, baseline.action_space))


def _describe(scene: Scene, states: Sequence[tuple[int, int]], missed: int) -> str:
    whose = "that the annotator marked" if len(scene.critical) else "spread over the episodes"
    return f"resets to {len(states)} states {whose}; {missed} replays were not exact"
