"""Estimates on a log whose policies' values are known exactly: two states, of which each action leads to one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from refine.config import RefineConfig, Snapshot
from refine.evaluation import held_out, ope
from refine.evaluation.held_out import out_of_fold
from refine.evaluation.ope import (
    Estimate,
    OpeConfig,
    check_episodes,
    collect_refits,
    estimated_gain,
    judge_estimated_improvement,
    judge_estimated_labels,
    refit,
)
from refine.labels.labels import Labels
from refine.policies.mlp import MlpPolicy, Mode
from storage.datasets.columns import StepArrays
from storage.errors import BadInput
from storage.schema import Space

BOX = Space(kind="box", dtype="float32", size=1)
TWO = Space(kind="discrete", dtype="int64", size=1, n=2)
REACH = Space(kind="box", dtype="float32", size=1, low=(-1.0,), high=(1.0,))
LENGTH, EPISODES, GAMMA = 10, 40, 0.8


def estimate(steps: StepArrays, policies: list[MlpPolicy], config: OpeConfig, mode: Mode = "greedy") -> list[Estimate]:
    """Estimates of policies, one refit after the other."""
    check_episodes(steps)
    refits = [refit(steps, policies, config, mode, number) for number in range(config.resamples)]
    return collect_refits(steps, policies, refits)


def chain(continuous: bool = False, terminates: bool = False) -> StepArrays:
    """Action 1 pays 1 and leads to the state 1, action 0 pays nothing and leads to -1; actions are chance.

    Continuous: an action pays itself.
    """
    rng = np.random.default_rng(3)
    rows = EPISODES * (LENGTH + 1)
    step = np.tile(np.arange(LENGTH + 1, dtype=np.int32), EPISODES)
    final = step == LENGTH
    actions = rng.uniform(-1, 1, (rows, 1)) if continuous else rng.integers(0, 2, rows)
    rewards = (actions[:, 0] if continuous else actions).astype(np.float64)
    observation = np.zeros((rows, 1), np.float32)
    observation[1:, 0] = 2 * rewards[:-1] - 1
    actions[final], rewards[final] = 0, 0
    last = step == LENGTH - 1
    return StepArrays(
        episode_id=np.repeat(np.arange(EPISODES), LENGTH + 1),
        step=step,
        observation=observation,
        action=actions.astype(np.float32) if continuous else actions,
        reward=rewards,
        terminated=last & terminates,
        truncated=last & (not terminates),
        is_final=final,
        policy_output=None,
    )


def always(logits: tuple[float, ...], space: Space = TWO) -> MlpPolicy:
    """A policy that does the same everywhere."""
    width = len(logits)
    head = "logits" if space.is_discrete else "clip"
    layers = (np.zeros((1, 4)), np.zeros((4, width)))
    return MlpPolicy(BOX, space, layers, (np.zeros(4), np.array(logits)), "tanh", head)


CONFIG = OpeConfig(gamma=GAMMA, features=16, resamples=8)
FOREVER = 1 / (1 - GAMMA)


def test_the_values_of_known_policies_are_found_where_every_action_was_logged() -> None:
    right, wrong = estimate(chain(), [always((0.0, 5.0)), always((5.0, 0.0))], CONFIG)
    assert right.value == pytest.approx(FOREVER, rel=0.03)
    assert wrong.value == pytest.approx(0, abs=0.1)
    assert right.support == pytest.approx(0.5, abs=0.06)
    assert right.interval.low < FOREVER + 0.15
    assert estimated_gain(right, wrong).is_above_zero


def test_a_policy_that_is_drawn_from_is_worth_the_mean_of_its_actions() -> None:
    (even,) = estimate(chain(), [always((0.0, 0.0))], CONFIG, mode="sampled")
    assert even.value == pytest.approx(FOREVER / 2, rel=0.05)


def test_continuous_actions_are_evaluated_at_what_the_policy_does() -> None:
    found = estimate(chain(continuous=True), [always((0.5,), REACH), always((-0.5,), REACH)], CONFIG)
    assert [each.value for each in found] == pytest.approx([0.5 * FOREVER, -0.5 * FOREVER], rel=0.05)
    assert np.isnan(found[0].support)


def test_only_a_termination_ends_what_is_still_to_come() -> None:
    (cut,) = estimate(chain(), [always((0.0, 5.0))], CONFIG)
    (ended,) = estimate(chain(terminates=True), [always((0.0, 5.0))], CONFIG)
    assert ended.value < cut.value - 0.2


def test_equal_seeds_give_equal_bits_and_fewer_episodes_are_refused() -> None:
    steps, policies = chain(), [always((0.0, 5.0))]
    (first,), (second,) = estimate(steps, policies, CONFIG), estimate(steps, policies, CONFIG)
    assert first.refits.tolist() == second.refits.tolist()
    columns: dict[str, Any] = {field.name: getattr(steps, field.name) for field in fields(steps)}
    first_four: dict[str, Any] = {name: None if column is None else column[:44] for name, column in columns.items()}
    few = StepArrays(**first_four)
    with pytest.raises(BadInput, match="4 episodes are too few to estimate from"):
        estimate(few, policies, CONFIG)


class Counted(np.ndarray):
    """Observations that note how many rows are read at once."""

    most = 0

    def __getitem__(self, key: Any) -> Any:
        found = np.asarray(super().__getitem__(key))
        Counted.most = max(Counted.most, len(found) if found.ndim == self.ndim else 1)
        return found


def test_an_estimate_from_a_large_log_never_reads_all_of_its_states_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = chain()
    monkeypatch.setattr(ope, "ENOUGH_ROWS", 50)
    monkeypatch.setattr(ope, "CHUNK", 16)
    monkeypatch.setattr(Counted, "most", 0)
    counted = replace(steps, observation=steps.observation.view(Counted))
    (right,) = estimate(counted, [always((0.0, 5.0))], CONFIG.model_copy(update={"transitions": 100}))
    assert 50 <= Counted.most <= 100 < len(steps) / 4
    assert right.value == pytest.approx(FOREVER, rel=0.1)
    assert right.support == pytest.approx(0.5, abs=0.2)


def test_of_a_large_log_the_labelled_episodes_and_some_others_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, read = chain(), []
    labels = labels_of(steps.rows_of([3, 30, 31], [2, 0, 9]), np.array([1, 0, 1]))

    def note(seen: StepArrays, known: Labels, *_: object) -> list[Snapshot]:
        read.append((seen.episodes.tolist(), seen.episode_id[known.rows].tolist(), seen.step[known.rows].tolist()))
        return [Snapshot(always((0.0, 1.0)), 1, 0.1)]

    monkeypatch.setattr(held_out, "refine", note)
    monkeypatch.setattr(held_out, "ENOUGH_ROWS", 5 * (LENGTH + 1))
    out_of_fold(steps, labels, always((0.0, 1.0)), RefineConfig(), folds=3)
    assert [len(episodes) for episodes, _, _ in read] == [2 + 5] * 3
    assert sorted(tuple(labelled) for _, labelled, _ in read) == [(3, 30), (3, 31), (30, 31)]
    assert sorted(tuple(at) for _, _, at in read) == [(0, 9), (2, 0), (2, 9)]
    assert len({tuple(sorted({*episodes} - {3, 30, 31})) for episodes, _, _ in read}) == 1


def made_up(value: float, spread: float = 0.1) -> Estimate:
    return Estimate(value, value + spread * np.array([-1.0, 0.5, 1.0, -0.5, 0.0]), 0.5, 20)


def test_verdicts_on_estimates_never_say_accepted() -> None:
    better = judge_estimated_improvement(made_up(3), made_up(1, 0.2))
    worse = judge_estimated_improvement(made_up(1), made_up(3, 0.2))
    assert better.holds
    assert better.reason.startswith("estimated better than the baseline by 2.0")
    assert not worse.holds
    for verdict in (better, worse):
        assert "(not played)" in verdict.reason
        assert "accepted" not in verdict.reason


def test_labels_have_to_be_estimated_better_than_every_placebo_and_than_its_next_draw() -> None:
    near = {"no_labels": [made_up(1, 0.2)], "random": [made_up(1, 0.2), made_up(1.1, 0.2)]}
    assert judge_estimated_labels(made_up(3), near).holds
    far = {"random": [made_up(-4, 0.2), made_up(1.5, 0.2)]}
    verdict = judge_estimated_labels(made_up(3), far)
    assert not verdict.holds
    assert "another random one reaches as much" in verdict.reason
    with pytest.raises(BadInput, match="Without a placebo"):
        judge_estimated_labels(made_up(3), {})


def test_held_out_labels_prefer_long_training_where_labels_follow_from_the_states() -> None:
    steps = chain()
    rows = np.flatnonzero(~steps.is_final)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2, len(rows))
    config = RefineConfig(betas=(0.1,), snapshots=(5, 60), learning_rate=0.02, batch_size=64, annotated_per_batch=32)
    baseline = MlpPolicy(
        BOX, TWO, (rng.normal(size=(1, 8)), np.zeros((8, 2))), (np.zeros(8), np.zeros(2)), "tanh", "logits"
    )
    clear = (steps.observation[rows, 0] > 0).astype(np.int64)
    found = {
        name: out_of_fold(steps, labels_of(rows, suggestions), baseline, config, folds=2)
        for name, suggestions in (("clear", clear), ("noise", noise))
    }
    assert found["clear"].best == 1
    assert found["clear"].agreements[1] == 1.0
    assert found["clear"].baseline == pytest.approx(np.log(0.5))
    assert found["clear"].labels == len(rows)
    assert found["noise"].likelihoods.max() < found["clear"].likelihoods[0]
    with pytest.raises(BadInput, match="1 episodes have suggestions; at least 2"):
        out_of_fold(steps, labels_of(rows[:5], clear[:5]), baseline, config)


def labels_of(rows: np.ndarray, suggestions: np.ndarray) -> Labels:
    return Labels(rows, suggestions, np.full(len(rows), 0.9), np.zeros(len(rows)))
