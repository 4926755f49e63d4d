"""A baseline from its traces: a network that says what the logged policy said, for policies whose weights are unknown.

It clones; making the clone better is `training/train.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from storage.datasets import StepArrays
from storage.errors import BadInput
from storage.schema import Array, Space

from ..policies import MlpPolicy, OutputKind, action_bounds, action_units, input_size, network_inputs, output_size
from .packing import in_network_units, mean_lead
from .reference import read_weights, reproducible

HIDDEN = (64, 64)
TRAINING_STEPS = 4_000
BATCH = 256
LEARNING_RATE = 2e-3
HELD_OUT = 5
"""Every fifth episode is not trained on, and tells how well the clone agrees."""


@dataclass(frozen=True)
class Distilled:
    """A clone, and how far it can be trusted."""

    policy: MlpPolicy
    agreement: float
    """On held-out steps. Discrete: share of equal greedy actions. Continuous: share of variance explained, from 0."""
    source: Literal["policy_output", "actions"]
    held_out: int  # steps behind the agreement


@dataclass(frozen=True)
class _Lesson:
    """What the clone learns, for M steps."""

    inputs: Array  # (M, n) float32
    targets: Array  # (M, k) probabilities, or (M, m) means in the network's units
    source: Literal["policy_output", "actions"]


def distil(
    steps: StepArrays,
    observation_space: Space,
    action_space: Space,
    *,
    output_kind: OutputKind | None = None,
    seed: int = 0,
    training_steps: int = TRAINING_STEPS,
) -> Distilled:
    """Clone the policy that made a dataset.

    From stored logits by their Kullback-Leibler divergence, from stored means by the squared error; from Q values as
    from logits, scaled as in `networks.as_logits`; without stored outputs from the logged actions, of which a sampled
    policy leaves noise. A continuous clone clips to the bounds and keeps the log's spread around the mean.

    Args:
        steps: logged steps.
        observation_space: of the environment.
        action_space: of the environment.
        output_kind: what `steps.policy_output` holds, from the manifest; None when there is none.
        seed: of initialisation and sampling.
        training_steps: of Adam, 256 states each.

    Raises:
        BadInput: for fewer than 10 steps, or an output that does not fit the action space.
    """
    acted = np.flatnonzero(~steps.is_final)
    if len(acted) < 10:
        raise BadInput(
            f"{len(acted)} steps are too few to distil a baseline from; at least 10 are needed.",
            "Collect more episodes, or collect with a policy whose weights can be read, which needs no distillation.",
        )
    lesson = _read_lesson(steps, acted, observation_space, action_space, output_kind)
    held_out = _hold_out(steps, acted)
    blank = _blank_policy(lesson.inputs[~held_out], observation_space, action_space)
    with reproducible(seed):
        module = _fit(lesson, ~held_out, blank, np.random.default_rng(seed), training_steps)
    policy = _with_spread(read_weights(module, blank), steps, acted, lesson)
    outputs = policy.forward(steps.observation[acted[held_out]])
    agreement = _agreement(outputs, lesson.targets[held_out], action_space)
    return Distilled(policy, agreement, lesson.source, int(held_out.sum()))


def _read_lesson(
    steps: StepArrays, acted: NDArray[np.int64], observations: Space, actions: Space, kind: OutputKind | None
) -> _Lesson:
    inputs = network_inputs(steps.observation[acted], observations)
    logged = steps.action[acted]
    if kind is None or steps.policy_output is None:
        if actions.is_discrete:
            return _Lesson(inputs, np.eye(output_size(actions), dtype=np.float32)[logged - actions.start], "actions")
        return _Lesson(inputs, _in_units(logged, actions), "actions")
    outputs = steps.policy_output[acted]
    if (kind == "mean") == actions.is_discrete or outputs.shape[1] != output_size(actions):
        raise BadInput(f"The stored outputs are {kind} of size {outputs.shape[1]}; the actions are {actions.kind}.")
    if kind == "mean":
        return _Lesson(inputs, _in_units(outputs, actions), "policy_output")
    if kind == "q_values":
        outputs = outputs / mean_lead(outputs)
    return _Lesson(inputs, softmax(outputs.astype(np.float64), axis=1).astype(np.float32), "policy_output")


def _in_units(actions: Array, space: Space) -> Array:
    """Continuous actions, cut to the bounds as the environment got them, in the network's units."""
    return in_network_units(np.clip(actions, *action_bounds(space)), space).astype(np.float32)


def _hold_out(steps: StepArrays, acted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Every fifth episode; every fifth step where there are fewer episodes than that."""
    place = np.searchsorted(steps.episodes, steps.episode_id[acted])
    if len(steps.episodes) < HELD_OUT:
        place = np.arange(len(acted))
    return place % HELD_OUT == HELD_OUT - 1


def _blank_policy(inputs: Array, observations: Space, actions: Space) -> MlpPolicy:
    """The clone's architecture, normalised over the training steps, before it has learnt anything."""
    scale = inputs.std(axis=0)
    sizes = [input_size(observations), *HIDDEN, output_size(actions)]
    return MlpPolicy(
        observations,
        actions,
        weights=tuple(np.zeros(shape) for shape in pairwise(sizes)),
        biases=tuple(np.zeros(size) for size in sizes[1:]),
        activation="tanh",
        head="logits" if actions.is_discrete else "clip",
        shift=inputs.mean(axis=0),
        scale=np.where(scale > 1e-6, scale, 1.0),
    )


def _fit(
    lesson: _Lesson, used: NDArray[np.bool_], blank: MlpPolicy, rng: np.random.Generator, training_steps: int
) -> nn.Module:
    inputs = torch.from_numpy(((lesson.inputs[used] - blank.shift) / blank.scale).astype(np.float32))
    targets = torch.from_numpy(lesson.targets[used])
    layers = [part for weight in blank.weights for part in (nn.Linear(*weight.shape), nn.Tanh())]
    module = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, training_steps)
    error = cross_entropy if blank.action_space.is_discrete else mse_loss
    for _ in range(training_steps):
        batch = torch.from_numpy(rng.integers(0, len(inputs), BATCH))
        optimizer.zero_grad()
        error(module(inputs[batch]), targets[batch]).backward()
        optimizer.step()
        schedule.step()
    return module


def _with_spread(policy: MlpPolicy, steps: StepArrays, acted: NDArray[np.int64], lesson: _Lesson) -> MlpPolicy:
    """Give a continuous clone the spread of the logged actions around what it learnt; none where there is none."""
    if policy.action_space.is_discrete:
        return policy
    middle, half = action_units(policy.action_space)
    means = (
        lesson.targets
        if lesson.source == "policy_output"
        else _in_units(policy.forward(steps.observation[acted]), policy.action_space)
    )
    spread = (steps.action[acted] - (means * half + middle)).std(axis=0)
    return replace(policy, log_std=np.log(spread)) if (spread > 1e-4).all() else policy


def _agreement(outputs: Array, targets: Array, space: Space) -> float:
    if space.is_discrete:
        return float(np.mean(outputs.argmax(axis=1) == targets.argmax(axis=1)))
    errors = np.square(_in_units(outputs, space) - targets).sum()
    return max(0.0, 1.0 - float(errors / max(np.square(targets - targets.mean(axis=0)).sum(), 1e-12)))
