"""Plain offline reinforcement learning on the collected rows, from scratch, by d3rlpy: no label, no baseline's weights.

The algorithms' snapshots are candidates for the gate, as those of a refinement are, so the best one is chosen on the
same selection seeds. d3rlpy's continuous CQL takes several times as long and is left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import d3rlpy
import numpy as np

from refine.labels.reward_relabelling import scale_of_returns
from refine.policies.d3rlpy_models import from_d3rlpy
from refine.policies.mlp import MlpPolicy, action_bounds, input_size, network_inputs, output_size
from refine.policies.sb3_models import use_one_thread
from refine.training.packing import build_table
from refine.training.reference.d3rlpy_setup import (
    MinMaxActionScaler,
    MultiplyRewardScaler,
    NoopAdapterFactory,
    StandardObservationScaler,
    VectorEncoderFactory,
    quiet,
)
from refine.training.reference.losses import AnnotatedBuffer
from refine.training.reference.networks import reproducible
from storage.datasets.reader import StepArrays
from storage.schema import Space

from .playing import Offer
from .scenes import Scene, logged_labels

GAMMA = 0.99
BATCH = 256
SNAPSHOTS = (500, 1000, 2000)
_ENCODER = VectorEncoderFactory([64, 64])  # as the baselines have; d3rlpy's 256 by 256 takes several times as long
_TARGET_INTERVAL = 100  # d3rlpy's 8,000 is more than the whole training


def train_offline(scene: Scene, seed: int) -> list[Offer]:
    """Snapshots of every algorithm for the kind of actions."""
    use_one_thread()
    steps = scene.read_steps()
    configs = _list_discrete() if scene.baseline.action_space.is_discrete else _list_continuous()
    return [found for name, config in configs.items() for found in _train(name, config, scene.baseline, steps, seed)]


def _list_discrete() -> dict[str, Any]:
    fields: dict[str, Any] = {"encoder_factory": _ENCODER, "target_update_interval": _TARGET_INTERVAL}
    algorithms = d3rlpy.algos
    return {
        "DiscreteCQL": algorithms.DiscreteCQLConfig(**fields),
        "DoubleDQN": algorithms.DoubleDQNConfig(**fields),
    }


def _list_continuous() -> dict[str, Any]:
    fields: dict[str, Any] = {"actor_encoder_factory": _ENCODER, "critic_encoder_factory": _ENCODER}
    algorithms = d3rlpy.algos
    return {
        "TD3+BC": algorithms.TD3PlusBCConfig(**fields),
        "IQL": algorithms.IQLConfig(**fields, value_encoder_factory=_ENCODER),
    }


def _train(name: str, config: Any, baseline: MlpPolicy, steps: StepArrays, seed: int) -> list[Offer]:
    """One algorithm from scratch; a snapshot every so many steps."""
    unused = logged_labels(np.zeros(1, np.int64), steps, baseline)
    buffer = AnnotatedBuffer(build_table(steps, unused, baseline, suggestions=False, quota=0))
    found: list[Offer] = []
    with reproducible(seed), quiet():
        buffer.table.reseed(seed)
        algo = replace(config, batch_size=BATCH, gamma=GAMMA, **_scalers(baseline, steps)).create()
        algo.create_impl((input_size(baseline.observation_space),), output_size(baseline.action_space))
        for before, stop in zip((0, *SNAPSHOTS), SNAPSHOTS, strict=False):
            algo.fit(
                buffer,
                n_steps=stop - before,
                n_steps_per_epoch=stop - before,
                logger_adapter=NoopAdapterFactory(),
                show_progress=False,
            )
            found.append(Offer(f"{name}, step {stop}", _export(algo, baseline)))
    return found


def _scalers(baseline: MlpPolicy, steps: StepArrays) -> dict[str, Any]:
    """Standardised observations, rewards in units of the returns, actions from -1 to 1."""
    inputs = network_inputs(steps.observation, baseline.observation_space)
    scalers: dict[str, Any] = {
        "reward_scaler": MultiplyRewardScaler(1.0 / scale_of_returns(steps, steps.reward, gamma=GAMMA))
    }
    if not baseline.observation_space.is_discrete:
        scalers["observation_scaler"] = StandardObservationScaler(inputs.mean(axis=0), inputs.std(axis=0))
    if not baseline.action_space.is_discrete:
        low, high = action_bounds(baseline.action_space)
        scalers["action_scaler"] = MinMaxActionScaler(low, high)
    return scalers


def _export(algo: Any, baseline: MlpPolicy) -> MlpPolicy:
    """The greedy policy; a discrete observation is one input per value in both worlds."""
    space = baseline.observation_space
    shown = Space(kind="box", dtype="float32", size=input_size(space)) if space.is_discrete else space
    return replace(from_d3rlpy(algo, shown, baseline.action_space), observation_space=space)
