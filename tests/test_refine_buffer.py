from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refine.labels.labels import Labels
from refine.policies.mlp import MlpPolicy
from refine.training import packing
from refine.training.packing import build_table
from refine.training.reference.losses import AnnotatedBuffer
from storage.datasets.reader import StepArrays
from storage.errors import BadInput
from storage.schema import Space

BOX = Space(kind="box", dtype="float64", size=2, low=(-9.0, -9.0), high=(9.0, 9.0))
DISCRETE = Space(kind="discrete", dtype="int64", size=1, n=3, start=5)
TORQUE = Space(kind="box", dtype="float32", size=1, low=(0.0,), high=(4.0,))


def make_steps(action: list[float], *, discrete: bool = True) -> StepArrays:
    """Two episodes of 3 and 2 steps, the first terminated, the second truncated; row i observes (i, -i)."""
    actions = np.array(action, np.int64) if discrete else np.array(action, np.float32)[:, None]
    return StepArrays(
        episode_id=np.array([0, 0, 0, 0, 1, 1, 1]),
        step=np.array([0, 1, 2, 3, 0, 1, 2], np.int32),
        observation=np.stack([np.arange(7.0), -np.arange(7.0)], axis=1),
        action=actions,
        reward=np.array([1.0, 2, 3, 0, 4, 5, 0]),
        terminated=np.array([0, 0, 1, 0, 0, 0, 0], np.bool_),
        truncated=np.array([0, 0, 0, 0, 0, 1, 0], np.bool_),
        is_final=np.array([0, 0, 0, 1, 0, 0, 1], np.bool_),
        policy_output=None,
    )


def make_policy(actions: Space = DISCRETE, head: str = "logits") -> MlpPolicy:
    size = actions.n or actions.size
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(2, 8)), rng.normal(size=(8, size)))
    return MlpPolicy(BOX, actions, weights, (np.zeros(8), np.zeros(size)), "tanh", head)


STEPS = make_steps([5, 6, 7, 0, 6, 6, 0])
LABELS = Labels(np.array([1, 4, 4, 2]), np.array([7, 5, 6, 5]), np.array([0.5, 1.0, 0.5, 0.0]), np.zeros(4))
REACHES = Labels(np.array([1, 4, 0]), np.array([[4.0], [1.0], [2.0]]), np.array([0.5, 1.0, 0.0]), np.zeros(3))


def build_buffer(*given: Any, **named: Any) -> AnnotatedBuffer:
    return AnnotatedBuffer(build_table(*given, **named))


def whole_table(buffer: AnnotatedBuffer):
    return buffer.rows(np.arange(buffer.transition_count))


def test_every_step_is_a_transition_and_none_is_lost_at_a_truncation() -> None:
    batch = whole_table(build_buffer(STEPS, LABELS, make_policy()))

    seen = dict(zip(batch.observations[:, 0].tolist(), batch.next_observations[:, 0].tolist(), strict=True))
    assert seen == {0: 1, 1: 2, 2: 3, 4: 5, 5: 6}
    ended = dict(zip(batch.observations[:, 0].tolist(), batch.terminals[:, 0].tolist(), strict=True))
    assert ended == {0: 0, 1: 0, 2: 1, 4: 0, 5: 0}


def test_a_row_holds_what_was_logged_with_actions_counted_from_zero() -> None:
    batch = whole_table(build_buffer(STEPS, LABELS, make_policy()))

    order = batch.observations[:, 0].astype(int)
    np.testing.assert_array_equal(batch.actions[:, 0], STEPS.action[order] - 5)
    np.testing.assert_array_equal(batch.rewards[:, 0], STEPS.reward[order])
    np.testing.assert_array_equal(batch.next_actions[:, 0], np.maximum(STEPS.action[order + 1] - 5, 0))
    assert batch.intervals.tolist() == [[1]] * len(order)


def test_each_counting_label_is_a_row_at_the_end_with_its_suggestion_and_relative_weight() -> None:
    batch = whole_table(build_buffer(STEPS, LABELS, make_policy()))

    assert batch.observations[:, 0].tolist() == [0, 2, 5, 1, 4, 4]  # the label of weight 0 at row 2 does not count
    assert batch.labelled[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.suggestions[3:, 0].tolist() == [2, 0, 1]
    np.testing.assert_allclose(batch.weights[:, 0], [0, 0, 0, 0.75, 1.5, 0.75])


def test_of_a_large_dataset_all_labels_and_some_of_the_other_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = whole_table(build_buffer(STEPS, LABELS, make_policy()))
    monkeypatch.setattr(packing, "ENOUGH_ROWS", 2)
    monkeypatch.setattr(packing, "CHUNK", 3)
    some = whole_table(build_buffer(STEPS, LABELS, make_policy()))

    assert some.labelled[:, 0].tolist() == [0, 0, 1, 1, 1]
    kept = np.flatnonzero(np.isin(whole.observations[:, 0], some.observations[:, 0]))
    for name in ("observations", "actions", "rewards", "next_observations", "terminals", "suggestions", "references"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[kept])
    again = whole_table(build_buffer(STEPS, LABELS, make_policy()))
    np.testing.assert_array_equal(np.asarray(again.observations), np.asarray(some.observations))


@pytest.mark.parametrize("suggestions", [True, False])
def test_rows_of_very_many_labels_are_packed_as_they_are_drawn_with_the_bits_of_the_whole_table(
    monkeypatch: pytest.MonkeyPatch, suggestions: bool
) -> None:
    given = (make_steps([0, 1, 2, 0, 3, 4, 0], discrete=False), REACHES, make_policy(TORQUE, "clip"))
    whole = build_table(*given, suggestions=suggestions, quota=4)
    monkeypatch.setattr(packing, "_pack_all", None)  # packing the whole table would fail
    monkeypatch.setattr(packing, "choose_rows", lambda rows, most: rows)
    monkeypatch.setattr(packing, "ENOUGH_ROWS", 1)
    drawn = build_table(*given, suggestions=suggestions, quota=4)

    assert len(drawn) == len(whole)
    rows = np.arange(len(whole))[::-1]
    assert drawn.take(rows).tobytes() == whole.take(rows).tobytes()
    for one, other in zip(drawn.sample_columns(10), whole.sample_columns(10), strict=True):
        assert one.tobytes() == other.tobytes()


def test_references_are_the_outputs_of_the_baseline() -> None:
    policy = make_policy()

    batch = whole_table(build_buffer(STEPS, LABELS, policy))

    np.testing.assert_array_equal(batch.references, policy.forward(batch.observations))


def test_continuous_suggestions_and_references_are_in_the_network_unit_and_logged_actions_are_not() -> None:
    steps = make_steps([0, 1, 2, 0, 3, 4, 0], discrete=False)
    labels = Labels(np.array([1, 4]), np.array([[4.0], [1.0]]), np.ones(2), np.zeros(2))
    policy = make_policy(TORQUE, "clip")

    batch = whole_table(build_buffer(steps, labels, policy))

    assert batch.suggestions[-2:, 0].tolist() == [1, -0.5]
    np.testing.assert_allclose(batch.references, policy.forward(batch.observations) / 2 - 1, rtol=1e-6)
    assert batch.actions[-2:, 0].tolist() == [1, 3]


def test_relabelled_rewards_replace_the_logged_ones() -> None:
    batch = whole_table(build_buffer(STEPS, LABELS, make_policy(), rewards=STEPS.reward * 10))

    np.testing.assert_array_equal(batch.rewards[:, 0], 10 * STEPS.reward[batch.observations[:, 0].astype(int)])


def test_without_suggestions_every_label_is_an_annotated_row_that_suggests_nothing() -> None:
    buffer = build_buffer(STEPS, LABELS, make_policy(), suggestions=False, quota=2)
    batch = whole_table(buffer)

    assert batch.observations[:, 0].tolist() == [0, 5, 1, 4, 4, 2]
    assert batch.labelled.sum() == 0


@pytest.mark.parametrize("size", [1, 2, 10, 57])
def test_a_batch_has_its_quota_of_annotated_rows(size: int) -> None:
    buffer = build_buffer(STEPS, LABELS, make_policy(), quota=4)

    for _ in range(20):
        batch = buffer.sample_transition_batch(size)
        assert len(batch) == size
        assert batch.labelled.sum() == min(4, size)


@pytest.mark.slow
def test_a_fully_annotated_dataset_still_fills_its_batches() -> None:
    everywhere = np.flatnonzero(~STEPS.is_final)
    labels = Labels(everywhere, np.full(5, 6), np.ones(5), np.zeros(5))

    batch = build_buffer(STEPS, labels, make_policy(), quota=3).sample_transition_batch(9)

    assert batch.labelled.sum() == 9


def test_sampling_is_uniform_within_annotated_and_other_rows() -> None:
    buffer = build_buffer(STEPS, LABELS, make_policy(), quota=30)

    drawn = np.concatenate([buffer.sample_transition_batch(60).observations[:, 0] for _ in range(200)])

    share = np.bincount(drawn.astype(int), minlength=6) / len(drawn)
    np.testing.assert_allclose(share, [1 / 6, 1 / 6, 1 / 6, 0, 1 / 3, 1 / 6], atol=0.02)


def test_the_same_seed_samples_the_same_rows() -> None:
    buffer = build_buffer(STEPS, LABELS, make_policy(), quota=4)
    buffer.table.reseed(3)
    first = [buffer.sample_transition_batch(16).observations for _ in range(3)]
    buffer.table.reseed(3)
    again = [buffer.sample_transition_batch(16).observations for _ in range(3)]

    np.testing.assert_array_equal(first, again)


def test_d3rlpy_is_told_the_sizes_that_it_would_guess_wrong() -> None:
    info = build_buffer(STEPS, LABELS, make_policy()).dataset_info
    torque = build_buffer(
        make_steps([0, 1, 2, 0, 3, 4, 0], discrete=False),  # whole numbers look discrete
        Labels(np.array([1]), np.array([[4.0]]), np.ones(1), np.zeros(1)),
        make_policy(TORQUE, "clip"),
    ).dataset_info

    assert (info.action_space.name, info.action_size) == ("DISCRETE", 3)
    assert (torque.action_space.name, torque.action_size) == ("CONTINUOUS", 1)
    assert list(info.observation_signature.shape[0]) == [2]


def test_no_label_that_counts_is_refused() -> None:
    silent = Labels(np.array([1]), np.array([6]), np.zeros(1), np.ones(1))
    with pytest.raises(BadInput, match="None of the 1 labels"):
        build_buffer(STEPS, silent, make_policy())
    nothing = Labels(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    with pytest.raises(BadInput, match="None of the 0 labels"):
        build_buffer(STEPS, nothing, make_policy(), suggestions=False)


def test_a_discrete_observation_is_packed_one_hot() -> None:
    cells = Space(kind="discrete", dtype="int64", size=1, n=9)
    steps = StepArrays(
        STEPS.episode_id, STEPS.step, np.arange(7)[:, None], *(getattr(STEPS, name) for name in (
            "action", "reward", "terminated", "truncated", "is_final", "policy_output"))
    )  # fmt: skip
    policy = MlpPolicy(cells, DISCRETE, (np.zeros((9, 3)),), (np.zeros(3),), "tanh", "logits")

    batch = whole_table(build_buffer(steps, LABELS, policy))

    assert batch.observations.argmax(axis=1).tolist() == [0, 2, 5, 1, 4, 4]
    assert (batch.observations.sum(axis=1) == 1).all()


def test_what_d3rlpy_never_asks_for_is_refused_by_name() -> None:
    buffer = build_buffer(STEPS, LABELS, make_policy())
    for refused in (lambda: buffer.append(0, 0, 0), lambda: buffer.sample_trajectory(3), lambda: buffer.buffer):
        with pytest.raises(NotImplementedError, match="AnnotatedBuffer"):
            refused()
