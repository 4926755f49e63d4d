from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refine.policies.mlp import MlpPolicy
from refine.training.distillation import distil
from storage.datasets.reader import StepArrays
from storage.errors import BadInput
from storage.schema import Array, Space

BOX = Space(kind="box", dtype="float32", size=3, low=(-9.0,) * 3, high=(9.0,) * 3)
DISCRETE = Space(kind="discrete", dtype="int64", size=1, n=3, start=4)
TORQUES = Space(kind="box", dtype="float32", size=2, low=(-2.0, 0.0), high=(2.0, 1.0))
LENGTH, EPISODES = 40, 25
QUICK = 1_000


def make_teacher(head: str, **fields: object) -> MlpPolicy:
    rng = np.random.default_rng(2)
    actions = DISCRETE if head in ("logits", "q_values") else TORQUES
    size = actions.n or actions.size
    weights = (rng.normal(size=(3, 10)), rng.normal(size=(10, size)) * (0.05 if head == "clip" else 1))
    last = np.array([0, 0.5]) if head == "clip" else np.zeros(size)
    return MlpPolicy(BOX, actions, weights, (rng.normal(size=10), last), "tanh", head, **fields)


def watch(teacher: MlpPolicy, *, sampled: bool = False) -> StepArrays:
    rng = np.random.default_rng(0)
    count = EPISODES * (LENGTH + 1)
    observations = (rng.normal(size=(count, 3)) * [1, 5, 0.1] + [0, 3, 0]).astype(np.float32)
    rngs = [np.random.default_rng(row) for row in range(count)]
    acts = teacher.act(observations, mode="sampled" if sampled else "greedy", rngs=rngs)
    step = np.tile(np.arange(LENGTH + 1, dtype=np.int32), EPISODES)
    final = step == LENGTH
    return StepArrays(
        np.repeat(np.arange(EPISODES), LENGTH + 1),
        step,
        observations,
        np.where(final if acts.actions.ndim == 1 else final[:, None], 0, acts.actions),
        np.zeros(count),
        step == LENGTH - 1,
        np.zeros(count, np.bool_),
        final,
        acts.outputs,
    )


def greedy_match(clone: MlpPolicy, teacher: MlpPolicy) -> float:
    rng = np.random.default_rng(77)
    fresh: Array = (rng.normal(size=(1000, 3)) * [1, 5, 0.1] + [0, 3, 0]).astype(np.float32)
    return float(np.mean(clone.act(fresh).actions == teacher.act(fresh).actions))


@pytest.mark.slow
def test_stored_logits_give_a_clone_with_the_same_probabilities() -> None:
    teacher = make_teacher("logits")
    steps = watch(teacher, sampled=True)

    clone = distil(steps, BOX, DISCRETE, output_kind="logits", training_steps=QUICK)

    assert clone.source == "policy_output"
    assert clone.held_out == EPISODES // 5 * LENGTH
    assert clone.agreement > 0.95
    assert greedy_match(clone.policy, teacher) == pytest.approx(clone.agreement, abs=0.03)
    softmax = [np.exp(p.forward(steps.observation)) for p in (clone.policy, teacher)]
    probabilities = [values / values.sum(axis=1, keepdims=True) for values in softmax]
    assert np.abs(probabilities[0] - probabilities[1]).mean() < 0.02


@pytest.mark.slow
def test_without_outputs_the_logged_actions_are_cloned() -> None:
    teacher = make_teacher("logits")

    clone = distil(replace(watch(teacher), policy_output=None), BOX, DISCRETE, training_steps=QUICK)

    assert clone.source == "actions"
    assert clone.agreement > 0.9
    assert greedy_match(clone.policy, teacher) > 0.9


@pytest.mark.slow
def test_q_values_give_a_clone_with_the_same_greedy_actions() -> None:
    teacher = make_teacher("q_values")

    clone = distil(watch(teacher), BOX, DISCRETE, output_kind="q_values", training_steps=QUICK)

    assert clone.policy.head == "logits"
    assert greedy_match(clone.policy, teacher) > 0.93


@pytest.mark.slow
def test_stored_means_give_a_clone_of_the_mean_and_of_the_noise() -> None:
    teacher = make_teacher("clip", log_std=np.log([0.2, 0.05]))

    clone = distil(watch(teacher, sampled=True), BOX, TORQUES, output_kind="mean", training_steps=QUICK)

    assert clone.agreement > 0.97
    np.testing.assert_allclose(np.exp(clone.policy.log_std), [0.2, 0.05], rtol=0.1)


@pytest.mark.slow
def test_a_greedy_log_gives_a_clone_without_noise() -> None:
    clone = distil(watch(make_teacher("tanh")), BOX, TORQUES, output_kind="mean", training_steps=QUICK)

    assert not clone.policy.is_stochastic
    assert clone.agreement > 0.97


@pytest.mark.slow
def test_chance_cannot_be_cloned_and_the_agreement_says_so() -> None:
    steps = watch(make_teacher("logits"))
    chance = replace(steps, action=np.random.default_rng(0).integers(4, 7, len(steps)), policy_output=None)

    assert distil(chance, BOX, DISCRETE, training_steps=200).agreement < 0.45


@pytest.mark.slow
def test_the_same_seed_gives_the_same_clone() -> None:
    steps = watch(make_teacher("logits"))

    first, again = (
        distil(steps, BOX, DISCRETE, output_kind="logits", training_steps=50).policy.sha256 for _ in range(2)
    )

    assert first == again


def test_outputs_of_another_kind_are_refused() -> None:
    steps = watch(make_teacher("logits"))
    with pytest.raises(BadInput, match="the actions are discrete"):
        distil(steps, BOX, DISCRETE, output_kind="mean")


@pytest.mark.slow
def test_a_handful_of_steps_is_refused() -> None:
    few = StepArrays(*(getattr(watch(make_teacher("logits")), name)[:9] for name in StepArrays.__dataclass_fields__))
    with pytest.raises(BadInput, match="9 steps are too few"):
        distil(few, BOX, DISCRETE)
