"""Two worlds whose best policies are known exactly, and policies, labels and answers for them.

`Toy-v0` pays 1 for each of 8 steps on which the push goes where `(x, y)` lies most: east, north, west or south. The
best return is 8, and one push for ever gives 2 on average. `ToyReach-v0` costs the squared distance between the action
and 1.5 `x`; the best return is 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np

from annotate.cards.cards import load_card
from annotate.prompting.requests import AnnotateConfig, Question
from annotate.runs.plan import plan_run
from flows.datasets.collection import CollectConfig, gather
from flows.refinement.comparison import GateConfig
from flows.refinement.refinement import ImproveConfig
from flows.simulation.environments import look_up_spaces
from flows.simulation.trust import Named
from refine.config import RefineConfig
from refine.policies.mlp import Head, MlpPolicy
from storage.datasets.reader import iterate_episodes, read_steps
from storage.schema import Array, Manifest
from storage.store import Store

STEPS = 8
TOY, REACH = Named("toy_environment:Toy-v0"), Named("toy_environment:ToyReach-v0")
CARD = """
env_id = "toy_environment:Toy-v0"
title = "Push"
goal = "Push where the place lies."
termination = "The episode terminates after 8 steps."
reward = "A push towards the place pays 1, another one 0."
[[components]]
name = "x"
meaning = "how far east the place lies"
[[components]]
name = "y"
meaning = "how far north the place lies"
[[actions]]
name = "east"
meaning = "push east"
[[actions]]
name = "north"
meaning = "push north"
[[actions]]
name = "west"
meaning = "push west"
[[actions]]
name = "south"
meaning = "push south"
"""


class Toy(gymnasium.Env[Array, int]):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        reward = self._pay(action)
        self.count += 1
        return self._look(), reward, self.count == STEPS, False, {}

    def _pay(self, action: Any) -> float:
        return float(action == right_actions(self.seen[None])[0])

    def _look(self) -> Array:
        self.seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.seen


class ToyReach(Toy):
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def _pay(self, action: Any) -> float:
        return -float((action[0] - 1.5 * self.seen[0]) ** 2)


class Endless(Toy):
    """Toy without an end of its own."""

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        return self._look(), self._pay(action), False, False, {}


gymnasium.register("Toy-v0", Toy)
gymnasium.register("ToyReach-v0", ToyReach)
gymnasium.register("ToyEndless-v0", Endless)


def right_actions(observations: Array, env_id: str = TOY) -> Array:
    """What the best policy does."""
    if env_id == REACH:
        return np.float64(1.5) * observations[:, :1]
    return np.argmax(np.concatenate([observations, -observations], axis=1), axis=1)


def make_baseline(env_id: str = TOY, head: Head | None = None) -> MlpPolicy:
    """A network that pushes east for ever, or does nothing where it should reach."""
    spaces = look_up_spaces(Named(env_id))
    rng = np.random.default_rng(0)
    outputs = spaces.action.n or spaces.action.size
    weights = (rng.normal(size=(2, 8)) / 2, np.zeros((8, outputs)))
    bias = np.eye(outputs)[0] if spaces.action.is_discrete else np.zeros(outputs)
    log_std = None if spaces.action.is_discrete else np.full(outputs, -1.0)
    chosen: Head = head or ("logits" if spaces.action.is_discrete else "clip")
    return MlpPolicy(*spaces, weights, (np.zeros(8), bias), "tanh", chosen, log_std=log_std)


def save_folder(policy: MlpPolicy, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in policy.to_files().items():
        (folder / name).write_bytes(content)
    return folder


def gather_toys(
    store: Store, folder: Path, env_id: str = TOY, head: Head | None = None, card: str | None = None, **changes: Any
) -> Manifest:
    """12 episodes of the baseline, drawn from its distribution where it has one."""
    policy = save_folder(make_baseline(env_id, head), folder / "baseline")
    fields: dict[str, Any] = {"env_id": env_id, "policy": f"policy:{policy}", "mode": "sampled", "episodes": 12}
    return gather(store, CollectConfig(**fields | changes), card=card)


Answer = Literal["right", "chance"]


def write_labels(store: Store, dataset_id: str, path: Path, answer: Answer = "right", env_id: str = TOY) -> Path:
    """A label for every step, as `trajnote annotations import` takes them."""
    steps = read_steps(store, dataset_id)
    rows = np.flatnonzero(~steps.is_final)
    best = right_actions(steps.observation[rows], env_id)
    rng = np.random.default_rng(5)
    if answer == "chance":
        best = rng.uniform(-2, 2, best.shape) if env_id == REACH else rng.integers(0, 4, best.shape)
    lines = [
        {
            "dataset_id": dataset_id,
            "episode_id": int(steps.episode_id[row]),
            "step": int(steps.step[row]),
            "suggested_action": action.tolist(),
            "implicit_reward": 0.5 if np.array_equal(action, steps.action[row]) else -0.5,
            "confidence": 0.9,
            "rationale": "x says so",
        }
        for row, action in zip(rows, best, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answers_of(store: Store, dataset_id: str, questions: Sequence[Question]) -> dict[str, str]:
    """What a model that knows the best policy would reply, by request."""
    best = {e.episode_id: right_actions(e.observations[:-1]) for e in iterate_episodes(store, dataset_id)}
    return {question.request.request_id: _reply(best[question.episode_id]) for question in questions}


def _reply(actions: Array) -> str:
    common = {"rationale": "that way", "implicit_reward": 0.0, "confidence": 0.9, "critical": True}
    names = ("east", "north", "west", "south")
    labels = [{"step": step, "suggested_action": names[action], **common} for step, action in enumerate(actions)]
    return json.dumps({"assessment": "fine", "labels": labels})


def write_answers(store: Store, dataset_id: str, card: Path, path: Path, model: str = "toy") -> Path:
    """The same as recorded answers to `trajnote annotate --model toy --card CARD`."""
    plan = plan_run(store, dataset_id, load_card(str(card)), AnnotateConfig(model=model))
    replies = answers_of(store, dataset_id, plan.questions)
    path.write_text("".join(json.dumps({"request_id": id_, "text": text}) + "\n" for id_, text in replies.items()))
    return path


def small_config(workers: int | None = 1, gate: dict[str, Any] | None = None, **refine: Any) -> ImproveConfig:
    """A refinement and a gate of the smallest size that still decides something."""
    recipe = {
        "betas": (0.1,),
        "snapshots": (40, 120),
        "learning_rate": 0.01,
        "batch_size": 64,
        "annotated_per_batch": 32,
        "critic_steps": 50,
    }
    sizes = {"select": 10, "accept": 20, "report": 30, "placebo_draws": 3}
    return ImproveConfig(
        refine=RefineConfig.model_validate(recipe | refine),
        gate=GateConfig.model_validate(sizes | (gate or {})),
        workers=workers,
    )
