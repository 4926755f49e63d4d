from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import full_or

from refine.policies.mlp import MlpPolicy, Mode, stand_abreast
from storage.errors import BadInput, DamagedStore
from storage.schema import Space

BOX = Space(kind="box", dtype="float32", size=5, low=(-np.inf,) * 5, high=(np.inf,) * 5)
DISCRETE = Space(kind="discrete", dtype="int64", size=1, n=3, start=2)
TORQUES = Space(kind="box", dtype="float64", size=2, low=(-1.0, 0.0), high=(1.0, 4.0))


def make_policy(head: str = "logits", *, hidden: int = 64, observations: Space = BOX, **fields: object) -> MlpPolicy:
    rng = np.random.default_rng(3)
    actions = DISCRETE if head in ("logits", "q_values") else TORQUES
    inputs = observations.n or observations.size
    sizes = [inputs, hidden, hidden, actions.n or actions.size]
    layers = list(itertools.pairwise(sizes))
    return MlpPolicy(
        observations,
        actions,
        tuple(rng.normal(size=layer) / np.sqrt(layer[0]) for layer in layers),
        tuple(rng.normal(size=out) for _, out in layers),
        **{"activation": "tanh", "head": head, **fields},
    )


def rngs(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, row]) for row in range(count)]


@pytest.mark.parametrize("head", ["logits", "q_values", "tanh", "clip"])
@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_networks_side_by_side_do_what_each_of_them_does_alone_to_the_last_bit(head: str, mode: Mode) -> None:
    beside = {} if head in ("logits", "q_values") else {"log_std": np.zeros(2)}
    one = make_policy(head, shift=np.arange(5.0), scale=np.arange(1.0, 6.0), output_limit=0.7, **beside)
    other = replace(
        one, weights=[-weight for weight in one.weights], shift=np.ones(5), **{k: -v for k, v in beside.items()}
    )
    assert one.shape == other.shape != make_policy(head, hidden=7).shape
    policies = [one, other, other, one, other]
    observations = np.random.default_rng(1).normal(size=(5, 5)).astype(np.float32)

    together = stand_abreast(policies).act(observations, mode=mode, rngs=rngs(5))
    alone = [
        policy.act(observations[row : row + 1], mode=mode, rngs=rngs(5)[row : row + 1])
        for row, policy in enumerate(policies)
    ]
    assert together.actions.tobytes() == np.concatenate([acts.actions for acts in alone]).tobytes()
    assert together.outputs.tobytes() == np.concatenate([acts.outputs for acts in alone]).tobytes()
    assert stand_abreast([one, one]) is one


POLICIES = {
    "tanh64": make_policy(),
    "relu33": make_policy("q_values", hidden=33, activation="relu"),
    "normalised": make_policy("tanh", shift=np.arange(5.0), scale=np.arange(1.0, 6.0), log_std=np.array([-1.0, 0.5])),
    "clip": make_policy("clip", hidden=7, log_std=np.zeros(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=full_or(40, 10), deadline=None)
@given(rows=st.lists(st.integers(0, 99), min_size=1, max_size=70))
def test_a_row_has_the_same_bits_in_every_batch_and_position(name: str, rows: list[int]) -> None:
    policy = POLICIES[name]
    observations = np.random.default_rng(1).normal(size=(100, 5)).astype(np.float32)
    alone = np.concatenate([policy.forward(observations[row : row + 1]) for row in range(100)])

    together = policy.forward(observations[rows])
    sampled = policy.act(observations[rows], mode="sampled", rngs=[np.random.default_rng(row) for row in rows])
    one_by_one = [
        policy.act(observations[row : row + 1], mode="sampled", rngs=[np.random.default_rng(row)]).actions
        for row in rows
    ]

    assert together.tobytes() == alone[rows].tobytes()
    assert sampled.actions.tobytes() == np.concatenate(one_by_one).tobytes()


def test_forward_computes_the_written_formula() -> None:
    policy = make_policy("logits", shift=np.ones(5), scale=np.full(5, 2.0))
    observations = np.random.default_rng(4).normal(size=(9, 5))

    hidden = (observations - 1) / 2
    for weight, bias in zip(policy.weights[:-1], policy.biases[:-1], strict=True):
        hidden = np.tanh(hidden @ weight + bias)
    expected = hidden @ policy.weights[-1] + policy.biases[-1]

    np.testing.assert_allclose(policy.forward(observations), expected, atol=2e-6)
    assert policy.forward(observations).dtype == np.float32


def test_a_discrete_observation_is_one_hot_and_selects_a_row_of_the_first_layer() -> None:
    space = Space(kind="discrete", dtype="int64", size=1, n=4, start=1)
    policy = MlpPolicy(space, DISCRETE, (np.arange(12.0).reshape(4, 3),), (np.zeros(3),), "relu", "logits")

    assert policy.forward(np.array([1, 4])).tolist() == [[0, 1, 2], [9, 10, 11]]
    assert policy.forward(np.array([[3]])).tolist() == [[6, 7, 8]]
    with pytest.raises(BadInput, match=r"outside 1 \.\. 4"):
        policy.forward(np.array([0]))


def test_greedy_discrete_actions_count_from_the_start_of_the_space() -> None:
    policy = MlpPolicy(BOX, DISCRETE, (np.zeros((5, 3)),), (np.array([0.0, 5.0, 1.0]),), "tanh", "logits")

    acts = policy.act(np.zeros((2, 5)))

    assert acts.actions.tolist() == [3, 3]
    assert acts.outputs.tolist() == [[0, 5, 1], [0, 5, 1]]


@pytest.mark.slow
def test_sampled_actions_follow_the_softmax_of_the_logits() -> None:
    policy = MlpPolicy(BOX, DISCRETE, (np.zeros((5, 3)),), (np.log([0.2, 0.5, 0.3]),), "tanh", "logits")

    actions = policy.act(np.zeros((20_000, 5)), mode="sampled", rngs=rngs(20_000)).actions

    np.testing.assert_allclose(np.bincount(actions, minlength=5)[2:] / 20_000, [0.2, 0.5, 0.3], atol=0.012)


def test_an_action_of_probability_zero_is_never_sampled() -> None:
    policy = MlpPolicy(BOX, DISCRETE, (np.zeros((5, 3)),), (np.array([-1e4, 0.0, -1e4]),), "tanh", "logits")

    assert set(policy.act(np.zeros((500, 5)), mode="sampled", rngs=rngs(500)).actions) == {3}


@pytest.mark.slow
def test_sampled_continuous_actions_have_the_mean_and_deviation_of_the_policy_and_stay_inside_the_bounds() -> None:
    zero = (np.zeros((5, 2)),)
    policy = MlpPolicy(BOX, TORQUES, zero, (np.array([0.5, 2.0]),), "tanh", "clip", log_std=np.log([0.1, 0.2]))

    acts = policy.act(np.zeros((20_000, 5)), mode="sampled", rngs=rngs(20_000))

    np.testing.assert_allclose(acts.actions.mean(axis=0), [0.5, 2.0], atol=0.01)
    np.testing.assert_allclose(acts.actions.std(axis=0), [0.1, 0.2], atol=0.01)
    assert acts.actions.dtype == np.float64
    wide = MlpPolicy(BOX, TORQUES, zero, (np.zeros(2),), "tanh", "clip", log_std=np.full(2, 3.0))
    actions = wide.act(np.zeros((200, 5)), mode="sampled", rngs=rngs(200)).actions
    assert (actions.min(axis=0) == [-1, 0]).all()
    assert (actions.max(axis=0) == [1, 4]).all()


def test_the_tanh_head_reaches_from_bound_to_bound() -> None:
    weights = (np.concatenate([[[1.0, 1.0]], np.zeros((4, 2))]),)
    policy = MlpPolicy(BOX, TORQUES, weights, (np.zeros(2),), "tanh", "tanh")

    outputs = policy.forward(np.diag([100.0, 0, 0, 0, 0])[[0, 1]])

    assert outputs.tolist() == [[1, 4], [0, 2]]
    assert policy.output_kind == "mean"


def test_a_policy_without_a_distribution_is_its_own_sample() -> None:
    observations = np.random.default_rng(0).normal(size=(6, 5))
    for policy in (make_policy("q_values"), make_policy("tanh")):
        assert not policy.is_stochastic
        sampled = policy.act(observations, mode="sampled", rngs=rngs(6))
        assert sampled.actions.tobytes() == policy.act(observations).actions.tobytes()


def test_sampling_needs_one_generator_per_row() -> None:
    with pytest.raises(BadInput, match="needs 2 random generators; 1 given"):
        make_policy().act(np.zeros((2, 5)), mode="sampled", rngs=rngs(1))


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_survives_its_files(name: str) -> None:
    policy = POLICIES[name]

    again = MlpPolicy.from_files(policy.to_files())

    observations = np.random.default_rng(5).normal(size=(20, 5))
    assert again.sha256 == policy.sha256
    assert again.observation_space == policy.observation_space
    assert again.forward(observations).tobytes() == policy.forward(observations).tobytes()
    assert again.to_files() == policy.to_files()


def test_one_changed_weight_changes_the_hash() -> None:
    policy = make_policy()
    biases = (*policy.biases[:-1], policy.biases[-1] + np.float32(1e-3))
    other = MlpPolicy(BOX, DISCRETE, policy.weights, biases, "tanh", "logits")

    assert other.sha256 != policy.sha256


def test_every_flipped_byte_of_the_weights_is_found() -> None:
    files = make_policy(hidden=4).to_files()
    for position in range(0, len(files["weights.npz"]), 11):
        damaged = bytearray(files["weights.npz"])
        damaged[position] ^= 0x10
        with pytest.raises(DamagedStore, match=r"weights\.npz hashes to"):
            MlpPolicy.from_files({**files, "weights.npz": bytes(damaged)})


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"description": 3}', b'{"description": {}, "format": "onnx"}']
)
def test_a_description_that_is_not_a_policy_is_damage(content: bytes) -> None:
    with pytest.raises(DamagedStore):
        MlpPolicy.from_files({**make_policy().to_files(), "policy.json": content})


def test_a_missing_or_exchanged_or_edited_file_is_damage() -> None:
    files = make_policy().to_files()
    with pytest.raises(DamagedStore, match=r"no weights\.npz"):
        MlpPolicy.from_files({"policy.json": files["policy.json"]})
    with pytest.raises(DamagedStore, match="hashes to"):
        MlpPolicy.from_files({**files, "weights.npz": make_policy("q_values", hidden=9).to_files()["weights.npz"]})
    spec = json.loads(files["policy.json"])
    spec["description"]["activation"] = "relu"
    with pytest.raises(DamagedStore, match="hashes to"):
        MlpPolicy.from_files({**files, "policy.json": json.dumps(spec).encode()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "tanh"}, "takes a head of"),
        ({"activation": "gelu"}, "tanh and relu are known"),
        ({"weights": (np.zeros((4, 3)),)}, "5 inputs enter it"),
        ({"weights": (np.zeros((5, 2)),), "biases": (np.zeros(2),)}, "has 2 outputs; the action space needs 3"),
        ({"biases": (np.array([0, np.nan, 0]),)}, "bias_0 holds a number that is not finite"),
        ({"scale": np.zeros(5)}, "scale must be positive"),
        ({"shift": np.zeros(4)}, r"shift has shape \(4,\)"),
        ({"log_std": np.zeros(1)}, "belongs to continuous"),
        ({"weights": ()}, "0 weight matrices"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, object], message: str) -> None:
    sound = {"weights": (np.zeros((5, 3)),), "biases": (np.zeros(3),), "activation": "relu", "head": "logits"}
    with pytest.raises(BadInput, match=message):
        MlpPolicy(BOX, DISCRETE, **{**sound, **fields})


def test_observations_of_another_width_are_refused() -> None:
    with pytest.raises(BadInput, match=r"\(N, 5\) is expected"):
        make_policy().forward(np.zeros((2, 4)))


@pytest.mark.slow
def test_acting_loads_no_learner() -> None:
    learners = "print(sorted({'torch', 'd3rlpy', 'gym'} & set(sys.modules)))"
    light = "refine.policies.mlp, refine.labels.labels, refine.labels.reward_relabelling, refine.evaluation.gate"
    code = f"import sys, {light}; {learners}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_training_the_recipe_loads_no_learner() -> None:
    """NumPy alone trains it, so a process that trains starts in a fraction of the time."""
    learners = "print(sorted({'torch', 'd3rlpy', 'gymnasium'} & set(sys.modules)))"
    code = f"import sys, refine.training.train; {learners}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
