"""The annotated forms of d3rlpy's algorithms: what is d3rlpy's own stays so, and no critic ever sees a suggestion."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from test_refine_algorithms import as_torch, make_batch, make_policy, tampered
from test_refine_train import (
    FORCES,
    GOAL,
    LABELS,
    MOVES,
    STEPS,
    Labels,
    MlpPolicy,
    count_solved,
    force_error,
    push,
    pusher,
    refine,
    target_force,
    walker,
)

from refine.config import CONTINUOUS_ALGORITHMS, DISCRETE_ALGORITHMS, AlgorithmName, RefineConfig
from refine.training.reference.d3rlpy_setup import TorchMiniBatch, load_learnable, quiet
from refine.training.reference.factory import create_algorithm, network_outputs, policy_module
from refine.training.reference.losses import BehaviourLoss
from storage.errors import BadInput

DISCRETE = [("A", name, "logits") for name in DISCRETE_ALGORITHMS if name != "recipe"]
CONTINUOUS = [("RA", name, head) for name in CONTINUOUS_ALGORITHMS[2:] for head in ("tanh", "clip")]
CASES = [*DISCRETE, ("A", "bc", "tanh"), ("A", "bc", "clip"), *CONTINUOUS]
CRITICS = [case for case in CASES if case[1] != "bc"]


def create(policy: MlpPolicy, mode: Any, algorithm: Any, beta: float = 0.1, **options: Any) -> Any:
    options = {"critic_steps": 0, "batch_size": 320, **options}
    torch.manual_seed(0)
    with quiet():
        return create_algorithm(policy, RefineConfig(mode=mode, algorithm=algorithm, **options), beta)


def as_seen(algorithm: Any, batch: Any) -> TorchMiniBatch:
    """The batch as the algorithm's losses see it, with actions in the network's units."""
    scaler = algorithm.config.action_scaler
    return TorchMiniBatch.from_batch(batch, 0.9, False, "cpu:0", action_scaler=scaler)


def critic_of(algorithm: Any) -> dict[str, torch.Tensor]:
    """Everything that learns from rewards: Q functions, their targets, and the values of IQL."""
    parts = algorithm.impl.modules.get_torch_modules()
    return {
        f"{part}.{name}": value.clone()
        for part, module in parts.items()
        if part in ("q_funcs", "targ_q_funcs", "value_func")
        for name, value in module.state_dict().items()
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize(("mode", "name", "head"), CASES)
def test_every_algorithm_starts_exactly_at_the_baseline_and_is_saved_as_d3rlpys_are(
    mode: str, name: str, head: str, tmp_path: Path
) -> None:
    policy = make_policy(head, shift=np.array([0.1, 0.2, 0.3]), scale=np.array([1.0, 2.0, 0.5]))
    observations = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    algorithm = create(policy, mode, name, 0.25)

    expected = policy.forward(observations)
    expected = log_softmax(expected, axis=1) if head == "logits" else expected
    np.testing.assert_allclose(network_outputs(algorithm, observations, policy), expected, atol=1e-5)

    with quiet():
        algorithm.update(make_batch(policy))
        algorithm.save(str(tmp_path / "learnt.d3"))
        again: Any = load_learnable(str(tmp_path / "learnt.d3"))
    assert type(again) is type(algorithm)
    assert again.config.stay_close == 0.25
    np.testing.assert_array_equal(again.predict(observations), algorithm.predict(observations))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "name", "head"), CRITICS)
def test_other_suggestions_change_no_target_and_no_critic_of_any_algorithm(mode: str, name: str, head: str) -> None:
    policy = make_policy(head)
    batch = make_batch(policy)
    found = []
    for given in (batch, tampered(batch)):
        algorithm = create(policy, mode, name)
        torch.manual_seed(1)
        target = algorithm.impl.compute_target(as_torch(given))
        algorithm.update(given)  # the actor does not move before the critic has had its gradient
        found.append(
            (target, critic_of(algorithm), [weight.clone() for weight in policy_module(algorithm).parameters()])
        )

    (target, critic, actor), (target_again, critic_again, actor_again) = found
    assert torch.equal(target, target_again)
    assert same(critic, critic_again)
    assert not all(torch.equal(left, right) for left, right in zip(actor, actor_again, strict=True))


OWN = {
    "dqn": (d3rlpy.algos.DQNConfig, "logits"),
    "discrete_cql": (d3rlpy.algos.DiscreteCQLConfig, "logits"),
    "td3_plus_bc": (d3rlpy.algos.TD3PlusBCConfig, "tanh"),
    "iql": (d3rlpy.algos.IQLConfig, "tanh"),
    "rebrac": (d3rlpy.algos.ReBRACConfig, "tanh"),
}


def plain_twin(algorithm: Any, config: type) -> Any:
    """d3rlpy's own algorithm with the same settings and weights."""
    names = {field.name for field in dataclasses.fields(config)}
    fields = {name: value for name, value in vars(algorithm.config).items() if name in names}
    with quiet():
        twin = config(**fields).create()
        twin.create_impl((3,), algorithm.impl.action_size)
    ours = algorithm.impl.modules.get_torch_modules()
    for name, module in twin.impl.modules.get_torch_modules().items():
        module.load_state_dict(ours[name].state_dict())
    return twin


@pytest.mark.parametrize("name", OWN)
def test_a_critic_learns_exactly_what_d3rlpys_own_learns(name: str) -> None:
    config, head = OWN[name]
    policy = make_policy(head)
    algorithm = create(policy, "RA", name)
    twin = plain_twin(algorithm, config)
    for learner in (algorithm, twin):
        torch.manual_seed(4)
        learner.update(make_batch(policy))

    if name != "discrete_cql":
        assert same(critic_of(algorithm), critic_of(twin))
        return
    ours, theirs = critic_of(algorithm), critic_of(twin)  # both terms of its loss share a forward pass: other rounding
    for part, value in ours.items():
        torch.testing.assert_close(value, theirs[part], rtol=0, atol=1e-6)  # a step of Adam is 1e-3


@pytest.mark.parametrize("name", ["td3_plus_bc", "iql", "rebrac"])
def test_without_labels_and_baseline_an_actor_learns_what_d3rlpys_own_learns(name: str) -> None:
    config, head = OWN[name]
    policy = make_policy(head)
    batch = make_batch(policy)
    batch = dataclasses.replace(batch, labelled=np.zeros_like(batch.labelled))
    algorithm = create(policy, "RA", name, beta=0.0, improvement=1.0)
    twin = plain_twin(algorithm, config)
    for learner in (algorithm, twin):
        torch.manual_seed(4)
        learner.update(batch)

    for ours, theirs in zip(policy_module(algorithm).parameters(), twin.impl.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # a step of Adam is 1e-3


@pytest.mark.parametrize(("name", "head"), [("awac", "tanh"), ("awac", "clip"), ("iql", "clip")])
def test_a_likelihood_is_told_in_units_of_a_squared_error(name: str, head: str) -> None:
    policy = make_policy(head)
    algorithm = create(policy, "RA", name)
    impl, batch = algorithm.impl, as_seen(algorithm, make_batch(policy))
    action = impl.modules.policy(batch.observations)
    if name == "awac":
        torch.manual_seed(2)
        weights = impl._compute_weights(batch.observations, batch.actions)
    else:
        weights = impl._compute_weight(batch)
    means = action.mu if head == "clip" else action.squashed_mu
    squares = (weights * ((means - batch.actions) ** 2).mean(dim=1, keepdim=True)).mean()
    (expected,) = torch.autograd.grad(squares, action.mu, retain_graph=True)

    torch.manual_seed(2)
    own = impl.compute_own(batch, action)

    (found,) = torch.autograd.grad(own, action.mu)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["logits", "tanh", "clip"])
def test_cloning_adds_d3rlpys_own_loss_on_logged_actions(head: str) -> None:
    policy = make_policy(head)
    batch = make_batch(policy)
    recipe, cloning = (create(policy, "A", name, improvement=0.5) for name in ("recipe", "bc"))

    without, with_own = (
        algorithm.impl.compute_imitator_grad(as_seen(algorithm, batch)) for algorithm in (recipe, cloning)
    )

    seen = as_seen(cloning, batch)
    if head == "logits":
        own = cloning.impl.compute_loss(seen.observations, seen.actions).loss
    else:
        output = cloning.impl.policy(seen.observations)
        own = ((output.mu if head == "clip" else output.squashed_mu) - seen.actions).square().mean()
    assert isinstance(with_own, BehaviourLoss)
    assert float(with_own.loss) == pytest.approx(float(without.loss + 0.5 * own), rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "name", "head"), [("A", "recipe", "logits"), ("RA", "iql", "tanh"), ("RA", "dqn", "logits")]
)
def test_the_suggestions_gain_weight_over_the_steps_of_the_ramp(mode: str, name: str, head: str) -> None:
    policy = make_policy(head)
    waiting = 2 if mode == "RA" else 0
    algorithm = create(policy, mode, name, ramp_steps=4, critic_steps=waiting)
    weights = []
    for _ in range(waiting + 6):
        algorithm.update(make_batch(policy))
        weights.append(algorithm.impl._ramp)

    assert weights[waiting:] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dqn", "discrete_cql", "bc"])
def test_every_discrete_algorithm_attains_right_labels(name: AlgorithmName) -> None:
    config = RefineConfig(algorithm=name, betas=(0.1,), snapshots=(150,), critic_steps=20)
    assert count_solved(refine(STEPS, LABELS, walker(), config)[0].policy) >= GOAL - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTINUOUS_ALGORITHMS[1:])
def test_every_continuous_algorithm_approaches_right_labels(name: AlgorithmName) -> None:
    baseline = pusher("clip")
    steps = push(baseline)
    rows = np.flatnonzero(~steps.is_final)[:100]
    labels = Labels(rows, target_force(steps.observation[rows]).astype(float), np.ones(100), np.zeros(100))
    config = RefineConfig(algorithm=name, betas=(0.1,), snapshots=(80,), critic_steps=20)

    assert force_error(baseline) > 0.6
    assert force_error(refine(steps, labels, baseline, config)[0].policy) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dqn", "td3_plus_bc"])
def test_equal_seeds_give_equal_bits_of_an_algorithm_with_targets(name: AlgorithmName) -> None:
    config = RefineConfig(mode="RA", algorithm=name, betas=(0.1,), snapshots=(20,), critic_steps=10)
    baseline = walker() if name == "dqn" else pusher("tanh")
    steps = STEPS if name == "dqn" else push(baseline, 100)
    rows = np.flatnonzero(~steps.is_final)[:40]
    labels = Labels(rows, steps.action[rows], np.ones(40), np.linspace(-1, 1, 40))

    first, again = (refine(steps, labels, baseline, config)[0].policy.sha256 for _ in range(2))

    assert first == again


@pytest.mark.parametrize(
    ("name", "actions", "allowed"),
    [
        ("iql", MOVES, "recipe, bc, dqn, discrete_cql"),
        ("rebrac", MOVES, "recipe, bc, dqn, discrete_cql"),
        ("dqn", FORCES, "recipe, bc, td3_plus_bc, iql, awac, rebrac"),
    ],
)
def test_an_algorithm_for_other_actions_is_refused_with_those_that_are_allowed(
    name: AlgorithmName, actions: Any, allowed: str
) -> None:
    kind = "discrete" if actions.is_discrete else "continuous"
    with pytest.raises(BadInput, match=f"{name} is not for {kind} actions; allowed are {allowed}."):
        RefineConfig(algorithm=name).completed(actions)


def test_cloning_has_no_use_for_rewards_and_says_so() -> None:
    with pytest.raises(BadInput, match="bc learns nothing from rewards, so mode RA is not for it; allowed is mode A"):
        RefineConfig(mode="RA", algorithm="bc")


def test_a_copy_with_another_mode_is_checked_before_anything_is_trained() -> None:
    with pytest.raises(BadInput, match="bc learns nothing from rewards"):
        RefineConfig(algorithm="bc").model_copy(update={"mode": "R"}).completed(MOVES)


def test_tables_name_the_mode_and_the_algorithm_that_was_asked_for() -> None:
    assert RefineConfig(mode="RA").name == "RA"
    assert RefineConfig(mode="RA", algorithm="iql").name == "RA iql"
