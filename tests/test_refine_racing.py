"""Racing: rungs, looks, and the error rate of the sequential test on returns whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from soak import every

from refine.evaluation.gate import Decision, paired_difference
from refine.evaluation.racing import (
    Rung,
    bound_gain,
    chance_below_zero,
    decide_early,
    decide_strictly,
    lengthen,
    list_looks,
    list_rungs,
    rank_survivors,
    share_over_nights,
)
from storage.errors import BadInput

Drawn = Callable[[np.random.Generator, int], NDArray[np.float64]]
MOST = 96
RUNS = 300


def normal(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    return rng.normal(0, 1, size)


def rare_disasters(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Nearly always a little better; one episode in thirty is lost altogether. Mean zero."""
    return np.where(rng.random(size) < 1 / 30, -29.0, 1.0)


def rare_triumphs(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    return -rare_disasters(rng, size)


def lands_or_crashes(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Two policies, each of which succeeds in seven of ten episodes on its own. Mean zero."""
    return ((rng.random(size) < 0.7).astype(float) - (rng.random(size) < 0.7)) * 300 + rng.normal(0, 20, size)


NULLS: list[tuple[Drawn, float]] = [
    (normal, -3.0),
    (rare_disasters, -29.0),
    (rare_triumphs, -1.0),
    (lands_or_crashes, -300.0),
]


def run_test(differences: NDArray[np.float64], worst: float) -> Decision:
    for look in list_looks(len(differences)):
        decision = decide_early(differences[:look], most=len(differences), worst=worst)
        if decision is not None:
            return decision
    raise AssertionError("the last look decides")


def test_rungs_halve_the_candidates_and_double_the_episodes() -> None:
    assert list_rungs(10, 24) == [Rung(10, 3), Rung(5, 6), Rung(3, 12), Rung(2, 24)]
    assert list_rungs(2, 10) == [Rung(2, 10)]
    assert list_rungs(1, 10) == [Rung(1, 10)]
    assert list_rungs(8, 6) == [Rung(8, 2), Rung(2, 6)]


def test_a_rung_that_would_add_fewer_than_two_episodes_is_left_out() -> None:
    assert list_rungs(10, 12) == [Rung(10, 2), Rung(3, 6), Rung(2, 12)]
    assert list_rungs(10, 4) == [Rung(10, 2), Rung(2, 4)]
    assert list_rungs(10, 2) == [Rung(10, 2)]
    for candidates in range(1, 20):
        for episodes in range(2, 40):
            lengths = [rung.episodes for rung in list_rungs(candidates, episodes)]
            assert min(np.diff([0, *lengths])) >= 2
            assert lengths[-1] in (episodes, episodes - 1)


def test_looks_double_and_end_at_the_last_episode() -> None:
    assert list_looks(192) == [12, 24, 48, 96, 192]
    assert list_looks(20) == [12, 20]
    assert list_looks(10) == [10]
    with pytest.raises(BadInput, match="at least 2"):
        list_looks(1)


def test_survivors_are_the_best_and_equals_keep_their_order() -> None:
    returns = [np.array([1.0, 1.0]), np.array([5.0, 5.0]), np.array([1.0, 1.0]), np.array([9.0, 9.0])]
    assert rank_survivors(returns, [0, 1, 2, 3], 2) == [1, 3]
    assert rank_survivors(returns, [0, 2, 3], 2) == [0, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "worst"), every(NULLS, 2), ids=lambda value: getattr(value, "__name__", ""))
def test_the_sequential_test_accepts_what_is_no_better_in_one_of_twenty_cases_at_most(
    draw: Drawn, worst: float
) -> None:
    rng = np.random.default_rng(11)
    accepted = sum(run_test(draw(rng, MOST), worst).accepted for _ in range(RUNS))
    assert accepted <= 15  # 0.05; the looks are added up, so it should be fewer


@pytest.mark.slow
def test_a_bootstrap_alone_is_too_sure_of_itself_where_disasters_are_rare() -> None:
    rng = np.random.default_rng(11)
    samples = [rare_disasters(rng, 60) for _ in range(RUNS)]
    resampled = sum(paired_difference(sample, np.zeros(60)).is_above_zero for sample in samples)
    bounded = sum(bound_gain(sample, worst=-29.0, error=0.025).is_above_zero for sample in samples)
    assert resampled > 0.10 * RUNS
    assert bounded <= 0.05 * RUNS


def test_a_clear_gain_is_accepted_at_an_early_look_and_a_clear_loss_given_up_at_the_first() -> None:
    rng = np.random.default_rng(3)
    gain = run_test(normal(rng, MOST) + 3, -3.0)
    loss = run_test(normal(rng, MOST) - 1, -4.0)
    assert gain.accepted
    assert gain.gain.n <= 24
    assert not loss.accepted
    assert loss.gain.n == 12
    assert loss.reason.endswith("after 12 of at most 96 episodes, too little to be proven by the others")


def test_a_candidate_that_never_differs_is_given_up_soon_and_one_that_differs_late_is_not() -> None:
    same = run_test(np.zeros(MOST), -1.0)
    assert not same.accepted
    assert same.gain.n == 24
    assert same.reason.endswith(
        "after 24 of at most 96 episodes; it returned what the baseline did in every one of them"
    )
    late = run_test(np.append(np.zeros(20), np.full(MOST - 20, 50.0)), 0.0)
    assert late.accepted


@pytest.mark.slow
def test_a_gain_of_half_a_deviation_is_accepted_nine_times_out_of_ten() -> None:
    rng = np.random.default_rng(5)
    accepted = sum(run_test(normal(rng, MOST) + 0.5, -3.0).accepted for _ in range(RUNS))
    assert accepted >= 0.9 * RUNS


def test_equal_gains_prove_nothing_until_a_disaster_would_have_been_seen() -> None:
    few = bound_gain(np.full(12, 10.0), worst=-490.0, error=0.01)
    many = bound_gain(np.full(400, 10.0), worst=-490.0, error=0.01)
    assert few.mean == many.mean == 10
    assert few.low < -100
    assert many.low == pytest.approx(10 - 500 * (1 - 0.01 ** (1 / 400)), abs=0.5)
    assert bound_gain(np.full(12, 10.0), worst=10.0, error=0.01).low == 10


def test_a_look_that_was_not_planned_is_refused() -> None:
    with pytest.raises(BadInput, match=r"after 13 episodes.*looks are \[12, 24, 48, 96\]"):
        decide_early(np.zeros(13), most=96, worst=0.0)


def test_the_shares_of_all_nights_add_up_to_the_error_rate_and_a_night_that_promotes_uses_none() -> None:
    shares = [share_over_nights(0.05, kept) for kept in range(365)]
    assert shares[0] == pytest.approx(0.05 * (1 - 1 / np.sqrt(2)))
    assert all(np.diff(shares) < 0)
    assert sum(shares) == pytest.approx(0.05 * (1 - 1 / np.sqrt(366)))
    assert sum(share_over_nights(0.05, kept) for kept in range(100_000)) < 0.05


def test_a_longer_test_makes_up_for_a_smaller_error() -> None:
    assert lengthen(192, 0.05) == 192
    assert lengthen(192, share_over_nights(0.05, 0)) == 260
    assert lengthen(192, share_over_nights(0.05, 364)) == 668


@pytest.mark.parametrize(("losses", "wins"), [(3, 20), (30, 100), (1, 50), (90, 150)])
def test_a_tiny_chance_is_that_of_the_beta_distribution_where_only_two_numbers_are(losses: int, wins: int) -> None:
    numbers = np.array([-1.0] * losses + [1.0] * wins)
    assert chance_below_zero(numbers) == pytest.approx(stats.beta.sf(0.5, losses, wins), rel=1e-6)


def test_a_chance_is_certain_where_all_numbers_have_one_sign() -> None:
    assert chance_below_zero(np.array([1.0, 2.0])) == 0
    assert chance_below_zero(np.array([-1.0, -2.0])) == 1


@pytest.mark.parametrize("error", [1e-3, 1e-6, 1e-9])
def test_a_bound_with_a_tiny_error_is_the_number_below_which_the_mean_has_that_chance(error: float) -> None:
    values = normal(np.random.default_rng(2), 48) + 0.5
    bound = bound_gain(values, worst=-3.0, error=error)
    assert chance_below_zero(np.append(values, -3.0) - bound.low) == pytest.approx(error, rel=1e-3)
    assert chance_below_zero(bound.high - np.append(values, values.max())) == pytest.approx(error, rel=1e-3)
    assert bound_gain(np.full(12, 10.0), worst=10.0, error=error).low == 10


@pytest.mark.slow
def test_wins_and_losses_of_a_policy_that_is_truly_worse_promote_it_in_no_simulated_night() -> None:
    rng, error = np.random.default_rng(8), share_over_nights(0.05, 200)
    for _ in range(200):
        won, before = (rng.random(96) < 0.45) * 2.0 - 1, (rng.random(96) < 0.5) * 2.0 - 1
        looks = (decide_early((won - before)[:n], most=96, worst=-2.0, error=error) for n in list_looks(96))
        assert not next(decision for decision in looks if decision is not None).accepted


def test_one_strict_look_needs_more_than_a_plain_one() -> None:
    gains = np.full(30, 10.0)
    assert decide_strictly(gains, worst=-20.0, error=0.01).accepted
    strict = decide_strictly(gains, worst=-20.0, error=1e-7)
    assert not strict.accepted
    assert strict.reason.endswith("which does not exclude zero")
