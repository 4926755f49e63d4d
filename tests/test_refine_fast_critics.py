from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from soak import every, full_or
from test_refine_fast_cloning import BETAS, Changes, baseline, changed, suggest, walk

from refine.config import RefineConfig
from refine.policies.mlp import Head, MlpPolicy
from refine.training.fast.engine import create_training
from refine.training.packing import build_table
from refine.training.reference.d3rlpy_setup import NoopAdapterFactory
from refine.training.reference.factory import create_algorithm
from refine.training.reference.losses import AnnotatedBuffer
from refine.training.reference.networks import module_layers, reproducible
from storage.schema import Array

CASES: list[tuple[Head, Changes]] = [
    ("logits", {"mode": "RA"}),
    ("logits", {"algorithm": "discrete_cql"}),
    ("tanh", {"mode": "RA"}),
    ("clip", {"algorithm": "td3_plus_bc"}),
]


def make_buffer(policy: MlpPolicy, *, shift: int = 0) -> AnnotatedBuffer:
    """Steps with labels; with a shift every suggestion is another one."""
    steps = walk(policy)
    labels = suggest(policy, steps)
    labels.suggestions[:] = np.roll(labels.suggestions, shift, axis=0)
    return AnnotatedBuffer(build_table(steps, labels, policy, quota=16))


def train(policy: MlpPolicy, config: RefineConfig, buffer: AnnotatedBuffer, count: int) -> Any:
    with reproducible(config.seed):
        training: Any = create_training(policy, config, return_scale=2.0)
        for _ in range(count):
            training.step(buffer.table.sample_columns(config.batch_size))
    return training


def train_reference(policy: MlpPolicy, config: RefineConfig, beta: float, count: int) -> Any:
    with reproducible(config.seed):
        algorithm: Any = create_algorithm(policy, config, beta, return_scale=2.0)
        algorithm.fit(make_buffer(policy), count, count, logger_adapter=NoopAdapterFactory(), show_progress=False)
    return algorithm.impl.modules


def distance(ones: Sequence[Array], others: Sequence[Array]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(ones, others, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("head", "changes"), every(CASES, 2))
def test_after_many_steps_critics_and_targets_are_the_references(head: Head, changes: Changes) -> None:
    policy, config = baseline(head), changed({"critic_steps": 40, **changes})
    count = full_or(200, 60)

    critics = train(policy, config, make_buffer(policy), count).critics

    for number, beta in enumerate(BETAS):
        modules = train_reference(policy, config, beta, count)
        for place, critic in enumerate(critics):
            for networks, module in ((critic.online, modules.q_funcs), (critic.target, modules.targ_q_funcs)):
                expected, found = module_layers(module[place]), networks.read(number)
                assert max(distance(a, b) for a, b in zip(expected, found, strict=True)) < 1e-6


@pytest.mark.parametrize(("head", "changes"), CASES)
def test_other_suggestions_change_the_policies_and_no_critic(head: Head, changes: Changes) -> None:
    policy, config = baseline(head), changed({"critic_steps": 4, **changes})

    one, other = (train(policy, config, make_buffer(policy, shift=shift), 5) for shift in (0, 1))

    assert [p.sha256 for p in one.policies()] != [p.sha256 for p in other.policies()]
    for critic, same in zip(one.critics, other.critics, strict=True):
        assert np.array_equal(critic.online.parameters, same.online.parameters)
        assert np.array_equal(critic.target.parameters, same.target.parameters)
