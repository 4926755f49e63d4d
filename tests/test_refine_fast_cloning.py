from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from soak import SOAK, full_or

from refine.config import RefineConfig, Snapshot
from refine.labels.labels import Labels
from refine.policies.mlp import Activation, Head, MlpPolicy
from refine.training import train
from refine.training.fast import engine
from refine.training.fast.cloning import Adam, StackedNetworks
from refine.training.reference import factory as loop
from storage.datasets.reader import StepArrays
from storage.errors import BadInput
from storage.schema import Space

POINTS = Space(kind="box", dtype="float32", size=3)
CHOICES = Space(kind="discrete", dtype="int64", size=1, n=4, start=2)
FORCES = Space(kind="box", dtype="float32", size=2, low=(-2.0, 0.0), high=(2.0, 4.0))
BETAS = (0.1, 0.3)
Changes = dict[str, object]
PLAIN = RefineConfig(betas=BETAS, snapshots=(20, 200), batch_size=48, annotated_per_batch=16)
SHORT = PLAIN.model_copy(update={"snapshots": (2,), "critic_steps": 1})


def baseline(head: Head, activation: Activation = "tanh") -> MlpPolicy:
    rng = np.random.default_rng(0)
    actions = CHOICES if head == "logits" else FORCES
    sizes = [(3, 16), (16, 12), (12, 4 if actions.is_discrete else 2)]
    weights = tuple(rng.normal(size=size) / np.sqrt(size[0]) for size in sizes)
    biases = tuple(0.1 * rng.normal(size=size[1]) for size in sizes)
    shift, scale = np.array([0.5, -1, 0]), np.array([1, 2, 0.5])
    return MlpPolicy(POINTS, actions, weights, biases, activation, head, shift, scale)


def walk(policy: MlpPolicy, episodes: int = 20, length: int = 10) -> StepArrays:
    rng = np.random.default_rng(1)
    count = episodes * length
    step = np.tile(np.arange(length, dtype=np.int32), episodes)
    final = step == length - 1
    points = rng.normal(size=(count, 3)).astype(np.float32)
    actions = policy.act(points).actions
    return StepArrays(
        np.arange(count) // length, step, points, actions, rng.normal(size=count), final & False, final, final, None
    )


def suggest(policy: MlpPolicy, steps: StepArrays) -> Labels:
    """Suggestions of every weight, two of them for the same state."""
    rng = np.random.default_rng(2)
    rows = np.flatnonzero(~steps.is_final)[::4]
    rows = np.concatenate([rows, rows[:1]])
    continuous = np.clip(rng.uniform(-4, 6, (len(rows), 2)), FORCES.low, FORCES.high)  # many of them at a bound
    said = rng.integers(2, 6, len(rows)) if policy.action_space.is_discrete else continuous
    return Labels(rows, said, rng.uniform(0.2, 1, len(rows)), np.ones(len(rows)))


def changed(changes: Changes, config: RefineConfig = PLAIN) -> RefineConfig:
    return config.model_copy(update=changes)


def refine_with(engine: str, policy: MlpPolicy, config: RefineConfig = PLAIN) -> list[Snapshot]:
    steps = walk(policy)
    return train.refine(steps, suggest(policy, steps), policy, config.model_copy(update={"engine": engine}))


def distance(one: MlpPolicy, other: MlpPolicy) -> float:
    """Largest difference of two parameters."""
    pairs = zip((*one.weights, *one.biases), (*other.weights, *other.biases), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.fixture
def fast_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which engine was asked for each training."""
    calls: list[str] = []
    for module, name in ((engine, "create_training"), (loop, "train_reference")):
        original = getattr(module, name)

        def spy(*args: object, _original: object = original, _name: str = name, **kwargs: object) -> object:
            calls.append(_name)
            return _original(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(module, name, spy)
    return calls


ENGINES: list[tuple[Head, Activation, Changes, float]] = [
    ("logits", "relu", {}, 1e-3),
    ("tanh", "tanh", {}, 1e-6),
    ("logits", "tanh", {"mode": "R"}, 1e-6),
    ("logits", "tanh", {"mode": "RA", "improvement": 1.0}, 1e-6),
    ("logits", "tanh", {"algorithm": "discrete_cql"}, 1e-6),
    ("clip", "tanh", {"mode": "RA", "algorithm": "td3_plus_bc"}, 1e-6),
    ("logits", "tanh", {}, 1e-6),
    ("clip", "tanh", {}, 1e-6),
    ("tanh", "relu", {}, 1e-3),
    ("logits", "relu", {"mode": "RA"}, 1e-3),
    ("tanh", "tanh", {"mode": "R"}, 1e-6),
    ("clip", "tanh", {"mode": "RA", "improvement": 1.0}, 1e-6),
    ("clip", "tanh", {"algorithm": "td3_plus_bc"}, 1e-6),
    ("tanh", "tanh", {"mode": "RA", "algorithm": "td3_plus_bc"}, 1e-6),
    ("tanh", "relu", {"mode": "RA"}, 1e-3),
]
"""Each head, activation, mode and algorithm among the first six; the others are for a soak."""


# with relu some first gradients are next to 0, and Adam divides the rounding errors of these by themselves
@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "activation", "changes", "tolerance"),
    ENGINES if SOAK else ENGINES[:6],
)
def test_after_many_steps_every_parameter_is_the_references(
    head: Head, activation: Activation, changes: Changes, tolerance: float
) -> None:
    count = full_or(200, 100)
    start, config = baseline(head, activation), changed({"critic_steps": 40, "snapshots": (20, count), **changes})

    fast, reference = refine_with("fast", start, config), refine_with("reference", start, config)

    assert [(s.beta, s.step) for s in fast] == [(s.beta, s.step) for s in reference]
    assert max(distance(f.policy, r.policy) for f, r in zip(fast, reference, strict=True)) < tolerance
    assert min(distance(s.policy, start) for s in fast if s.step == count) > 0.04
    assert distance(fast[1].policy, fast[3].policy) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("head", "changes"), [("logits", {}), ("logits", {"mode": "RA"}), ("tanh", {"mode": "RA"})])
def test_a_beta_learns_the_same_bits_alone_as_beside_others(head: Head, changes: Changes) -> None:
    config = changed({"critic_steps": 40, **changes})
    together = refine_with("fast", baseline(head), config)
    alone = refine_with("fast", baseline(head), changed({"betas": BETAS[1:]}, config))

    assert [s.policy.sha256 for s in together[2:]] == [s.policy.sha256 for s in alone]


@pytest.mark.parametrize("head", ["logits", "tanh", "clip"])
def test_labels_of_the_same_rows_are_learnt_together_with_the_same_bits_as_alone(
    head: Head, fast_calls: list[str]
) -> None:
    start, rng = baseline(head), np.random.default_rng(3)
    steps = walk(start)
    labels = suggest(start, steps)
    exchanged = rng.permutation(len(labels))
    other = replace(labels, suggestions=labels.suggestions[exchanged], weights=labels.weights[exchanged])
    several, config = [labels, other, replace(labels, weights=np.ones(len(labels)))], changed({"snapshots": (5, 30)})
    found = train.refine_each(steps, several, start, config)

    assert fast_calls == ["create_training"]
    alone = [train.refine(steps, each, start, config) for each in several]
    assert [[s.policy.sha256 for s in each] for each in found] == [[s.policy.sha256 for s in each] for each in alone]
    assert [(s.beta, s.step) for s in found[1]] == [(s.beta, s.step) for s in alone[1]]
    assert len({s.policy.sha256 for each in found for s in each}) == 12


def test_labels_of_other_rows_are_learnt_one_after_the_other(fast_calls: list[str]) -> None:
    start = baseline("logits")
    steps = walk(start)
    labels = suggest(start, steps)
    silent = replace(labels, weights=np.where(labels.rows == labels.rows[3], 0, labels.weights))
    train.refine_each(steps, [labels, silent], start, SHORT)
    train.refine_each(steps, [labels, labels], start, changed({"mode": "RA"}, SHORT))

    assert fast_calls == ["create_training"] * 4


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("logits", {}),
        ("logits", {"mode": "R"}),
        ("logits", {"mode": "RA"}),
        ("logits", {"algorithm": "discrete_cql"}),
        ("tanh", {"mode": "RA"}),
        ("tanh", {"algorithm": "td3_plus_bc"}),
    ],
)
def test_the_fast_engine_is_asked_once_for_all_betas(head: Head, changes: Changes, fast_calls: list[str]) -> None:
    refine_with("fast", baseline(head), changed(changes, SHORT))

    assert fast_calls == ["create_training"]


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("logits", {"engine": "reference"}),
        ("logits", {"engine": "reference", "mode": "R"}),
        ("logits", {"algorithm": "bc"}),
        ("logits", {"algorithm": "dqn"}),
        ("logits", {"ramp_steps": 5}),
        ("logits", {"mode": "RA", "ramp_steps": 5}),
        ("tanh", {"outlier_scale": 0.3}),
        ("tanh", {"algorithm": "iql"}),
        ("tanh", {"algorithm": "awac"}),
        ("tanh", {"algorithm": "rebrac"}),
    ],
)
def test_what_is_not_fast_goes_through_the_reference(head: Head, changes: Changes, fast_calls: list[str]) -> None:
    engine = str(changes.get("engine", "fast"))

    refine_with(engine, baseline(head), changed(changes, SHORT))

    assert fast_calls == ["train_reference"]


@pytest.mark.parametrize("changes", [{}, {"mode": "RA"}])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_both_engines_refuse_a_training_that_diverged(engine: str, changes: Changes) -> None:
    with pytest.raises(BadInput, match="diverged before step 2"):
        refine_with(engine, baseline("logits", "relu"), changed({"learning_rate": 1e25, **changes}, SHORT))


def test_a_mean_beyond_the_bound_that_is_suggested_is_left_alone() -> None:
    policy = replace(baseline("clip"), biases=(*baseline("clip").biases[:-1], np.array([50.0, 50.0])))
    steps = walk(policy)
    rows = np.flatnonzero(~steps.is_final)
    labels = Labels(rows, np.tile([2.0, 4.0], (len(rows), 1)), np.ones(len(rows)), np.zeros(len(rows)))

    found = [s.policy for s in train.refine(steps, labels, policy, PLAIN)]

    assert [distance(one, policy) for one in found] == pytest.approx([0] * 4, abs=1e-5)


def test_gradients_are_the_slopes_of_the_outputs() -> None:
    policy = baseline("logits")
    networks = StackedNetworks([(policy.weights, policy.biases)] * 2, "tanh")
    rng = np.random.default_rng(0)
    inputs, slopes = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(2, 4, 5)).astype(np.float32)
    networks.forward(inputs)
    networks.backward(slopes)

    for number in (0, 50, networks.parameters.shape[1] - 1):
        networks.parameters[1, number] += 1e-2
        above = networks.forward(inputs)
        networks.parameters[1, number] -= 2e-2
        below = networks.forward(inputs)
        networks.parameters[1, number] += 1e-2
        expected = float(((above - below)[1] * slopes[1]).sum()) / 2e-2
        assert networks.gradients[1, number] == pytest.approx(expected, rel=1e-2, abs=1e-3)
        assert np.array_equal(above[0], below[0])


def test_slopes_at_the_inputs_are_those_of_the_outputs() -> None:
    policy = baseline("logits")
    networks = StackedNetworks([(policy.weights, policy.biases)] * 2, "tanh")
    rng = np.random.default_rng(0)
    inputs, slopes = rng.normal(size=(2, 3, 5)).astype(np.float32), rng.normal(size=(2, 4, 5)).astype(np.float32)
    networks.forward(inputs)
    found = networks.slopes_at_inputs(slopes)

    moved = np.zeros_like(inputs)
    moved[1, 2, 3] = 1e-2
    difference = networks.forward(inputs + moved) - networks.forward(inputs - moved)
    assert found.shape == inputs.shape
    assert found[1, 2, 3] == pytest.approx(float((difference * slopes).sum()) / 2e-2, rel=1e-2)


def test_the_first_step_of_adam_is_the_learning_rate_against_the_gradient() -> None:
    parameters = np.zeros(3, np.float32)
    Adam(parameters, np.array([1e-3, -5, 0], np.float32), 0.01).step()

    assert parameters == pytest.approx([-0.01, 0.01, 0], abs=1e-6)


def test_limits_of_a_baseline_stay_and_both_engines_cut_its_inputs_alike() -> None:
    start = replace(baseline("tanh"), input_limit=0.8, output_limit=0.5)
    steps = walk(start)
    found: list[MlpPolicy] = []
    for engine_name in ("fast", "reference"):
        config = PLAIN.model_copy(update={"snapshots": (20,), "betas": (0.1,), "engine": engine_name})
        found.append(train.refine(steps, suggest(start, steps), start, config)[0].policy)
        assert (found[-1].input_limit, found[-1].output_limit) == (0.8, 0.5)
    outputs = [policy.forward(steps.observation) for policy in found]
    np.testing.assert_allclose(*outputs, atol=1e-4)
    assert not np.allclose(outputs[0], replace(found[0], input_limit=None).forward(steps.observation), atol=1e-2)
