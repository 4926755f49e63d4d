from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from refine.config import RefineConfig
from refine.policies.mlp import MlpPolicy
from refine.training.packing import as_logits
from refine.training.reference.d3rlpy_setup import TorchMiniBatch, load_learnable, quiet
from refine.training.reference.factory import create_algorithm, network_outputs, policy_module
from refine.training.reference.losses import (
    AnnotatedMiniBatch,
    AnnotationTensors,
    continuous_behaviour,
    discrete_behaviour,
    read_notes,
)
from refine.training.reference.networks import read_weights
from storage.errors import BadInput
from storage.schema import Space

BOX = Space(kind="box", dtype="float32", size=3, low=(-1.0,) * 3, high=(1.0,) * 3)
DISCRETE = Space(kind="discrete", dtype="int64", size=1, n=4, start=1)
TORQUES = Space(kind="box", dtype="float32", size=2, low=(-2.0, 0.0), high=(2.0, 1.0))
ROWS = 24


def make_policy(head: str = "logits", **fields: object) -> MlpPolicy:
    actions = DISCRETE if head in ("logits", "q_values") else TORQUES
    sizes = [(3, 12), (12, 7), (7, actions.n or actions.size)]
    rng = np.random.default_rng(5)
    weights = tuple(rng.normal(size=size) for size in sizes)
    biases = tuple(rng.normal(size=size[1]) for size in sizes)
    return MlpPolicy(BOX, actions, weights, biases, **{"activation": "tanh", "head": head, **fields})


def make_batch(policy: MlpPolicy, *, suggestions: np.ndarray | None = None, seed: int = 0) -> AnnotatedMiniBatch:
    rng = np.random.default_rng(seed)
    discrete = policy.action_space.is_discrete
    actions = rng.integers(0, 4, (ROWS, 1)) if discrete else rng.uniform([-2, 0], [2, 1], (ROWS, 2))
    observations = rng.normal(size=(ROWS, 3))
    columns = {
        "observations": observations,
        "actions": actions,
        "rewards": rng.normal(size=(ROWS, 1)),
        "next_observations": rng.normal(size=(ROWS, 3)),
        "next_actions": actions,
        "terminals": rng.integers(0, 2, (ROWS, 1)),
        "intervals": np.ones((ROWS, 1)),
        "suggestions": (rng.integers(0, 4, (ROWS, 1)) if discrete else rng.uniform(-1, 1, (ROWS, 2))),
        "weights": rng.uniform(0.5, 1.5, (ROWS, 1)),
        "labelled": (np.arange(ROWS) < 8)[:, None],
        "references": policy.forward(observations),
    }
    if suggestions is not None:
        columns["suggestions"] = suggestions
    return AnnotatedMiniBatch(**{name: value.astype(np.float32) for name, value in columns.items()}, transitions=())


def as_torch(batch: AnnotatedMiniBatch) -> TorchMiniBatch:
    return TorchMiniBatch.from_batch(batch, gamma=0.9, compute_returns_to_go=False, device="cpu:0")


def tampered(batch: AnnotatedMiniBatch) -> AnnotatedMiniBatch:
    return dataclasses.replace(batch, suggestions=batch.suggestions[::-1].copy(), weights=batch.weights * 3)


MODES = [(mode, head) for mode in ("A", "R", "RA") for head in ("logits", "tanh", "clip")]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "head"), MODES)
def test_an_algorithm_starts_exactly_at_the_baseline(mode: str, head: str) -> None:
    policy = make_policy(head, shift=np.array([0.1, 0.2, 0.3]), scale=np.array([1.0, 2.0, 0.5]))
    observations = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)

    with quiet():
        algorithm = create_algorithm(policy, RefineConfig(mode=mode), 0.1)
        acted = algorithm.predict(observations)

    expected = policy.forward(observations)
    expected = log_softmax(expected, axis=1) if head == "logits" else expected
    np.testing.assert_allclose(network_outputs(algorithm, observations, policy), expected, atol=1e-5)
    offset = 1 if head == "logits" else 0  # d3rlpy counts discrete actions from 0
    np.testing.assert_allclose(acted + offset, policy.act(observations).actions, atol=1e-5)


@pytest.mark.parametrize("head", ["logits", "tanh", "clip"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_weights_survive_the_way_into_torch_and_back(head: str, activation: str) -> None:
    policy = make_policy(head, activation=activation)
    with quiet():
        algorithm = create_algorithm(policy, RefineConfig(), 0.1)

    again = read_weights(policy_module(algorithm), policy)

    for left, right in zip(again.weights + again.biases, policy.weights + policy.biases, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("mode", "head"), MODES)
def test_d3rlpy_saves_and_loads_what_was_trained(mode: str, head: str, tmp_path: Path) -> None:
    policy = make_policy(head, scale=np.array([1.0, 2.0, 0.5]))
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    with quiet():
        algorithm = create_algorithm(policy, RefineConfig(mode=mode, critic_steps=0), 0.25)
        algorithm.update(make_batch(policy))
        algorithm.save(str(tmp_path / "learnt.d3"))
        again = load_learnable(str(tmp_path / "learnt.d3"))

    assert type(again) is type(algorithm)
    assert again.config.stay_close == 0.25
    np.testing.assert_array_equal(again.predict(observations), algorithm.predict(observations))


@pytest.mark.parametrize("head", ["logits", "tanh", "clip"])
def test_tampered_suggestions_never_change_a_target_or_a_critic(head: str) -> None:
    policy = make_policy(head)
    batch = make_batch(policy)
    critics = []
    for given in (batch, tampered(batch)):
        torch.manual_seed(0)
        with quiet():
            algorithm = create_algorithm(policy, RefineConfig(mode="RA", critic_steps=0), 0.1)
        torch.manual_seed(1)
        target = algorithm.impl.compute_target(as_torch(given))
        algorithm.update(given)
        weights = [weight.detach().numpy().copy() for weight in algorithm.impl.q_function.parameters()]
        actor = [weight.detach().numpy().copy() for weight in policy_module(algorithm).parameters()]
        critics.append((target.numpy(), weights, actor))

    (target, weights, actor), (target_again, weights_again, actor_again) = critics
    assert target.tobytes() == target_again.tobytes()
    assert all(left.tobytes() == right.tobytes() for left, right in zip(weights, weights_again, strict=True))
    assert any(left.tobytes() != right.tobytes() for left, right in zip(actor, actor_again, strict=True))


def test_the_discrete_target_is_the_expectation_over_the_actor() -> None:
    policy = make_policy()
    with quiet():
        algorithm = create_algorithm(policy, RefineConfig(mode="R"), 0.1)
    batch = make_batch(policy)
    impl = algorithm.impl

    found = impl.compute_target(as_torch(batch)).numpy()[:, 0]

    values = impl._targ_q_func_forwarder.compute_expected_q(torch.from_numpy(batch.next_observations)).detach().numpy()
    probabilities = np.exp(log_softmax(policy.forward(batch.next_observations), axis=1))
    np.testing.assert_allclose(found, (probabilities * values).sum(axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["logits", "clip"])
def test_the_actor_waits_until_the_critic_has_had_its_start(head: str) -> None:
    policy = make_policy(head)
    with quiet():
        algorithm = create_algorithm(policy, RefineConfig(mode="RA", critic_steps=3), 0.1)
    batch = make_batch(policy)

    moved = []
    for _ in range(5):
        before = [weight.detach().clone() for weight in policy_module(algorithm).parameters()]
        algorithm.update(batch)
        after = policy_module(algorithm).parameters()
        moved.append(any(not torch.equal(old, new) for old, new in zip(before, after, strict=True)))

    assert moved == [False, False, False, True, True]


def notes_for(discrete: bool) -> tuple[torch.Tensor, AnnotationTensors]:
    rng = np.random.default_rng(2)
    outputs, references = (torch.tensor(rng.normal(size=(6, 3)), dtype=torch.float32) for _ in range(2))
    suggestions = rng.integers(0, 3, (6, 1)) if discrete else rng.normal(size=(6, 3))
    weights, labelled = torch.tensor([2.0, 0.5, 1, 9, 9, 9]), torch.tensor([1.0, 1, 1, 0, 0, 0])
    return outputs, AnnotationTensors(torch.tensor(suggestions, dtype=torch.float32), weights, labelled, references)


def test_the_discrete_loss_is_weighted_cross_entropy_and_divergence_from_the_baseline() -> None:
    logits, notes = notes_for(discrete=True)

    loss = discrete_behaviour(logits, notes, 0.3)

    log_p, log_q = log_softmax(logits.numpy(), axis=1), log_softmax(notes.references.numpy(), axis=1)
    picked = log_p[np.arange(3), notes.suggestions[:3, 0].int().numpy()]
    suggestion = -(np.array([2, 0.5, 1]) * picked).sum() / 3
    divergence = (np.exp(log_q[3:]) * (log_q[3:] - log_p[3:])).sum(axis=1).mean()
    assert float(loss.suggestion_loss) == pytest.approx(suggestion, rel=1e-5)
    assert float(loss.stay_close_loss) == pytest.approx(divergence, rel=1e-5)
    assert float(loss.loss) == pytest.approx(suggestion + 0.3 * divergence, rel=1e-5)


def test_the_continuous_loss_is_weighted_squared_error_and_distance_from_the_baseline() -> None:
    means, notes = notes_for(discrete=False)

    loss = continuous_behaviour(means, notes, 0.3)

    errors = ((means - notes.suggestions) ** 2).mean(dim=1).numpy()[:3]
    distances = ((means - notes.references) ** 2).mean(dim=1).numpy()[3:]
    assert float(loss.loss) == pytest.approx((np.array([2, 0.5, 1]) * errors).mean() + 0.3 * distances.mean(), rel=1e-5)


def test_there_is_no_error_beyond_the_bound_where_the_suggestion_lies() -> None:
    notes = AnnotationTensors(torch.tensor([[1.0], [-1.0]]), torch.ones(2), torch.ones(2), torch.zeros(2, 1))
    cuts = [[-1.0], [1.0]]

    def loss(first: float, second: float) -> float:
        return float(continuous_behaviour(torch.tensor([[first], [second]]), notes, 0.3, cuts=cuts).loss)

    assert loss(1.0, -7.0) == loss(5.0, -1.0) == 0
    assert loss(0.5, -2.0) == pytest.approx(0.5**2 / 2)
    assert loss(3.0, 1.0) == pytest.approx(2**2 / 2), "the other bound is as far as it was"


def test_nothing_pulls_a_policy_that_says_what_everybody_says() -> None:
    logits, notes = notes_for(discrete=True)
    settled = AnnotationTensors(notes.suggestions, torch.zeros(6), notes.labelled, logits.clone())

    assert float(discrete_behaviour(logits, settled, 1.0).loss) == pytest.approx(0, abs=1e-6)


def test_a_batch_of_another_buffer_is_refused() -> None:
    batch = as_torch(make_batch(make_policy()))
    with pytest.raises(TypeError, match="needs an AnnotatedBuffer"):
        read_notes(dataclasses.replace(batch, numpy_batch=None))


def test_q_values_as_logits_keep_the_greedy_action_and_have_a_lead_of_one() -> None:
    policy = make_policy("q_values")
    observations = np.random.default_rng(1).normal(size=(200, 3))

    logits = as_logits(policy, observations)

    assert logits.head == "logits"
    np.testing.assert_array_equal(logits.act(observations).actions, policy.act(observations).actions)
    outputs = logits.forward(observations)
    assert np.mean(outputs.max(axis=1) - outputs.mean(axis=1)) == pytest.approx(1, rel=1e-4)


def test_a_policy_without_hidden_layers_is_refused() -> None:
    flat = MlpPolicy(BOX, DISCRETE, (np.zeros((3, 4)),), (np.zeros(4),), "tanh", "logits")
    with pytest.raises(BadInput, match="no hidden layer"):
        create_algorithm(flat, RefineConfig(), 0.1)


def test_unbounded_actions_are_refused_where_a_critic_needs_bounds() -> None:
    free = Space(kind="box", dtype="float32", size=1)
    policy = MlpPolicy(BOX, free, (np.zeros((3, 4)), np.zeros((4, 1))), (np.zeros(4), np.zeros(1)), "tanh", "clip")
    with quiet():
        create_algorithm(policy, RefineConfig(mode="A"), 0.1)
        with pytest.raises(BadInput, match="needs bounded actions"):
            create_algorithm(policy, RefineConfig(mode="RA"), 0.1)
