from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refine.config import RefineConfig
from refine.labels.labels import Labels
from refine.labels.weighting import list_readings
from refine.policies.mlp import MlpPolicy
from refine.training.train import find_borne_out, refine, refine_candidates
from storage.datasets.reader import StepArrays
from storage.errors import BadInput
from storage.schema import Space

# Points in a square; the right action is known: which side of the first axis, or the point itself as a force.
PLANE = Space(kind="box", dtype="float32", size=2, low=(-1.0, -1.0), high=(1.0, 1.0))
SIDES = Space(kind="discrete", dtype="int64", size=1, n=3)
FORCES = Space(kind="box", dtype="float32", size=2, low=(-2.0, -2.0), high=(2.0, 2.0))
EPISODES, LENGTH, PER_EPISODE = 15, 10, 8
FRESH = np.random.default_rng(7).uniform(-1, 1, (400, 2)).astype(np.float32)
CONFIG = RefineConfig(betas=(0.1,), snapshots=(20, 40, 60), learning_rate=5e-3)
ROBUST = CONFIG.model_copy(update={"robust": True})


def right_side(points: np.ndarray) -> np.ndarray:
    return (points[:, 0] > 0).astype(np.int64)  # action 2 is never right


def make_steps(space: Space) -> StepArrays:
    rng = np.random.default_rng(0)
    count = EPISODES * (LENGTH + 1)
    final = np.arange(count) % (LENGTH + 1) == LENGTH
    action = np.zeros(count, np.int64) if space.is_discrete else np.zeros((count, 2), np.float32)
    return StepArrays(
        episode_id=np.repeat(np.arange(EPISODES), LENGTH + 1),
        step=np.tile(np.arange(LENGTH + 1, dtype=np.int32), EPISODES),
        observation=rng.uniform(-1, 1, (count, 2)).astype(np.float32),
        action=action,
        reward=np.zeros(count),
        terminated=np.roll(final, -1),
        truncated=np.zeros(count, np.bool_),
        is_final=final,
        policy_output=None,
    )


def baseline(space: Space) -> MlpPolicy:
    rng = np.random.default_rng(1)
    outputs = 3 if space.is_discrete else 2
    weights = (rng.normal(size=(2, 32)), rng.normal(size=(32, outputs)) * 0.1)
    return MlpPolicy(
        PLANE, space, weights, (np.zeros(32), np.zeros(outputs)), "tanh", "logits" if space.is_discrete else "clip"
    )


def clean_labels(steps: StepArrays, space: Space) -> Labels:
    rows = np.flatnonzero(~steps.is_final).reshape(EPISODES, LENGTH)[:, :PER_EPISODE].ravel()
    points = steps.observation[rows]
    said = right_side(points) if space.is_discrete else points.astype(np.float64)
    return Labels(rows, said, np.ones(len(rows)), np.full(len(rows), 0.5))


STEPS, PUSHED = make_steps(SIDES), make_steps(FORCES)
LABELS, FORCE_LABELS = clean_labels(STEPS, SIDES), clean_labels(PUSHED, FORCES)


def spoil(labels: Labels, share: float, wrong: np.ndarray) -> tuple[Labels, np.ndarray]:
    chosen = np.random.default_rng(2).permutation(len(labels))[: round(share * len(labels))]
    suggestions = np.array(labels.suggestions)
    suggestions[chosen] = wrong[chosen]
    return replace(labels, suggestions=suggestions), np.isin(np.arange(len(labels)), chosen)


def accuracy(policy: MlpPolicy) -> float:
    return float((policy.act(FRESH).actions == right_side(FRESH)).mean())


def force_error(policy: MlpPolicy) -> float:
    return float(np.sqrt(np.square(policy.act(FRESH).actions - FRESH).mean()))


def test_the_consensus_finds_suggestions_that_are_wrong_here_and_there() -> None:
    labels, wrong = spoil(LABELS, 0.3, 1 - LABELS.suggestions)
    borne_out = find_borne_out(STEPS, labels, baseline(SIDES), CONFIG)

    assert borne_out[wrong].mean() < 0.15
    assert borne_out[~wrong].mean() > 0.85


@pytest.mark.slow
def test_forces_that_are_wrong_here_and_there_mislead_the_squared_error_but_not_the_robust_readings() -> None:
    labels, _ = spoil(FORCE_LABELS, 0.3, np.full((len(FORCE_LABELS), 2), 2.0))
    errors = {s.name: force_error(s.policy) for s in refine_candidates(PUSHED, labels, baseline(FORCES), ROBUST)}

    assert errors["beta 0.1, step 60"] > 0.4
    assert errors["beta 0.1, step 60, outliers discounted"] < 0.2


def test_the_consensus_judges_single_labels_where_there_is_one_episode_only() -> None:
    alone = replace(STEPS, episode_id=np.zeros(len(STEPS), np.int64))
    labels, wrong = spoil(LABELS, 0.3, 1 - LABELS.suggestions)
    borne_out = find_borne_out(alone, labels, baseline(SIDES), CONFIG)

    assert borne_out[wrong].mean() < 0.15
    assert borne_out[~wrong].mean() > 0.85


@pytest.mark.slow
def test_among_the_readings_of_exchanged_actions_is_one_that_is_right_where_the_labels_are_wrong() -> None:
    exchanged = replace(LABELS, suggestions=1 - LABELS.suggestions)
    found = {s.name: accuracy(s.policy) for s in refine_candidates(STEPS, exchanged, baseline(SIDES), ROBUST)}

    assert found["beta 0.1, step 60"] < 0.1
    assert found["beta 0.1, step 40, actions 0 and 1 exchanged"] > 0.9


def test_among_the_readings_of_an_action_that_is_always_confused_is_one_without_it() -> None:
    confused = replace(LABELS, suggestions=np.where(STEPS.observation[LABELS.rows, 1] > 0, 2, LABELS.suggestions))
    readings = {reading.name: reading.labels for reading in list_readings(confused, STEPS, baseline(SIDES))}
    left = readings["without action 2"]
    counted = left.weights > 0

    assert np.array_equal(left.suggestions[counted], LABELS.suggestions[counted])
    assert np.array_equal(counted, STEPS.observation[LABELS.rows, 1] <= 0)


def test_halves_of_the_states_are_complements_and_keep_the_implicit_rewards() -> None:
    readings = {reading.name: reading.labels for reading in list_readings(LABELS, STEPS, baseline(SIDES))}
    upper = readings["upper half of component 1 of the states"]
    lower = readings["lower half of component 1 of the states"]

    assert np.array_equal((upper.weights > 0) ^ (lower.weights > 0), np.ones(len(LABELS), np.bool_))
    assert (upper.weights > 0).sum() == len(LABELS) // 2
    assert np.array_equal(upper.implicit_rewards, LABELS.implicit_rewards)


def test_signs_of_forces_are_mirrored_together_and_one_by_one() -> None:
    readings = {reading.name: reading.labels for reading in list_readings(FORCE_LABELS, PUSHED, baseline(FORCES))}
    first = readings["sign of component 0 mirrored"].suggestions

    np.testing.assert_allclose(readings["all signs mirrored"].suggestions, -FORCE_LABELS.suggestions)
    np.testing.assert_allclose(first, FORCE_LABELS.suggestions * [-1, 1])


@pytest.mark.slow
def test_every_arm_has_as_many_candidates_whatever_its_labels_say() -> None:
    one_action = replace(LABELS, suggestions=np.full(len(LABELS), 2))
    few = ROBUST.model_copy(update={"snapshots": (1, 2)})
    counts = [len(refine_candidates(STEPS, labels, baseline(SIDES), few)) for labels in (LABELS, one_action)]

    assert counts == [2 + 2 + 3 + 3 + 4] * 2


def test_the_plain_candidates_come_first_and_are_the_same() -> None:
    few = CONFIG.model_copy(update={"snapshots": (1, 2)})
    plain = refine(STEPS, LABELS, baseline(SIDES), few)
    robust = refine_candidates(STEPS, LABELS, baseline(SIDES), few.model_copy(update={"robust": True}))
    not_robust = refine_candidates(STEPS, LABELS, baseline(SIDES), few)

    assert [s.policy.sha256 for s in not_robust] == [s.policy.sha256 for s in plain]
    assert [s.policy.sha256 for s in robust[: len(plain)]] == [s.policy.sha256 for s in plain]
    assert [s.name for s in plain] == ["beta 0.1, step 1", "beta 0.1, step 2"]


def test_a_refinement_without_suggestions_cannot_read_them_in_several_ways() -> None:
    with pytest.raises(BadInput, match="mode R uses none"):
        RefineConfig(mode="R", robust=True)
