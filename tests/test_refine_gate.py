from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import full_or

from refine.evaluation.gate import (
    Interval,
    SeedPlan,
    decide_acceptance,
    interval,
    judge_improvement,
    paired_difference,
    rank,
)
from storage.errors import BadInput


def draws(mean: float, n: int = 40, *, spread: float = 50.0, seed: int = 0) -> np.ndarray:
    return mean + spread * np.random.default_rng(seed).normal(size=n)


def test_an_interval_of_many_normal_returns_is_two_standard_errors_wide() -> None:
    returns = draws(100, 400)

    found = interval(returns)

    error = returns.std() / np.sqrt(400)
    assert found.mean == pytest.approx(returns.mean())
    assert found.low == pytest.approx(returns.mean() - 1.96 * error, abs=0.5)
    assert found.high == pytest.approx(returns.mean() + 1.96 * error, abs=0.5)
    assert found.n == 400


def test_equal_returns_have_an_interval_without_width() -> None:
    assert interval([500.0] * 30) == Interval(500, 500, 500, 30)


def test_differences_that_are_equal_up_to_rounding_have_no_width() -> None:
    luck = draws(0, spread=300)

    found = paired_difference(luck + 115, luck)

    assert found.low == found.mean == found.high == pytest.approx(115)


@pytest.mark.parametrize("returns", [[0.0, 1.0], [0.0] * 39 + [1e-9], [1e300, -1e300], [0.0, 0.0, 1.0]])
def test_every_pair_of_finite_returns_has_a_finite_interval(returns: list[float]) -> None:
    found = interval(returns)

    assert np.isfinite([found.low, found.high]).all()
    assert found.low <= found.mean <= found.high


def test_an_interval_of_two_outcomes_contains_the_mean_and_stays_inside_them() -> None:
    found = interval([1.0] * 29 + [500.0])

    assert 1 <= found.low <= found.mean <= found.high <= 500


def test_the_same_returns_give_the_same_interval() -> None:
    assert interval(draws(3)) == interval(draws(3))


@pytest.mark.slow
@pytest.mark.parametrize("returns", [[], [1.0], [[1.0, 2.0]], [1.0, np.nan], [1.0, np.inf]])
def test_returns_that_prove_nothing_are_refused(returns: list[float]) -> None:
    with pytest.raises(BadInput):
        interval(returns)


def test_pairing_removes_what_the_seeds_have_in_common() -> None:
    luck = draws(0, spread=300)
    baseline, candidate = luck, luck + draws(10, spread=5, seed=1)

    paired = paired_difference(candidate, baseline)

    assert 8 < paired.low < 10 < paired.high < 13
    assert interval(candidate).high - interval(candidate).low > 100


def test_unequal_numbers_of_episodes_cannot_be_paired() -> None:
    with pytest.raises(BadInput, match="3 and 2 episodes"):
        paired_difference([1, 2, 3], [1, 2])


def test_ranking_is_by_mean_and_equals_keep_their_order() -> None:
    assert rank({"30": [1, 3], "60": [9, 9], "100": [2, 2], "160": [9, 9]}) == ["60", "160", "30", "100"]
    with pytest.raises(BadInput, match="no candidate"):
        rank({})


def test_a_clear_gain_is_accepted_with_its_reason() -> None:
    decision = decide_acceptance(draws(200), draws(-25, seed=1))

    assert decision.accepted
    assert decision.reason == (
        f"accepted: the best candidate's gain on the acceptance seeds is {decision.gain}, all of it above zero"
    )


def test_a_gain_that_may_be_zero_is_rejected_with_its_reason() -> None:
    decision = decide_acceptance([14.0, -10.0] * 10, [0.0] * 20)

    assert not decision.accepted
    assert decision.gain.low < 0 < decision.gain.high
    assert decision.reason == (
        f"rejected: the best candidate's gain on the acceptance seeds is {decision.gain}, which does not exclude zero"
    )


def test_a_loss_is_called_a_loss() -> None:
    assert decide_acceptance(draws(-90), draws(25, seed=1)).reason.endswith("which is a loss")


def test_a_policy_equal_to_the_baseline_is_rejected() -> None:
    decision = decide_acceptance(draws(0), draws(0))

    assert not decision.accepted
    assert decision.gain == Interval(0, 0, 0, 40)


def test_a_handful_of_episodes_accepts_nothing_however_large_the_gain() -> None:
    decision = decide_acceptance([500.0] * 5, [9.0] * 5)

    assert not decision.accepted
    assert "from 5 episodes; 10 are needed" in decision.reason


@pytest.mark.slow
def test_without_a_true_gain_at_most_one_acceptance_in_twenty() -> None:
    rng = np.random.default_rng(7)
    skewed = rng.normal(size=(400, 40)) * 50 + (rng.random((400, 40)) < 0.2) * 300 - 60  # mean zero

    accepted = sum(paired_difference(differences, np.zeros(40)).is_above_zero for differences in skewed)

    assert accepted <= 20


def test_an_improvement_says_by_how_much() -> None:
    improvement = judge_improvement(draws(195, seed=3), draws(-25, seed=1))

    assert improvement.answer == "yes"
    assert improvement.holds
    assert "better than the baseline by" in improvement.reason


def test_an_improvement_that_is_not_shown_says_so() -> None:
    assert judge_improvement(draws(0), draws(0)).reason == (
        "the refined policy is not shown to be better than the baseline: 0.0 [0.0, 0.0], which does not exclude zero"
    )


def test_after_a_rejection_there_is_no_refined_policy_to_call_better() -> None:
    verdict = judge_improvement(draws(250), draws(0), accepted=False)

    assert not verdict.holds
    assert verdict.reason == "the refinement was rejected, so the baseline is in force"


@settings(max_examples=full_or(50, 12), deadline=None)
@given(first=st.integers(0, 10**6), sizes=st.tuples(*[st.integers(2, 50)] * 3))
def test_a_plan_lays_its_seeds_side_by_side(first: int, sizes: tuple[int, int, int]) -> None:
    plan = SeedPlan.starting_at(first, select=sizes[0], accept=sizes[1], report=sizes[2])

    seeds = [seed for planned in plan.purposes().values() for seed in planned]
    assert seeds == list(range(first, first + sum(sizes)))


def test_seeds_with_two_uses_are_refused() -> None:
    with pytest.raises(BadInput, match="Seed 9 is among the select seeds and the accept seeds"):
        SeedPlan(range(10), range(9, 20), range(20, 30))
    with pytest.raises(BadInput, match="accept seeds are"):
        SeedPlan(range(10), range(10, 11), range(20, 30))
    plan = SeedPlan.starting_at(100, select=5, accept=5, report=5)
    plan.check_unused(range(100))
    with pytest.raises(BadInput, match="Seed 112 is among the dataset seeds and the report seeds"):
        plan.check_unused([3, 112])


def test_an_interval_shows_as_many_decimals_as_its_width_asks_for():
    assert str(Interval(240.512, 229.21, 247.13, 100)) == "240.5 [229.2, 247.1]"
    assert str(Interval(0.2934, 0.26, 0.318, 100)) == "0.29 [0.26, 0.32]"
    assert str(Interval(0.00031, 0.00028, 0.00035, 40)) == "0.00031 [0.00028, 0.00035]"
    assert str(Interval(0.25, 0.25, 0.25, 40)) == "0.25 [0.25, 0.25]"
    assert str(Interval(500.0, 500.0, 500.0, 40)) == "500.0 [500.0, 500.0]"
